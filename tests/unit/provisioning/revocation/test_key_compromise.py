"""The one change of a final reason: what was revoked for another one and is reported as compromised says so from then.

CA/Browser Forum, Baseline Requirements 7.2.2: a CA that learns of a compromise later changes the entry's reason.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from datetime import timedelta

import pytest
from cryptography import x509

from provisioning.ca.crl import CrlIssuer
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import device_name, revoke_authority
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.revocation.reasons import OPERATOR_REASONS
from provisioning.revocation.recording import RevocationOutcome
from provisioning.store import audit
from provisioning.store.audit import Action
from provisioning.store.counters import crl_counter
from provisioning.store.devices import Device
from tests.support.fleet import Fleet, successor_csr
from tests.support.many_certificates import events, many_for_key, serials_of, stored
from tests.support.operators import operator
from tests.support.requests import csr_der

SUPERSEDED, COMPROMISED = RevocationReason.SUPERSEDED, RevocationReason.KEY_COMPROMISE
DAY = timedelta(days=1)


async def device(fleet: Fleet, name: str = "meter-17") -> Device:
    return (await stored(fleet, name))[0].device


async def audited(fleet: Fleet) -> list[dict[str, object]]:
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    return [json.loads(each.details) for each in entries if each.action == Action.REVOKED]


def revoking(
    fleet: Fleet, way: str, certificate: x509.Certificate, reason: RevocationReason
) -> Awaitable[RevocationOutcome]:
    serial = f"{certificate.serial_number:x}"
    match way:
        case "serial":
            return fleet.revocation.revoke_serial(serial, reason, by="anna")
        case "device":
            return fleet.revocation.revoke_device("meter-17", reason, by="anna")
        case "serials":
            return fleet.revocation.revoke_batch([], [serial], reason, by="anna")
        case _:
            return fleet.revocation.revoke_batch(["meter-17"], [], reason, by="anna")


@pytest.mark.parametrize("way", ["serial", "device", "serials", "devices"])
@pytest.mark.parametrize("ended", [False, True])
async def test_what_is_revoked_and_then_reported_as_compromised_says_so_from_then(
    fleet: Fleet, way: str, ended: bool
) -> None:
    key = generate_key()
    certificate = await fleet.enrol(csr=csr_der(key, names=["meter-17"]))
    await revoking(fleet, way, certificate, SUPERSEDED)
    (before,) = await stored(fleet, "meter-17")
    assert before.revocation is not None
    fleet.clock.advance(40 * DAY if ended else DAY)
    fleet.told.clear()

    outcome = await revoking(fleet, way, certificate, COMPROMISED)
    since = before.revocation.revoked_at
    assert outcome.changed
    assert [(each.reason, each.revoked_at, each.sequence) for each in outcome.revoked] == [(COMPROMISED, since, 2)]
    assert fleet.told == ["feed", "crl"]
    (now,) = await stored(fleet, "meter-17")
    assert now.revocation is not None
    assert (now.revocation.reason, now.revocation.revoked_at, now.revocation.sequence) == (COMPROMISED, since, 2)
    assert now.device == before.device, "the device is what it was, since when it was"
    assert [(each.sequence, each.reason, each.occurred_at) for each in await events(fleet)] == [
        (1, SUPERSEDED, since),
        (2, COMPROMISED, since),
    ]
    serial = f"{certificate.serial_number:x}"
    entry = (await audited(fleet))[-1]
    assert (entry["reason"], entry["serials"], entry["before"]) == ("keyCompromise", [serial], {serial: "superseded"})

    for reason in OPERATOR_REASONS:  # It is final for ever now, the same reason again among them.
        again = await revoking(fleet, way, certificate, reason)
        assert (again.changed, again.revoked) == (False, outcome.revoked)
    assert fleet.told == ["feed", "crl"]
    with pytest.raises(Refused, match="KEY_REUSED: this key was reported as compromised"):
        await fleet.enrol(csr=csr_der(key, names=["meter-17"]))
    successor = await fleet.enrol()
    with pytest.raises(Refused, match="KEY_REUSED: this key was reported as compromised"):
        await fleet.reenrol(successor, successor_csr(successor, key))


@pytest.mark.parametrize("way", ["serial", "serials"])
async def test_a_key_of_several_certificates_is_reported_once(fleet: Fleet, way: str) -> None:
    key = generate_key()
    first, second = await many_for_key(fleet, key, "meter-17", more=1)
    assert (await revoking(fleet, way, first, COMPROMISED)).changed
    assert len(await events(fleet)) == 2
    for certificate in (first, second):
        again = await revoking(fleet, way, certificate, COMPROMISED)
        assert (again.changed, [each.serial for each in again.revoked]) == (False, serials_of([certificate]))
    assert len(await events(fleet)) == 2
    assert len(await audited(fleet)) == 1


@pytest.mark.parametrize("first", sorted(OPERATOR_REASONS - {COMPROMISED}))
async def test_no_other_reason_is_changed(fleet: Fleet, first: RevocationReason) -> None:
    certificate = await fleet.enrol()
    done = await fleet.revocation.revoke_device("meter-17", first, by="anna")
    for reason in OPERATOR_REASONS - {COMPROMISED}:
        for way in ("serial", "device", "serials", "devices"):
            again = await revoking(fleet, way, certificate, reason)
            assert (again.changed, again.revoked) == (False, done.revoked)
    assert len(await events(fleet)) == 1
    assert (await revoking(fleet, "serial", certificate, COMPROMISED)).changed


async def test_an_invalidity_date_stays_unless_another_is_given(fleet: Fleet) -> None:
    given, later = fleet.clock() - 2 * DAY, fleet.clock() - DAY
    for name, date in (("meter-1", None), ("meter-2", later)):
        await fleet.enrol(name)
        await fleet.revocation.revoke_device(name, SUPERSEDED, by="anna", invalidity_date=given)
        done = await fleet.revocation.revoke_device(name, COMPROMISED, by="anna", invalidity_date=date)
        (certificate,) = await stored(fleet, name)
        assert certificate.revocation is not None
        told = (done.revoked[0], certificate.revocation, (await events(fleet))[-1])
        assert {each.invalidity_date for each in told} == {date or given}


async def test_tokens_that_an_operator_made_are_void_when_his_old_key_is_reported(fleet: Fleet) -> None:
    anna = await operator(fleet, "anna", OperatorRole.ADMIN)
    await operator(fleet, "boss", OperatorRole.ADMIN)
    serial = f"{anna.serial_number:x}"
    (made,) = await fleet.token_service.create(TokenOrder(["meter-1"], "north", Role.DEVICE), by="anna")
    assert (await fleet.revocation.revoke_serial(serial, SUPERSEDED, by="boss", keep_tokens=True)).changed
    assert (await fleet.revocation.revoke_serial(serial, COMPROMISED, by="boss")).changed
    assert (await audited(fleet))[-1]["tokens_voided"] == 1
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-1"]), TokenCredential("meter-1", made.token))


async def test_a_ca_s_certificate_keeps_its_reason(fleet: Fleet) -> None:
    """It is for the CA's own command to say why (`provisioning.revocation.of_authority`)."""
    grounds = Grounds(RevocationReason.CA_COMPROMISE)
    await fleet.enrol()
    await fleet.database.write(
        lambda connection: revoke_authority(connection, "issuing-ca", grounds, by="anna", now=fleet.clock())
    )
    (ca,) = await stored(fleet, device_name("issuing-ca"))
    for names, serials in (([], [ca.serial]), ([ca.device.name], [])):
        await fleet.revocation.revoke_batch(names, serials, COMPROMISED, by="anna")
    assert not (await fleet.revocation.revoke_serial(ca.serial, COMPROMISED, by="anna")).changed
    (ca,) = await stored(fleet, device_name("issuing-ca"))
    assert ca.revocation is not None
    assert ca.revocation.reason is RevocationReason.CA_COMPROMISE
    below = await fleet.revocation.revoke_device("meter-17", COMPROMISED, by="anna")
    assert (below.changed, below.revoked[0].reason) == (True, COMPROMISED), "what it has issued is the operators' again"


