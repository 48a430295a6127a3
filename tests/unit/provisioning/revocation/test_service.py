from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from cryptography import x509

from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.reasons import OPERATOR_REASONS
from provisioning.store import audit, audit_findings, devices, revocations
from provisioning.store.audit import Action
from provisioning.store.devices import Device, DeviceState
from tests.support.fleet import Fleet, successor_csr
from tests.support.requests import csr_der


async def sequences(fleet: Fleet) -> list[tuple[int, str]]:
    records = await fleet.database.read(lambda connection: revocations.after(connection, 0, 10_000))
    return [(each.sequence, each.device) for each in records]


async def test_a_device_is_revoked_with_all_its_certificates_once(fleet: Fleet) -> None:
    first = await fleet.enrol()
    await fleet.reenrol(first, successor_csr(first))
    outcome = await fleet.revocation.revoke_device("meter-17", RevocationReason.KEY_COMPROMISE, by="admin")
    assert (outcome.changed, len(outcome.revoked)) == (True, 2)
    assert fleet.told == ["feed", "crl"]
    again = await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="other")
    assert (again.changed, again.revoked) == (False, outcome.revoked)
    assert fleet.told == ["feed", "crl"]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("named", ["good", "revoked"])
async def test_a_compromised_key_ends_every_certificate_for_it(fleet: Fleet, batch: bool, named: str) -> None:
    key = generate_key()
    first = await fleet.enrol(csr=csr_der(key, names=["meter-17"]))
    second = await fleet.reenrol(first, successor_csr(first, key))
    third = await fleet.reenrol(second, successor_csr(second, key))
    other = await fleet.reenrol(second, successor_csr(second))

    async def revoke(certificate: x509.Certificate, reason: RevocationReason) -> dict[str, RevocationReason]:
        serial = f"{certificate.serial_number:x}"
        fleet.told.clear()
        if batch:
            outcome = await fleet.revocation.revoke_batch([], [serial], reason, by="admin")
        else:
            outcome = await fleet.revocation.revoke_serial(serial, reason, by="admin")
        assert outcome.changed
        assert fleet.told == ["feed", "crl"]
        return {each.serial: each.reason for each in outcome.revoked}

    superseded, compromised = RevocationReason.SUPERSEDED, RevocationReason.KEY_COMPROMISE
    serials = [f"{each.serial_number:x}" for each in (first, second, other, third)]
    assert await revoke(other, superseded) == {serials[2]: superseded}
    assert await revoke(third, superseded) == {serials[3]: superseded}, "for another reason its key is still good"
    expected = dict.fromkeys([*serials[:2], serials[3]], compromised)
    assert await revoke(third if named == "revoked" else second, compromised) == expected
    assert await sequences(fleet) == [(number, "meter-17") for number in (1, 2, 3, 4, 5)]
    assert await fleet.database.read(lambda connection: list(audit_findings.findings(connection))) == []
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    facts = [json.loads(each.details) for each in entries if each.action == Action.REVOKED]
    assert [(each["reason"], sorted(each["serials"])) for each in facts] == [
        ("superseded", serials[2:3]),
        ("superseded", serials[3:]),
        ("keyCompromise", sorted(expected)),
    ]
    assert facts[-1]["before"] == {serials[3]: "superseded"}


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("before", [DeviceState.ACTIVE, DeviceState.REVOKED])
async def test_a_compromised_key_is_certified_to_nobody_again_though_its_certificate_had_ended(
    fleet: Fleet, batch: bool, before: DeviceState
) -> None:
    key = generate_key()
    first = await fleet.enrol(csr=csr_der(key, names=["meter-17"]))
    fleet.clock.advance(timedelta(days=31))
    if before is DeviceState.REVOKED:
        await fleet.revocation.revoke_device("meter-17", RevocationReason.UNSPECIFIED, by="admin")
    if batch:
        outcome = await fleet.revocation.revoke_batch(["meter-17"], [], RevocationReason.KEY_COMPROMISE, by="admin")
    else:
        outcome = await fleet.revocation.revoke_device("meter-17", RevocationReason.KEY_COMPROMISE, by="admin")
    assert [each.serial for each in outcome.revoked] == [f"{first.serial_number:x}"]
    assert outcome.changed
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    assert [json.loads(each.details)["serials"] for each in entries if each.action == Action.REVOKED][-1] == [
        f"{first.serial_number:x}"
    ]
    fleet.clock.advance(timedelta(seconds=1))
    with pytest.raises(Refused, match="KEY_REUSED"):
        await fleet.enrol(csr=csr_der(key, names=["meter-17"]))
    await fleet.enrol()


async def test_what_is_decommissioned_stays_so_and_repeating_a_revocation_changes_no_date(fleet: Fleet) -> None:
    async def stored() -> Device:
        device = await fleet.database.read(lambda connection: devices.find(connection, "meter-17"))
        assert device is not None
        return device

    await fleet.enrol()
    fleet.clock.advance(timedelta(days=31))
    await fleet.revocation.revoke_device("meter-17", RevocationReason.UNSPECIFIED, by="admin")
    before = await stored()
    fleet.clock.advance(timedelta(days=1))
    await fleet.revocation.revoke_device("meter-17", RevocationReason.UNSPECIFIED, by="admin")
    assert await stored() == before
    await fleet.revocation.decommission("meter-17", by="admin")
    ended = await fleet.revocation.revoke_device("meter-17", RevocationReason.KEY_COMPROMISE, by="admin")
    assert (ended.changed, len(ended.revoked)) == (True, 1)
    assert (await stored()).state is DeviceState.DECOMMISSIONED


