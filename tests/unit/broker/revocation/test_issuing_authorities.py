"""Which of provisioning's CAs a broker would not believe, by the anchors that count: before anybody comes under one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.trust import Trust
from broker.revocation.issuing_authorities import IssuingAuthorities
from provisioning.client.feed_reader import IssuingAuthority
from tests.support.bundles import settings
from tests.support.pki import Held, shared_pki
from tests.support.wire import MemoryBroker

PKI = shared_pki()
NEXT = PKI.authority("Test Issuing CA 2", PKI.root)
OTHER_ROOT = PKI.authority("Another root")
ELSEWHERE = PKI.authority("Pumps CA", OTHER_ROOT)


def told(name: str, held: Held, state: str = "active", line: str = "default") -> IssuingAuthority:
    return IssuingAuthority(name, line, state, held.der)


FIRST, SECOND = told("issuing-ca", PKI.issuing), told("issuing-2", NEXT, "announced")
PUMPS = told("issuing-pumps-1", ELSEWHERE, line="pumps")


class Comparing:
    """One broker that is told of CAs, and what it tells provisioning; its anchors are those of *bundles*."""

    def __init__(self, broker: MemoryBroker, *bundles: TrustBundle) -> None:
        self.broker = broker
        self.authorities = IssuingAuthorities(broker.engine, lambda: broker.now)
        self.said: list[dict[str, bool]] = []
        self.rereads = 0
        self.answers = True
        self._told = asyncio.Event()
        self.believe(*bundles)

    def believe(self, *bundles: TrustBundle) -> None:
        trust = Trust(bundles)
        self.broker.engine.admission.believed = trust
        self.broker.engine.admission.trust = None if bundles[0].terms.settings is None else trust

    async def hears(self, *issuing: IssuingAuthority) -> dict[str, bool]:
        """Return what it says when it has heard of *issuing*."""
        self._told.clear()
        running = asyncio.create_task(self.authorities.run(self._reread, self._tell))
        self.authorities.hear(issuing)
        await self._told.wait()
        running.cancel()
        return self.said[-1]

    async def looks(self) -> dict[str, bool]:
        """Return what it says when it has looked again, since its anchors are others."""
        self._told.clear()
        running = asyncio.create_task(self.authorities.run(self._reread, self._tell))
        await self._told.wait()
        running.cancel()
        return self.said[-1]

    async def _reread(self) -> None:
        self.rereads += 1

    async def _tell(self, known: Mapping[str, bool]) -> bool:
        self.said.append(dict(known))
        self._told.set()
        return self.answers


def bundle(*held: Held, name: str = "fleet", feed: bool = True, **terms: object) -> TrustBundle:
    """Return a ``[[trust]]`` table's bundle."""
    return TrustBundle(name, [each.certificate for each in held], terms=BundleTerms.of(settings(**terms)), feed=feed)


def cafile(*held: Held) -> TrustBundle:
    return TrustBundle("default", [each.certificate for each in held])


