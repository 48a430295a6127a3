"""Of whoever does not come back after a restart the responder is asked, before his will is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Never, Self

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused, unavailable
from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import StatusPolicy
from broker.sources import asker as asker_module
from broker.sources import crl_urls
from broker.sources.revocation_lists import RevocationLists
from broker.sources.trust_files import load_trust
from tests.support.crl import at, crl
from tests.support.panic import panic
from tests.support.pki import pem_of, shared_device, shared_pki
from tests.support.responder import Responder, delegate
from tests.support.stored import StoredBroker
from tests.support.web import WebServer
from tests.support.wire import KEPT, will

PKI = shared_pki()


class InTenDays(datetime):
    """What the wall clock says when all CAs of the tests have expired."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(days=10)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[StoredBroker]:
    opened = StoredBroker(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as opened:
        yield opened


def asks_responder(broker: StoredBroker, web: WebServer, tmp_path: Path, clock: Callable[[], float]) -> RevocationLists:
    """Let *broker* ask the responder that is on *web*."""
    files = PKI.broker().write(tmp_path)
    (tmp_path / "issuing.pem").write_bytes(pem_of(PKI.issuing.certificate))
    config = BrokerConfig(
        cafile=tmp_path / "issuing.pem",
        certfile=files.certificate,
        keyfile=files.key,
        ocsp_responder=f"{web.url}/ocsp",
        ocsp_policy=StatusPolicy(None),
    )
    broker.engine.admission.believe(load_trust(config))
    return RevocationLists(broker.engine, config, clock)


@pytest.mark.parametrize("answer", ["revoked", "on hold", "good", "silent"])
async def test_the_will_of_who_is_absent_waits_for_what_a_responder_says(
    broker: StoredBroker, web: WebServer, tmp_path: Path, answer: str
) -> None:
    held = shared_device("meter-1")
    responder = web.pages["/ocsp"] = Responder(PKI.issuing, delegate(PKI), [held], silent=answer == "silent")
    reasons = {"revoked": x509.ReasonFlags.key_compromise, "on hold": x509.ReasonFlags.certificate_hold}
    if answer in reasons:
        responder.revoked[held.certificate.serial_number] = reasons[answer]
    broker.service(**KEPT).subscribe("fleet/#", qos=1)
    broker.device("meter-1", will=will("fleet/meters/meter-1/event", qos=1), **KEPT)
    after = broker.killed(away=5)
    watcher = after.service(**KEPT)
    lists = asks_responder(after, web, tmp_path, lambda: after.now)
    after.advance(11)
    (asking,) = lists._asker._tasks
    assert watcher.received() == []
    await asking
    await lists.intake.enforce()
    after.advance(1)
    assert watcher.received() == [], "nobody knows how long it takes until there is an answer"
    after.advance(3)
    await lists._asker.close()
    assert watcher.payloads() == ([] if answer in reasons else [b"gone"])
    assert len(after.engine.registry) == (1 if answer == "revoked" else 2)


async def test_what_is_not_known_in_time_is_said_once_for_all_clients_of_a_storm(
    broker: StoredBroker, web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = shared_device("meter-1")
    web.pages["/ocsp"] = Responder(PKI.issuing, delegate(PKI), [held], silent=True)
    monkeypatch.setattr(asker_module, "_PATIENCE", 0.0)
    asker = asks_responder(broker, web, tmp_path, lambda: broker.now)._asker
    assert broker.engine.admission.trust is not None
    (issuer,) = broker.engine.admission.trust.bundles[0].anchors
    said = []
    for seconds in (0, 60):
        broker.now += seconds
        with capture_logs() as lines:
            for _ in range(3):
                assert asker.ask(held.certificate, issuer, None) is not None
            await asyncio.gather(*asker._tasks)
        said.append([line["times"] for line in lines if line["event"] == "certificate status not known in time"])
    assert said == [[1], [3]]
    await asker.close()


async def test_what_is_remembered_will_do_unless_lists_are_wanting_or_nobody_knows_the_certificate(
    broker: StoredBroker, web: WebServer, tmp_path: Path
) -> None:
    held = shared_device("meter-1")
    responder = web.pages["/ocsp"] = Responder(PKI.issuing, delegate(PKI), [held])
    asker = asks_responder(broker, web, tmp_path, lambda: broker.now)._asker
    assert broker.engine.admission.trust is not None
    (issuer,) = broker.engine.admission.trust.bundles[0].anchors

    async def found(refusal: Refused | None = None) -> Refused | None:
        inquiry = asker.ask(held.certificate, issuer, refusal)
        assert inquiry is not None
        done = [inquiry.done]
        await asyncio.gather(*asker._tasks)
        assert [*done, inquiry.done] == [False, True]
        return inquiry.refusal

    assert await found() is None
    assert asker.ask(held.certificate, issuer, None) is None
    assert await found(unavailable(RefusalCode.CRL_MISSING, "no list")) is None, "there may be one now"
    broker.now += 1e6
    responder.unknown = True
    for _ in range(2):
        assert await found() is None, "advisory"
    await asker.close()


async def test_every_will_of_one_certificate_waits_for_the_one_answer(
    broker: StoredBroker, web: WebServer, tmp_path: Path
) -> None:
    """A service has several sessions: who asks for the second one is not told that the first one's question will do."""
    held = shared_device("meter-1")
    web.pages["/ocsp"] = Responder(PKI.issuing, delegate(PKI), [held])
    now = 100.0
    asker = asks_responder(broker, web, tmp_path, lambda: now)._asker
    key = held.revocation.key
    patience = asker.ask_about(key)
    assert patience > 0
    now += 1
    assert asker.ask_about(key) == patience - 1
    assert len(asker._tasks) == 1
    await asyncio.gather(*asker._tasks)
    now += patience
    assert [asker.ask_about(key) for _ in range(3)] == [0, 0, 0]
    assert (len(asker._tasks), len(asker._asked)) == (0, 0)
    await asker.close()


async def test_of_everybody_else_the_responder_is_asked_when_one_cannot_be_asked_about(
    broker: StoredBroker, web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was revoked by a responder alone stayed connected for as long as such a one did."""

    def fail() -> Never:
        raise ValueError("handshake not done yet")

    lists = asks_responder(broker, web, tmp_path, lambda: broker.now)
    responder = web.pages["/ocsp"] = Responder(PKI.issuing, delegate(PKI), [])
    admission, asker = broker.engine.admission, lists._asker
    admission.asker = None  # They connect before anybody can be asked.
    clients = [broker.device(name) for name in ("meter-1", "meter-3", "meter-2")]
    admission.asker = asker
    monkeypatch.setattr(clients[0].transport, "presented", fail)
    monkeypatch.setattr(clients[1].transport, "presented", panic)
    held = shared_device("meter-2")
    responder.certificates.append(held)
    responder.revoked[held.certificate.serial_number] = x509.ReasonFlags.key_compromise
    with capture_logs() as logs:
        await asker._round(broker.engine)
        await asyncio.gather(*asker._rounds.values())
    await lists.intake.enforce()
    await asker.close()
    assert [each.closed for each in clients] == [False, False, True]
    assert [each["times"] for each in logs if "exc_info" in each] == [1], "once a minute"


@pytest.mark.parametrize("named_by", ["client", "issuer"])
@pytest.mark.parametrize("follows", [True, False])
async def test_the_list_that_a_certificate_names_is_fetched_if_the_settings_say_so_and_never_else(
    broker: StoredBroker,
    web: WebServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    follows: bool,
    named_by: str,
) -> None:
    """Under a lenient policy, too: nobody is refused because it is not known yet, but whom it names is."""
    point = [x509.CRLDistributionPoints(at(f"{web.url}/ca.crl"))]
    if named_by == "client":
        issuer, held = PKI.issuing, PKI.device("meter-1", extensions=point)
        web.pages["/ca.crl"] = crl(issuer, [held])
    else:
        issuer = PKI.authority("Plant CA", PKI.root, extensions=point)
        held = PKI.device("meter-1", issuer=issuer)
        web.pages["/ca.crl"] = crl(PKI.root, [issuer], number=2)
    files = PKI.broker().write(tmp_path)
    (tmp_path / "root.pem").write_bytes(pem_of(PKI.root.certificate))
    (tmp_path / "empty.crl").write_bytes(crl(PKI.root))
    config = BrokerConfig(
        cafile=tmp_path / "root.pem",
        certfile=files.certificate,
        keyfile=files.key,
        crlfile=(tmp_path / "empty.crl",),
        crl_from_certificates=follows,
        crl_policy=StatusPolicy(None),
    )
    admission = broker.engine.admission
    admission.believe(load_trust(config))
    lists = RevocationLists(broker.engine, config, lambda: broker.now)
    await lists.files.look()
    path = (held.der, issuer.der, PKI.root.der)
    peer = admission.examine(held.der, datetime.now(UTC), lambda: path)
    assert isinstance(peer, Peer)
    assert (peer.inquiry is not None) is follows, "who is not asked about need not wait"
    assert peer.issuer is not None
    lists._asker.ask(held.certificate, peer.issuer, unavailable(RefusalCode.CRL_MISSING, "no list"))
    await asyncio.gather(*lists._asker._tasks)
    broker.keep_fresh()
    refusal = admission.refuse_now(peer, broker.now)
    code = RefusalCode.REVOKED if named_by == "client" else RefusalCode.ISSUER_REVOKED
    assert (refusal and refusal.code, web.requests["/ca.crl"]) == ((code, 1) if follows else (None, 0))
    monkeypatch.setattr(crl_urls, "datetime", InTenDays)
    broker.now += 1e6
    await lists.urls.fetch_due()
    assert web.requests["/ca.crl"] == follows, "the CA has expired whose list it is"
    await lists._asker.close()
    await lists.urls.close()