async def test_concurrent_revocations_have_consecutive_numbers(fleet: Fleet) -> None:
    names = [f"meter-{number}" for number in range(20)]
    for name in names:
        await fleet.enrol(name)
    both = [*names, *names]  # Each twice, at the same time.
    outcomes = await asyncio.gather(
        *(fleet.revocation.revoke_device(name, RevocationReason.UNSPECIFIED, by="admin") for name in both)
    )
    assert sum(outcome.changed for outcome in outcomes) == 20
    found = await sequences(fleet)
    assert [sequence for sequence, _ in found] == list(range(1, 21))
    assert {name for _, name in found} == set(names)


async def test_a_refused_revocation_takes_no_number(fleet: Fleet) -> None:
    await fleet.enrol()
    for refused in (
        fleet.revocation.revoke_device("nobody", RevocationReason.UNSPECIFIED, by="admin"),
        fleet.revocation.revoke_serial("abc", RevocationReason.UNSPECIFIED, by="admin"),
        fleet.revocation.revoke_device("meter-17", RevocationReason.CERTIFICATE_HOLD, by="admin"),
    ):
        with pytest.raises(Refused):
            await refused
    assert await sequences(fleet) == []
    await fleet.revocation.revoke_device("meter-17", RevocationReason.UNSPECIFIED, by="admin")
    assert await sequences(fleet) == [(1, "meter-17")]


@pytest.mark.parametrize("reason", RevocationReason)
async def test_an_operator_gives_reasons_that_fit_an_end_entity(fleet: Fleet, reason: RevocationReason) -> None:
    await fleet.enrol()
    if reason in OPERATOR_REASONS:
        outcome = await fleet.revocation.revoke_device("meter-17", reason, by="admin")
        assert outcome.revoked[0].reason is reason
    else:
        with pytest.raises(Refused, match=f"reason {reason} cannot be given"):
            await fleet.revocation.revoke_device("meter-17", reason, by="admin")


async def test_a_batch_is_revoked_in_one_step_with_consecutive_numbers(fleet: Fleet) -> None:
    issued = {name: await fleet.enrol(name) for name in ("meter-1", "meter-2", "meter-3", "meter-4")}
    await fleet.suspension.suspend_device("meter-2", by="admin")
    await fleet.revocation.revoke_device("meter-4", RevocationReason.SUPERSEDED, by="admin")
    unused = TokenCredential("meter-1", await fleet.token("meter-1"))
    serial = f"{issued['meter-3'].serial_number:x}"
    names = ["meter-1", "meter-2", "meter-4", "meter-1"]
    outcome = await fleet.revocation.revoke_batch(names, [serial], RevocationReason.KEY_COMPROMISE, by="anna")
    found = {each.device: (each.reason, each.sequence) for each in outcome.revoked}
    assert outcome.changed
    assert {reason for reason, _ in found.values()} == {RevocationReason.KEY_COMPROMISE}
    assert sorted(sequence for _, sequence in found.values()) == [3, 4, 5, 6], "meter-4's is changed"
    states = await fleet.database.read(devices.count)
    assert states[DeviceState.REVOKED] == 3, "meter-3 lost a certificate and is not revoked as a whole"
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-1"]), unused)
    again = await fleet.revocation.revoke_batch(names, [serial], RevocationReason.SUPERSEDED, by="bert")
    assert not again.changed
    assert sorted(again.revoked, key=repr) == sorted(outcome.revoked, key=repr)
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 100))
    assert [(each.actor, each.subject) for each in entries if each.action == "revoked"] == [
        ("admin", "meter-4"),
        *(("anna", name) for name in ("meter-1", "meter-2", "meter-4", "meter-3")),
    ]


async def test_a_batch_takes_a_certificate_that_has_ended_only_if_that_is_named(fleet: Fleet) -> None:
    """It may be good for a renewal yet. The newest has not surely ended, whatever our clock says."""
    serial = f"{(await fleet.enrol('meter-1')).serial_number:x}"
    fleet.clock.advance(timedelta(days=31))
    newest = f"{(await fleet.enrol('meter-1')).serial_number:x}"
    fleet.clock.advance(timedelta(days=31))
    for names, serials, revoked in ((["meter-1"], [], [newest]), ([], [serial], [serial])):
        outcome = await fleet.revocation.revoke_batch(names, serials, RevocationReason.UNSPECIFIED, by="anna")
        assert (outcome.changed, [each.serial for each in outcome.revoked]) == (True, revoked)


async def test_a_batch_that_names_somebody_unknown_revokes_nobody(fleet: Fleet) -> None:
    await fleet.enrol("meter-1")
    for names, serials, words in (
        (["meter-1", "nobody", "neither"], [], "DEVICE_UNKNOWN: no device is called 'nobody', 'neither'; nothing of"),
        (["meter-1"], ["abc"], "SERIAL_UNKNOWN: no certificate has serial 'abc'; nothing of this request was revoked"),
    ):
        with pytest.raises(Refused, match=words):
            await fleet.revocation.revoke_batch(names, serials, RevocationReason.UNSPECIFIED, by="admin")
    assert await sequences(fleet) == []
    assert fleet.told == []
