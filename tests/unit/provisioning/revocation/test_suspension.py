from __future__ import annotations

import json
from datetime import timedelta

import pytest
from cryptography import x509
from sqlalchemy import select

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.reasons import REASON_USES
from provisioning.store import audit, device_inventory, devices, revocations
from provisioning.store.device_inventory import DeviceSearch
from provisioning.store.devices import DeviceState
from provisioning.store.tables import revocation_events
from provisioning.store.tables import revocations as revoked_rows
from tests.support.fleet import Fleet, successor_csr
from tests.support.requests import csr_der

HOLD = RevocationReason.CERTIFICATE_HOLD


async def events(fleet: Fleet) -> list[tuple[int, str, RevocationReason]]:
    records = await fleet.database.read(lambda connection: revocations.after(connection, 0, 1000))
    return [(each.sequence, each.kind.value, each.reason) for each in records]


async def state(fleet: Fleet, name: str = "meter-17") -> DeviceState:
    device = await fleet.database.read(lambda connection: devices.find(connection, name))
    assert device is not None
    return device.state


def serial(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:x}"


async def refusal(awaitable: object) -> Code:
    with pytest.raises(Refused) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value.code


async def test_a_device_is_suspended_with_all_its_certificates_and_comes_back_with_them(fleet: Fleet) -> None:
    first = await fleet.enrol()
    await fleet.reenrol(first, successor_csr(first))
    suspended = await fleet.suspension.suspend_device("meter-17", by="admin")
    assert (suspended.changed, len(suspended.revoked)) == (True, 2)
    assert {each.reason for each in suspended.revoked} == {HOLD}
    again = await fleet.suspension.suspend_device("meter-17", by="admin")
    assert (again.changed, again.revoked) == (False, suspended.revoked)
    assert await state(fleet) is DeviceState.SUSPENDED
    assert fleet.told == ["feed", "crl"]
    resumed = await fleet.suspension.resume_device("meter-17", by="admin")
    assert (resumed.changed, [each.sequence for each in resumed.released]) == (True, [3, 4])
    again_resumed = await fleet.suspension.resume_device("meter-17", by="admin")
    assert (again_resumed.changed, again_resumed.released) == (False, [])
    assert await state(fleet) is DeviceState.ACTIVE
    assert await events(fleet) == [
        (1, "revoked", HOLD),
        (2, "revoked", HOLD),
        (3, "released", HOLD),
        (4, "released", HOLD),
    ]
    await fleet.reenrol(first, successor_csr(first))


