"""An issuing CA that is revoked: nothing that it has issued is good at once, and it is revoked in portions."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.authentication import authenticate
from provisioning.enrolment.renewal_info import RenewalService
from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import RevokedAuthority, begun, device_name, revoke_authority
from provisioning.revocation.service import RevocationService
from provisioning.revocation.shut_out import ShutOut
from provisioning.store import (
    audit,
    certificates,
    certificates_of_device,
    certificates_of_issuer,
    certificates_of_key,
    device_inventory,
    devices,
    inventory,
    operators,
)
from provisioning.store.certificates import CertificateState
from provisioning.store.certificates_of_device import Withdrawal
from provisioning.store.device_inventory import DeviceSearch
from provisioning.store.groups import Group, NewKey
from provisioning.store.inventory import CertificateSearch
from provisioning.store.revocations import EventKind
from tests.support.fleet import Fleet, successor_csr
from tests.support.many_certificates import (
    Between,
    Died,
    dying_after,
    events,
    identifier_of,
    said_by_ocsp,
    serials_of,
    unfinished_authorities,
)
from tests.support.requests import csr_der
from tests.support.responding import Responding
from tests.support.ways import HOUR, claim, enrol, group, refusal

COMPROMISED, UNSPECIFIED = RevocationReason.KEY_COMPROMISE, RevocationReason.UNSPECIFIED
DAY = timedelta(days=1)


pytestmark = pytest.mark.usefixtures("small_portions")


async def begin(fleet: Fleet, reason: RevocationReason = RevocationReason.CA_COMPROMISE) -> RevokedAuthority:
    """Revoke the issuing CA, and nothing that it has issued."""
    return await fleet.database.write(
        lambda connection: revoke_authority(connection, "issuing-ca", Grounds(reason), by="boss", now=fleet.clock())
    )


async def withdrawal(fleet: Fleet, name: str) -> Withdrawal | None:
    """Return why the device may not ask for another certificate by itself."""

    def look(connection: Any) -> Withdrawal | None:
        found = devices.find(connection, name)
        assert found is not None
        return certificates_of_device.withdrawn(connection, found)

    return await fleet.database.read(look)


async def party(fleet: Fleet, name: str, role: Role) -> x509.Certificate:
    token = TokenCredential(name, await fleet.token(name, None, role))
    return await fleet.enrolment.enrol(csr_der(names=[name]), token)


async def test_from_the_first_moment_nothing_of_it_is_good(fleet: Fleet) -> None:
    await fleet.groups.create(Group("north", same_key_window=DAY), by="admin")
    key = generate_key()
    device = await fleet.enrol("meter-1", csr_der(key, names=["meter-1"]))
    broker, backend = await party(fleet, "broker-1", Role.BROKER), await party(fleet, "backend", Role.SERVICE)
    boss = await party(fleet, "boss", Role.OPERATOR)
    await fleet.database.write(
        lambda connection: operators.grant(connection, "boss", OperatorRole.ADMIN, by="admin", now=fleet.clock())
    )
    every = (device, broker, backend, boss)
    assert await fleet.database.write(lambda connection: operators.usable_admins(connection, fleet.clock())) == {"boss"}
    await begin(fleet)
    assert [each.device for each in await events(fleet)] == [device_name("issuing-ca")], "none is revoked itself"

    for each in every:
        with pytest.raises(Refused, match="CERTIFICATE_REVOKED: the CA that has issued certificate"):
            await fleet.database.read(partial(authenticate, certificate=each, now=fleet.clock()))
        with pytest.raises(Refused, match="CERTIFICATE_REVOKED: the CA that has issued certificate"):
            await fleet.reenrol(each, successor_csr(each))
        assert await said_by_ocsp(fleet, each) is UNSPECIFIED
        info = await RenewalService(fleet.database, fleet.clock).info(identifier_of(each))
        assert info.end < fleet.clock(), "whoever asks when to renew it is told now"
        found = await fleet.database.read(lambda connection: operators.every(connection, fleet.clock()))
        assert [(each.grant.name, each.good_until) for each in found] == [("boss", None)]
    assert not await fleet.database.write(lambda connection: operators.usable_admins(connection, fleet.clock()))

    def held(connection: Any) -> object:
        found = devices.find(connection, "meter-1")
        assert found is not None
        assert not certificates_of_device.in_use(connection, found.id, fleet.clock(), DAY)
        return certificates_of_device.withdrawn(connection, found)

    withdrawn = await fleet.database.read(held)
    assert withdrawn is not None
    newest = await fleet.database.read(
        lambda connection: certificates_of_key.newest(connection, "meter-1", certificates.issued(device).spki_sha256)
    )
    assert newest is not None
    assert newest.withdrawn, "the same request is not answered with it again"


async def test_what_a_ca_was_revoked_for_is_said_of_what_it_has_issued_from_the_first_moment(fleet: Fleet) -> None:
    device = await fleet.enrol("meter-1")
    await begin(fleet, RevocationReason.CESSATION_OF_OPERATION)
    assert await said_by_ocsp(fleet, device) is RevocationReason.CESSATION_OF_OPERATION


async def test_what_is_remembered_of_it_is_forgotten_before_its_portion(fleet: Fleet) -> None:
    device = await fleet.enrol("meter-1")
    responding = await Responding.on(fleet)
    there = ShutOut(fleet.database, responding.responder.forget_all)
    await there.look()
    assert (await responding.ask(device)).certificate_status == ocsp.OCSPCertStatus.GOOD
    await begin(fleet)
    await there.look()
    said = await responding.ask(device)
    assert said.certificate_status == ocsp.OCSPCertStatus.REVOKED
    since = said.revocation_time_utc
    await fleet.revocation.portions.finish_left()
    responding.responder.forget_all()
    assert (await responding.ask(device)).revocation_time_utc == since, "since the CA was revoked, then and now"


async def test_devices_come_first_and_who_follows_the_feed_last_while_others_write(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await party(fleet, "broker-1", Role.BROKER)
    meters = [await fleet.enrol(f"meter-{number}") for number in range(6)]
    boss = await party(fleet, "boss", Role.OPERATOR)
    serials = serials_of(meters)
    await fleet.suspension.suspend_serial(serials[4], by="anna")
    await fleet.revocation.revoke_serial(serials[3], COMPROMISED, by="anna")
    between = Between(fleet, monkeypatch)
    before = len(await events(fleet))
    ended_at = fleet.clock()
    authority = await begin(fleet)
    fleet.clock.advance(timedelta(minutes=1))
    fleet.told.clear()
    await fleet.revocation.portions.finish(authority.issuer)
    await asyncio.gather(*between.others)
    assert len(between.others) == 4
    assert fleet.told == ["feed", "crl"] * 4, "after each transaction"
    told = (await events(fleet))[before:]
    in_feed = [serials[place] for place in (5, 2, 1, 0, 4)] + serials_of([boss, broker])
    assert [each.serial for each in told[1:]] == in_feed
    assert {each.reason for each in told[1:]} == {UNSPECIFIED}
    assert {each.occurred_at for each in told} == {ended_at}, "since their CA was"
    assert await unfinished_authorities(fleet) == 0
    entries = await fleet.database.read(lambda connection: audit.about(connection, "boss", 99))
    facts = [json.loads(each.details) for each in entries if each.subject == "issuing-ca"]
    assert [each.get("serials") for each in facts] == [None, *([*in_feed[at : at + 2]] for at in (0, 2, 4, 6))]
    found = await fleet.database.read(
        lambda connection: certificates_of_issuer.revoked_since(connection, authority.issuer.key_id, authority.sequence)
    )
    assert [each.serial for each in found] == in_feed
    assert await said_by_ocsp(fleet, meters[3]) is COMPROMISED, "what is final keeps its reason"


async def test_what_a_process_has_left_is_done_by_the_next(fleet: Fleet) -> None:
    every = [await fleet.enrol(f"meter-{number}") for number in range(6)]
    await begin(fleet)
    with dying_after(1), pytest.raises(Died):
        await fleet.revocation.portions.finish_left()
    assert len(await events(fleet)) == 3
    assert await fleet.database.read(lambda connection: begun(connection, "issuing-ca")) is not None
    serials = serials_of(every)
    await fleet.revocation.revoke_serial(serials[0], COMPROMISED, by="anna")
    await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="anna")

    started = RevocationService(fleet.database, fleet.clock, ())
    await started.portions.finish_left()
    told = await events(fleet)
    assert [each.sequence for each in told] == list(range(1, 8))
    assert sorted(each.serial for each in told[1:]) == sorted(serials), "each once"
    reasons = {each.serial: each.reason for each in told[1:]}
    assert (reasons[serials[0]], reasons[serials[1]]) == (COMPROMISED, RevocationReason.SUPERSEDED)
    assert await unfinished_authorities(fleet) == 0
    assert await fleet.database.read(lambda connection: begun(connection, "issuing-ca")) is None
    await started.portions.finish_left()
    assert len(await events(fleet)) == 7


async def test_two_processes_at_once_do_each_once(fleet: Fleet) -> None:
    every = [await fleet.enrol(f"meter-{number}") for number in range(7)]
    authority = await begin(fleet)
    both = (RevocationService(fleet.database, fleet.clock, ()) for _ in range(2))
    await asyncio.gather(*(each.portions.finish(authority.issuer) for each in both))
    told = await events(fleet)
    assert [each.sequence for each in told] == list(range(1, 9))
    assert sorted(each.serial for each in told[1:]) == sorted(serials_of(every))


async def test_what_had_ended_before_is_not_revoked_with_it(fleet: Fleet) -> None:
    ended = await fleet.enrol("meter-1")
    fleet.clock.now = ended.not_valid_after_utc + timedelta(seconds=1)
    await begin(fleet)
    assert await withdrawal(fleet, "meter-1") is None, "it may ask for another by itself, as without that revocation"
    await fleet.revocation.portions.finish_left()
    assert len(await events(fleet)) == 1
    assert await said_by_ocsp(fleet, ended) is None
    assert await withdrawal(fleet, "meter-1") is None


async def test_a_hold_is_not_ended_in_between(fleet: Fleet) -> None:
    """Its release would let it in at a broker that does not look at CAs, until its portion."""
    (held,) = serials_of([await fleet.enrol("meter-1")])
    await fleet.suspension.suspend_device("meter-1", by="anna")
    await fleet.enrol("meter-2")
    (single,) = serials_of([await fleet.enrol("meter-3")])
    await fleet.suspension.suspend_serial(single, by="anna")
    await begin(fleet)
    with pytest.raises(Refused, match=r"REVOCATION_FINAL: the CA that issued certificate .* was revoked"):
        await fleet.suspension.resume_serial(single, by="berta")
    assert (await fleet.suspension.resume_device("meter-1", by="berta")).released == []
    await fleet.revocation.portions.finish_left()
    told = await events(fleet)
    assert {each.kind for each in told} == {EventKind.REVOKED}
    assert {each.serial for each in told if each.reason is UNSPECIFIED} >= {held, single}


async def test_a_trial_of_a_revoked_ca_buys_nothing(fleet: Fleet) -> None:
    await group(fleet, "claim", name="trials")
    trial = await enrol(fleet, "meter-1", certificate=await claim(fleet, group_name="trials"))
    await begin(fleet)
    with pytest.raises(Refused, match="CERTIFICATE_REVOKED: the CA that has issued certificate"):
        await fleet.reenrol(trial, successor_csr(trial))


@pytest.mark.parametrize("lived", [True, False])
async def test_a_device_with_trials_of_a_revoked_ca_alone_needs_a_token_before_its_portion_as_after(
    fleet: Fleet, *, lived: bool
) -> None:
    """What a trial that ended unused leaves free, the revocation of its CA takes, if that came before its end."""
    await group(fleet, "claim", name="trials")
    shared = await claim(fleet, group_name="trials")
    await enrol(fleet, "meter-1", certificate=shared)
    if not lived:
        fleet.clock.advance(2 * HOUR)
    await begin(fleet)
    fleet.clock.advance(2 * HOUR)

    async def codes() -> str:
        return "needs a token" if await withdrawal(fleet, "meter-1") else "is free"

    expected = "needs a token" if lived else "is free"
    assert await codes() == expected
    if lived:
        assert await refusal(fleet, "meter-1", certificate=shared) is Code.CERTIFICATE_REVOKED
    await fleet.revocation.portions.finish_left()
    assert await codes() == expected
    if lived:
        assert await refusal(fleet, "meter-1", certificate=shared) is Code.CERTIFICATE_REVOKED


async def test_a_trial_of_a_revoked_ca_is_the_last_word_before_its_portion_as_after(fleet: Fleet) -> None:
    """A device whose former life is over, and that waits for its activation once more."""
    await group(fleet, "token", "token+claim", name="trials", new_key=NewKey.REPLACE)
    shared = await claim(fleet, group_name="trials")

    async def token() -> TokenCredential:
        return TokenCredential("meter-1", await fleet.token("meter-1", "trials"))

    await enrol(fleet, "meter-1", token=await token())
    fleet.clock.advance(400 * DAY)
    claimed = await claim(fleet, name="again", group_name="trials")
    trial = await enrol(fleet, "meter-1", token=await token(), certificate=claimed)
    assert shared != claimed
    await begin(fleet)

    expected = Withdrawal(f"{trial.serial_number:x}", UNSPECIFIED)
    assert await withdrawal(fleet, "meter-1") == expected
    await fleet.revocation.portions.finish_left()
    assert await withdrawal(fleet, "meter-1") == expected


async def test_what_is_shown_of_it_is_what_it_is_worth_before_its_portion(fleet: Fleet) -> None:
    await fleet.enrol("ended")
    fleet.clock.advance(400 * DAY)
    for name in ("good", "held", "revoked"):
        await fleet.enrol(name)
    await fleet.suspension.suspend_device("held", by="boss")
    await fleet.revocation.revoke_device("revoked", COMPROMISED, by="boss")

    async def shown() -> tuple[dict[str, str], dict[str, str]]:
        now = fleet.clock()

        def look(connection: Any) -> tuple[dict[str, str], dict[str, str]]:
            everything, _ = inventory.page(connection, CertificateSearch(), limit=99, after=None, now=now)
            for state in CertificateState:
                search = CertificateSearch(state=state)
                of_it, _ = inventory.page(connection, search, limit=99, after=None, now=now)
                assert [each.id for each in of_it] == [each.id for each in everything if each.state(now) is state]
                assert inventory.count(connection, now)[state] == len(of_it)
                assert inventory.count(connection, now, search)[state] == len(of_it)
            every, _ = device_inventory.page(connection, DeviceSearch(), limit=99, after=None, now=now)
            return (
                {each.device.name: each.state(now).value for each in everything},
                {each.device.name: each.certificate.value for each in every},
            )

        return await fleet.database.read(look)

    own = device_name("issuing-ca")
    before = {"ended": "expired", "good": "active", "held": "suspended", "revoked": "revoked"}
    after = {"ended": "expired", "good": "revoked", "held": "revoked", "revoked": "revoked", own: "revoked"}
    assert await shown() == (before, before | {"good": "valid"})
    await begin(fleet)
    assert await shown() == (after, after)
    await fleet.revocation.portions.finish_left()
    assert await shown() == (after, after)