@pytest.mark.parametrize(
    ("anchors", "known"),
    [
        ([cafile(PKI.root, PKI.issuing, NEXT, OTHER_ROOT, ELSEWHERE)], {"issuing-2": True, "issuing-pumps-1": True}),
        ([cafile(PKI.root, PKI.issuing)], {"issuing-2": False, "issuing-pumps-1": False}),
        ([cafile(PKI.issuing)], {"issuing-2": False, "issuing-pumps-1": False}),
        # Who names roots alone has clients that send their CA's certificate.
        ([cafile(PKI.root)], {"issuing-ca": True, "issuing-2": True, "issuing-pumps-1": False}),
        ([cafile(PKI.root, OTHER_ROOT, ELSEWHERE)], {"issuing-ca": True, "issuing-2": True, "issuing-pumps-1": True}),
        # With tables a line that nobody has named is not meant.
        ([bundle(PKI.root, PKI.issuing)], {"issuing-2": False}),
        ([bundle(PKI.root, PKI.issuing, NEXT)], {"issuing-2": True}),
        ([bundle(PKI.issuing), bundle(OTHER_ROOT, name="pumps")], {"issuing-2": False, "issuing-pumps-1": True}),
        # Who may have issued a client's certificate is named, and the next one is not.
        (
            [bundle(PKI.root, PKI.issuing, NEXT, issuers=["CN=Test Issuing CA"])],
            {"issuing-2": False},
        ),
        ([bundle(PKI.root, PKI.issuing, NEXT, issuers=["CN=Test Issuing CA", "CN=Test Issuing CA 2"])],
         {"issuing-2": True}),
        # Whom the feed knows nothing of is of no use to the fleet.
        ([bundle(PKI.root, PKI.issuing), bundle(NEXT, name="theirs", feed=False)], {"issuing-2": False}),
    ],
)  # fmt: skip
async def test_what_is_known_goes_by_the_anchors_that_count(
    broker: MemoryBroker, anchors: list[TrustBundle], known: dict[str, bool]
) -> None:
    comparing = Comparing(broker, *anchors)
    assert await comparing.hears(FIRST, SECOND, PUMPS) == {"issuing-ca": True} | known
    missing = {name for name, is_known in known.items() if not is_known}
    assert {each.name for each in comparing.authorities.unknown} == missing
    assert comparing.authorities.state == ("unknown" if missing else "ok")
    assert comparing.rereads == bool(missing), "the operator's files are read again before anything is called missing"


async def test_it_is_said_once_per_change_and_that_it_is_over(broker: MemoryBroker) -> None:
    comparing = Comparing(broker, cafile(PKI.root, PKI.issuing))
    assert (comparing.authorities.state, comparing.authorities.documents()) == ("off", None)
    with capture_logs() as logs:
        await comparing.hears(FIRST, SECOND)
        broker.now += 3600
        await comparing.hears(FIRST, SECOND)
        broker.now += 3600
        await comparing.hears(told("issuing-ca", PKI.issuing, "retiring"), told("issuing-2", NEXT))
        comparing.believe(cafile(PKI.root, PKI.issuing, NEXT))
        assert await comparing.looks() == {"issuing-ca": True, "issuing-2": True}
    assert [(each["code"], each["ca"], each.get("state"), each["log_level"]) for each in logs] == [
        ("ISSUING_CA_UNKNOWN", "issuing-2", "announced", "warning"),
        ("ISSUING_CA_UNKNOWN", "issuing-2", "active", "warning"),
        ("ISSUING_CA_KNOWN", "issuing-2", None, "info"),
    ]
    assert comparing.authorities.documents() == []


async def test_provisioning_is_told_again_after_an_hour_and_sooner_where_it_did_not_answer(
    broker: MemoryBroker,
) -> None:
    comparing = Comparing(broker, cafile(PKI.root, PKI.issuing))
    for answers, pause in ((True, 3600), (False, 30)):
        comparing.answers = answers
        await comparing.hears(FIRST)
        before = len(comparing.said)
        broker.now += pause
        assert await comparing.looks() == {"issuing-ca": True}
        assert len(comparing.said) == before + 1
        broker.now += 3600


async def test_a_ca_that_cannot_be_read_is_unknown_and_ends_nothing(broker: MemoryBroker) -> None:
    comparing = Comparing(broker, cafile(PKI.root, PKI.issuing))
    assert await comparing.hears(FIRST, IssuingAuthority("issuing-2", "default", "announced", b"\x30\x00")) == {
        "issuing-ca": True,
        "issuing-2": False,
    }


async def test_nothing_that_is_told_is_trusted(broker: MemoryBroker) -> None:
    comparing = Comparing(broker, cafile(PKI.root, PKI.issuing))
    trust = broker.engine.admission.believed
    assert trust is not None
    before = trust.fingerprints
    await comparing.hears(FIRST, SECOND, PUMPS)
    assert broker.engine.admission.believed is trust
    assert (trust.fingerprints, trust.learned) == (before, 0)