async def test_a_suspended_device_gets_no_certificate_and_keeps_its_token(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    token = TokenCredential("meter-17", await fleet.token())
    await fleet.suspension.suspend_device("meter-17", by="admin")
    csr = csr_der(names=["meter-17"])
    assert await refusal(fleet.enrolment.enrol(csr, token)) is Code.DEVICE_SUSPENDED
    assert await refusal(fleet.reenrol(certificate, successor_csr(certificate))) is Code.CERTIFICATE_SUSPENDED
    await fleet.suspension.resume_device("meter-17", by="admin")
    await fleet.enrolment.enrol(csr, token)


@pytest.mark.parametrize("days", [1, 31], ids=["in date", "ended"])
async def test_a_hold_becomes_final_and_keeps_its_date(fleet: Fleet, days: int) -> None:
    certificate = await fleet.enrol()
    held = await fleet.suspension.suspend_device("meter-17", by="admin")
    fleet.clock.advance(timedelta(days=days))
    ended = await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    (revoked,) = ended.revoked
    assert (revoked.reason, revoked.sequence) == (RevocationReason.SUPERSEDED, 2)
    assert revoked.revoked_at == held.revoked[0].revoked_at
    assert await state(fleet) is DeviceState.REVOKED
    for refused in (
        fleet.suspension.resume_device("meter-17", by="admin"),
        fleet.suspension.suspend_device("meter-17", by="admin"),
        fleet.suspension.resume_serial(serial(certificate), by="admin"),
        fleet.suspension.suspend_serial(serial(certificate), by="admin"),
    ):
        assert await refusal(refused) is Code.REVOCATION_FINAL
    assert [kind for _, kind, _ in await events(fleet)] == ["revoked", "revoked"]


async def test_a_device_is_suspended_though_all_that_it_had_has_ended(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    fleet.clock.advance(timedelta(days=31))
    newest = serial(await fleet.enrol())
    fleet.clock.advance(timedelta(days=31))
    outcomes = [await fleet.suspension.suspend_device("meter-17", by="admin") for _ in range(2)]
    told = [(each.changed, [held.serial for held in each.revoked]) for each in outcomes]
    assert told == [(True, [newest]), (False, [newest])], "what has not surely ended"
    assert await state(fleet) is DeviceState.SUSPENDED
    assert (await fleet.suspension.suspend_serial(serial(certificate), by="bert")).changed, "good for a renewal yet"
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    assert [(each.actor, json.loads(each.details)["serials"]) for each in entries if each.action == "suspended"] == [
        ("admin", [newest]),
        ("bert", [serial(certificate)]),
    ]


async def test_one_certificate_is_suspended_and_resumed(fleet: Fleet) -> None:
    first = await fleet.enrol()
    second = await fleet.reenrol(first, successor_csr(first))
    held = await fleet.suspension.suspend_serial(serial(first), by="admin")
    assert [(each.serial, each.reason, each.sequence) for each in held.revoked] == [(serial(first), HOLD, 1)]
    again = await fleet.suspension.suspend_serial(serial(first), by="admin")
    assert (held.changed, again.changed, again.revoked) == (True, False, held.revoked)
    assert fleet.told == ["feed", "crl"]
    assert await state(fleet) is DeviceState.ACTIVE
    assert await refusal(fleet.reenrol(first, successor_csr(first))) is Code.CERTIFICATE_SUSPENDED
    await fleet.reenrol(second, successor_csr(second))
    assert (await fleet.suspension.resume_serial(serial(first), by="admin")).changed
    assert fleet.told == ["feed", "crl"] * 2, "both have to hear that it is good again"
    assert not (await fleet.suspension.resume_serial(serial(first), by="admin")).changed
    assert fleet.told == ["feed", "crl"] * 2
    await fleet.suspension.suspend_serial(serial(second), by="admin")
    assert not (await fleet.suspension.resume_device("meter-17", by="admin")).changed, "it was active"
    assert fleet.told == ["feed", "crl"] * 3
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    facts = [(each.action, json.loads(each.details)) for each in entries if each.action in {"suspended", "resumed"}]
    assert [(action, each["serials"]) for action, each in facts] == [
        ("suspended", [serial(first)]),
        ("resumed", [serial(first)]),
        ("suspended", [serial(second)]),
    ]
    assert await refusal(fleet.suspension.resume_serial("abc", by="admin")) is Code.SERIAL_UNKNOWN
    assert await refusal(fleet.suspension.resume_device("nobody", by="admin")) is Code.DEVICE_UNKNOWN
    assert await refusal(fleet.suspension.suspend_device("nobody", by="admin")) is Code.DEVICE_UNKNOWN


async def test_a_hold_and_its_end_are_told_as_a_crl_has_them_and_recorded_with_who_decided(fleet: Fleet) -> None:
    """A CRL has whole seconds (RFC 5280 §5.1.2.6)."""
    await fleet.enrol()
    second = fleet.clock()
    fleet.clock.advance(timedelta(milliseconds=700))
    held = await fleet.suspension.suspend_device("meter-17", by="anna")
    assert [each.revoked_at for each in held.revoked] == [second]
    assert await fleet.database.read(
        lambda connection: connection.execute(select(revoked_rows.c.revoked_by, revoked_rows.c.revoked_at)).all()
    ) == [("anna", second)]
    released = await fleet.suspension.resume_device("meter-17", by="bert")
    assert [each.released_at for each in released.released] == [second]
    actors = select(revocation_events.c.actor).order_by(revocation_events.c.sequence)
    assert await fleet.database.read(lambda connection: [*connection.execute(actors).scalars()]) == ["anna", "bert"]


async def test_a_revoked_certificate_is_not_released_though_its_device_is_active(fleet: Fleet) -> None:
    first = await fleet.enrol()
    await fleet.reenrol(first, successor_csr(first))
    await fleet.revocation.revoke_serial(serial(first), RevocationReason.SUPERSEDED, by="admin")
    assert await state(fleet) is DeviceState.ACTIVE
    for refused in (
        fleet.suspension.resume_serial(serial(first), by="admin"),
        fleet.suspension.suspend_serial(serial(first), by="admin"),
        fleet.suspension.resume_batch([], [serial(first)], by="admin"),
    ):
        assert await refusal(refused) is Code.REVOCATION_FINAL
    assert not (await fleet.suspension.resume_device("meter-17", by="admin")).changed
    assert await refusal(fleet.reenrol(first, successor_csr(first))) is Code.CERTIFICATE_REVOKED
    assert await events(fleet) == [(1, "revoked", RevocationReason.SUPERSEDED)]


async def test_a_certificate_of_a_suspended_device_does_not_come_back_alone(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    await fleet.suspension.suspend_device("meter-17", by="admin")
    assert await refusal(fleet.suspension.resume_serial(serial(certificate), by="admin")) is Code.DEVICE_SUSPENDED
    revoked = await fleet.revocation.revoke_serial(serial(certificate), RevocationReason.SUPERSEDED, by="admin")
    assert revoked.changed
    resumed = await fleet.suspension.resume_device("meter-17", by="admin")
    assert (resumed.changed, resumed.released) == (True, [])
    assert await state(fleet) is DeviceState.ACTIVE


async def test_a_decommissioned_device_never_comes_back(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    ended = await fleet.revocation.decommission("meter-17", by="admin")
    assert {each.reason for each in ended.revoked} == {RevocationReason.CESSATION_OF_OPERATION}
    assert not (await fleet.revocation.decommission("meter-17", by="admin")).changed
    assert not (await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="a")).changed
    for asked in (fleet.suspension.resume_device, fleet.suspension.suspend_device):
        assert await refusal(asked("meter-17", by="admin")) is Code.REVOCATION_FINAL
    assert await state(fleet) is DeviceState.DECOMMISSIONED
    assert await refusal(fleet.token()) is Code.DEVICE_DECOMMISSIONED
    (any_new,) = await fleet.token_service.create(TokenOrder(group="north"), by="admin")
    csr = csr_der(names=["meter-17"])
    credential = TokenCredential("meter-17", any_new.token)
    assert await refusal(fleet.enrolment.enrol(csr, credential)) is Code.DEVICE_DECOMMISSIONED
    assert await refusal(fleet.reenrol(certificate, successor_csr(certificate))) is Code.CERTIFICATE_REVOKED
    counts = await fleet.database.read(devices.count)
    assert counts[DeviceState.DECOMMISSIONED] == 1
    page, following = await fleet.database.read(
        lambda connection: device_inventory.page(
            connection, DeviceSearch(state=DeviceState.DECOMMISSIONED), limit=5, after=None, now=fleet.clock()
        )
    )
    assert ([each.device.name for each in page], following) == (["meter-17"], None)


def test_every_reason_has_its_use() -> None:
    assert set(REASON_USES) == set(RevocationReason)