async def test_many_at_once_are_changed_as_one_by_one(fleet: Fleet) -> None:
    """On PostgreSQL the works are led side by side."""
    names = [f"meter-{number}" for number in range(12)]
    for name in names:
        await fleet.enrol(name)
        await fleet.revocation.revoke_device(name, SUPERSEDED, by="anna")
    both = [*names, *names]  # Each twice, at the same time.
    outcomes = await asyncio.gather(*(fleet.revocation.revoke_device(name, COMPROMISED, by="anna") for name in both))
    assert sum(each.changed for each in outcomes) == 12
    assert [each.sequence for each in await events(fleet)] == list(range(1, 25))
    for name in names:
        (certificate,) = await stored(fleet, name)
        assert certificate.revocation is not None
        assert certificate.revocation.reason is COMPROMISED


async def test_the_next_lists_say_the_new_reason(fleet: Fleet) -> None:
    issuing = fleet.authority.issuing_ca

    async def sleep(seconds: float) -> None:
        fleet.clock.advance(timedelta(seconds=seconds))

    plan = CrlPlan(
        "issuing-ca",
        crl_counter("issuing-ca"),
        timedelta(hours=1),
        0.01,
        lambda: CrlIssuer(issuing.certificate, issuing.key),
        "http://127.0.0.1/delta.crl",
    )
    publisher = CrlPublisher(fleet.database, plan, fleet.clock, sleep)
    certificate = await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", SUPERSEDED, by="anna")
    await publisher.start()
    since = fleet.clock().replace(microsecond=0)
    fleet.clock.advance(timedelta(minutes=1))
    for reason in (SUPERSEDED, COMPROMISED):
        await fleet.revocation.revoke_device("meter-17", reason, by="anna")
        await publisher.publish()
        assert publisher.current is not None
        assert publisher.delta is not None
        for der in (publisher.current.der, *([publisher.delta.der] if reason is COMPROMISED else [])):
            entry = x509.load_der_x509_crl(der).get_revoked_certificate_by_serial_number(certificate.serial_number)
            assert entry is not None
            assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags(reason)
            assert entry.revocation_date_utc == since
