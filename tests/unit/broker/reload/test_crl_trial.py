"""A list that is tried: what it would revoke, whom it would put out, and that nothing of it stays."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from broker.admission.bundle import ListTerms, TrustBundle
from broker.admission.trust import Trust
from broker.reload.crl_trial import NoListsUsed, Trial, try_lists
from broker.reload.report import SHOWN
from broker.settings.trust_settings import REQUIRE
from broker.sources.crl_intake import signer_of
from provisioning.pki.crl import parse
from tests.support.crl import crl, impostor_of, pem
from tests.support.pki import Held, shared_pki
from tests.support.wire import MemoryBroker, WireClient

PKI = shared_pki()
PLANT = PKI.authority("Plant CA", PKI.root)


class Listed(MemoryBroker):
    """A broker that believes lists of the root and of the CAs below it."""

    def __init__(self) -> None:
        super().__init__()
        self.trust = Trust([TrustBundle("root", [PKI.root.certificate], lists=ListTerms(REQUIRE))])
        self.engine.admission.believe(self.trust)
        for authority in (PKI.issuing, PLANT):  # Known as soon as a client has brought it.
            known = PKI.device("seen", issuer=authority)
            assert self.trust.issuer_of(known.certificate, path(known, authority), PKI.now) is not None
        for authority in (PKI.root, PKI.issuing, PLANT):
            self.put(crl(authority, number=1))

    def put(self, der: bytes) -> None:
        """Hold a list as if it had been read."""
        listed = parse(der)
        lists = self.engine.admission.status.lists
        held = lists.prepare(listed, signer_of(listed, self.trust), "file", datetime.now(UTC), lambda: None)
        assert held is not None
        lists.put(held)

    def comes(self, name: str, issuer: Held = PKI.issuing) -> tuple[WireClient, Held]:
        device = PKI.device(name, issuer=issuer)
        client = self.open(device, path=path(device, issuer))
        client.connect(client_id=name)
        return client, device

    async def tried(self, *lists: bytes) -> list[Trial]:
        """Try *lists*; nothing changes by it, so that they say the same when they are tried again."""
        before = (self.engine.connected, dict(self.metrics.closed))
        trials = await try_lists(self.engine, pem(*lists))
        again = await try_lists(self.engine, pem(*lists))
        # But for the time of day, which is in some.
        assert [replace(each, detail="") for each in again] == [replace(each, detail="") for each in trials]
        self.settle()
        assert (self.engine.connected, dict(self.metrics.closed)) == before
        return trials


def path(*held: Held) -> list[bytes]:
    return [each.der for each in (*held, PKI.root)]


def effect(trial: Trial) -> tuple[int, ...]:
    return trial.entries, trial.newly_revoked, trial.released, trial.connected, trial.disconnected


@pytest.fixture
def listed() -> Listed:
    return Listed()


async def test_whose_certificate_or_ca_is_listed_would_go_and_nobody_else(listed: Listed) -> None:
    (_, first), (_, second) = listed.comes("first"), listed.comes("second")
    listed.comes("below", PLANT)
    listed.open(PKI.device("at-the-door"))
    (trial,) = await listed.tried(crl(PKI.issuing, [first], number=2))
    assert trial.used
    assert (trial.number, trial.base_number, trial.issuer) == (2, None, "CN=Test Issuing CA")
    assert effect(trial) == (1, 1, 0, 3, 1)
    serial = first.certificate.serial_number
    assert [(each.client_id, each.why) for each in trial.affected] == [("first", f"certificate {serial:x} revoked")]
    assert str(trial).endswith(f"would disconnect 1 of 3 clients: first (certificate {serial:x} revoked)")
    (trial,) = await listed.tried(crl(PKI.root, [PLANT], number=2))
    assert [(each.client_id, each.why) for each in trial.affected] == [("below", "the CA CN=Plant CA revoked")]
    (trial,) = await listed.tried(crl(PLANT, [first, second], number=2))
    assert effect(trial) == (2, 2, 0, 3, 0), "the same number of another CA is another certificate"
    (trial,) = await listed.tried(crl(PKI.issuing, [PLANT], number=2))
    assert effect(trial) == (1, 1, 0, 3, 0), "and so it is for a CA's"


async def test_whoever_is_revoked_already_is_not_counted_again_and_is_released_where_he_is_left_out(
    listed: Listed,
) -> None:
    (_, first), (_, second), (_, third) = (listed.comes(name) for name in ("first", "second", "third"))
    known = crl(PKI.issuing, [first, second], number=2)
    listed.put(known)
    (trial,) = await listed.tried(crl(PKI.issuing, [first, third], number=3))
    assert effect(trial) == (2, 1, 1, 3, 1)
    assert [each.client_id for each in trial.affected] == ["third"]
    for der, code in ((known, "CRL_KNOWN"), (crl(PKI.issuing, number=1, age=timedelta(minutes=19)), "CRL_OLDER")):
        (trial,) = await listed.tried(der)
        assert (trial.used, trial.code) == (False, code)
        assert str(trial).startswith(f"would not be used: {code}: ")
    for number, revoked in ((0, [third]), (1, [])):
        later = crl(PKI.issuing, revoked, number=number, age=-timedelta(seconds=270))
        (trial,) = await listed.tried(later)
        assert (trial.used, trial.code) == (True, "CRL_OLDER"), "its number contradicts its date"
        assert (trial.newly_revoked, trial.released) == (len(revoked), 0)
        assert "made later than number 2" in str(trial)


async def test_a_delta_is_told_with_its_base_in_the_order_in_which_they_were_given(listed: Listed) -> None:
    (_, first), (_, second) = listed.comes("first"), listed.comes("second")
    base, delta = crl(PKI.issuing, [first], number=5), crl(PKI.issuing, [second], number=6, base=5)
    of_delta, of_base = await listed.tried(delta, base)
    assert (of_delta.number, of_delta.base_number, effect(of_delta)) == (6, 5, (2, 2, 0, 2, 2))
    assert (of_base.number, of_base.base_number, effect(of_base)) == (5, None, (1, 1, 0, 2, 1))
    assert " 6 (a delta, with its base 5) of " in str(of_delta)
    (alone,) = await listed.tried(delta)
    assert (alone.used, alone.code) == (False, "CRL_NO_BASE")


async def test_not_all_who_would_go_are_named_and_others_are_served_between(listed: Listed) -> None:
    devices = [listed.comes(f"m-{number}")[1] for number in range(SHOWN + 2)]
    turns = 0

    async def served() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(served())
    (exactly,) = await listed.tried(crl(PKI.issuing, devices[:SHOWN], number=2))
    (more,) = await listed.tried(crl(PKI.issuing, devices, number=2))
    task.cancel()
    assert turns > 0
    assert (exactly.disconnected, len(exactly.affected), "…" in str(exactly)) == (SHOWN, SHOWN, False)
    assert (more.disconnected, len(more.affected), str(more).endswith("; …")) == (SHOWN + 2, SHOWN, True)


async def test_each_list_that_would_not_be_used_says_why_and_the_others_are_tried_all_the_same(listed: Listed) -> None:
    _, device = listed.comes("first")
    forged, early, good = (
        crl(PKI.issuing, signed_by=impostor_of(PKI.issuing), number=2),
        crl(PKI.issuing, number=2, age=-timedelta(hours=1)),
        crl(PKI.issuing, [device], number=2),
    )
    trials = await listed.tried(forged, early, good)
    assert [each.code for each in trials] == ["CRL_BAD_SIGNATURE", "CRL_NOT_YET_VALID", ""]
    assert trials[2].disconnected == 1
    (trial,) = await try_lists(listed.engine, b"no list")
    assert (trial.used, trial.code) == (False, "CRL_MALFORMED")
    broken = b"-----BEGIN X509 CRL-----\nMAAA\n-----END X509 CRL-----\n"
    malformed, trial = await try_lists(listed.engine, broken + pem(good))
    assert (malformed.used, malformed.code, trial.used) == (False, "CRL_MALFORMED", True)


async def test_it_is_enough_that_one_bundle_uses_lists(listed: Listed) -> None:
    listed.engine.admission.believe(Trust([TrustBundle("other", [PKI.root.certificate]), *listed.trust.bundles]))
    (trial,) = await try_lists(listed.engine, crl(PKI.root, number=2))
    assert trial.used


@pytest.mark.parametrize("trust", [None, Trust([TrustBundle("root", [PKI.root.certificate])])], ids=["cafile", "feed"])
async def test_where_no_lists_are_used_none_is_tried(listed: Listed, trust: Trust | None) -> None:
    listed.engine.admission.believe(trust)
    with pytest.raises(NoListsUsed, match="crlfile, crl_urls and crl_from_certificates are unset"):
        await try_lists(listed.engine, crl(PKI.issuing))
