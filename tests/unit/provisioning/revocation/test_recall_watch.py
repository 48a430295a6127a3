"""Devices that are in, and whose manufacturer revokes what let them in."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import select
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.api.metrics import ManufacturersCollector
from provisioning.doctor.doctor_manufacturers import manufacturer_findings
from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.manufacturer_lists import ManufacturerListService
from provisioning.enrolment.manufacturers import ManufacturerChange, ManufacturerService
from provisioning.enrolment.tokens import TokenOrder
from provisioning.pki.keys import generate_key, spki_fingerprint
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import issued_to
from provisioning.revocation.occasion import NoOccasion, Occasion
from provisioning.revocation.recall_watch import RecallWatch
from provisioning.store import audit, devices, recalls
from provisioning.store.audit import Action
from provisioning.store.devices import Device, DeviceState
from provisioning.store.manufacturer_tables import idevids
from provisioning.store.manufacturer_tables import recalls as recalls_table
from provisioning.store.manufacturers import RevokedDevices
from provisioning.store.recalls import RecalledDevice
from tests.support.crl import crl, scope
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON, csr_der
from tests.support.ways import HOUR, claim, enrol, give_list, group, is_good, nothing, pending, register

DAY = timedelta(days=1)
HOLD, COMPROMISE = x509.ReasonFlags.certificate_hold, x509.ReasonFlags.key_compromise


def listed(acme: Manufacturer, *revoked: x509.Certificate, number: int = 1, **facts: Any) -> bytes:
    reason = facts.pop("reason", COMPROMISE)
    given: dict[str, Any] = {"now": NOON, "age": timedelta(), "life": DAY} | facts
    return crl(acme.held, {each.serial_number: reason for each in revoked}, number=number, **given)


def watch_of(fleet: Fleet) -> RecallWatch:
    return RecallWatch(fleet.database, fleet.clock, fleet.revocation, fleet.suspension, "provisioning")


async def is_to(fleet: Fleet, revoked: RevokedDevices, name: str = "acme") -> None:
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    changed = await service.change(name, ManufacturerChange(revoked_devices=revoked), by="anna")
    assert changed.revoked_devices is revoked


async def state_of(fleet: Fleet, name: str) -> DeviceState:
    device = await fleet.database.read(lambda connection: devices.find(connection, name))
    assert device is not None
    return device.state


async def told(fleet: Fleet, action: Action) -> list[tuple[str, str, dict[str, Any]]]:
    entries = await fleet.database.read(lambda connection: audit.about(connection, action.value, 99))
    found = [each for each in entries if each.action == action]
    return [(each.actor, each.subject, json.loads(each.details)) for each in found]


async def known(fleet: Fleet, name: str = "acme") -> list[RecalledDevice]:
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    return list(await service.revoked(name, limit=9, after=None))


@pytest.fixture
async def acme(fleet: Fleet) -> Manufacturer:
    """A manufacturer that is registered."""
    await group(fleet, "manufacturer", "token")
    registered = Manufacturer(begin=NOON - DAY)
    await register(fleet, registered)
    return registered


async def test_it_is_told_once_and_the_device_stays(fleet: Fleet, acme: Manufacturer) -> None:
    idevid, other = acme.idevid("SN17")[0], acme.idevid("SN18")[0]
    certificate = await enrol(fleet, "SN17", certificate=idevid)
    await enrol(fleet, "SN18", certificate=other)
    watch = watch_of(fleet)
    assert await watch.look() == 0
    await give_list(fleet, listed(acme, idevid))
    assert (await watch.look(), await watch.look(), await watch_of(fleet).look()) == (1, 0, 0)
    assert await is_good(fleet, certificate)
    facts = {
        "manufacturer": "acme", "idevid": f"{idevid.serial_number:x}", "idevid_reason": "keyCompromise",
        "idevid_revoked_at": "2027-03-01T12:00:00Z", "state": "active",
    }  # fmt: skip
    assert await told(fleet, Action.IDEVID_REVOKED) == [("provisioning", "SN17", facts)]
    assert [(each.device.name, each.serial, each.found_at) for each in await known(fleet)] == [
        ("SN17", f"{idevid.serial_number:x}", NOON)
    ]
    collector = ManufacturersCollector(dict, lambda: watch.counts, {("acme", "new"): 2})
    samples = [each for family in collector.collect() for each in family.samples]
    assert [(each.labels, each.value) for each in samples] == [
        ({"manufacturer": "acme"}, 1),
        ({"manufacturer": "acme", "outcome": "new"}, 2),
    ]

    def found(connection: Connection) -> list[str]:
        return [each.detail for each in manufacturer_findings(connection, NOON) if each.verdict == "warning"]

    assert await fleet.database.read(found) == [
        "1 device is enrolled although acme has revoked the certificate that it enrolled with"
    ]
    await fleet.revocation.revoke_device("SN17", RevocationReason.SUPERSEDED, by="anna")
    await watch.look()
    assert (watch.counts, await fleet.database.read(found)) == ({"acme": 0}, [])


async def test_who_had_to_show_a_token_too_stands_on_his_manufacturer_s_word_all_the_same(fleet: Fleet) -> None:
    await group(fleet, "token+manufacturer")
    acme = Manufacturer(begin=NOON - DAY)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    token = TokenCredential("SN17", await fleet.token("SN17", "line"))
    await enrol(fleet, "SN17", certificate=idevid, token=token)
    await give_list(fleet, listed(acme, idevid))
    assert await watch_of(fleet).look() == 1
    assert [each.device.name for each in await known(fleet)] == ["SN17"]


@pytest.mark.parametrize(
    ("setting", "reason", "state", "action"),
    [
        (RevokedDevices.SUSPEND, COMPROMISE, DeviceState.SUSPENDED, Action.SUSPENDED),
        (RevokedDevices.REVOKE, HOLD, DeviceState.SUSPENDED, Action.SUSPENDED),
        (RevokedDevices.REVOKE, COMPROMISE, DeviceState.REVOKED, Action.REVOKED),
    ],
)
async def test_it_is_out_where_that_is_set(
    fleet: Fleet,
    acme: Manufacturer,
    setting: RevokedDevices,
    reason: x509.ReasonFlags,
    state: DeviceState,
    action: Action,
) -> None:
    idevid, other = acme.idevid("SN17")[0], acme.idevid("SN18")[0]
    certificate, stays = [
        await enrol(fleet, name, certificate=each) for name, each in (("SN17", idevid), ("SN18", other))
    ]
    await is_to(fleet, setting)
    await give_list(fleet, listed(acme, idevid, reason=reason))
    watch = watch_of(fleet)
    assert (await watch.look(), watch.counts) == (1, {"acme": 0}), "whoever is out is not counted as still in"
    assert await state_of(fleet, "SN17") is state
    assert (await is_good(fleet, certificate), await is_good(fleet, stays)) == (False, True)
    ((actor, subject, facts),) = await told(fleet, action)
    assert (actor, subject, facts["manufacturer"], facts["idevid"]) == (
        "provisioning", "SN17", "acme", f"{idevid.serial_number:x}",
    )  # fmt: skip
    assert facts.get("reason", "") in {"", "privilegeWithdrawn"}
    assert (await watch_of(fleet).look(), len(await told(fleet, action))) == (0, 1)


async def test_what_an_operator_decides_afterwards_stands_until_something_else_is_said(
    fleet: Fleet, acme: Manufacturer
) -> None:
    idevid = acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=idevid)
    await is_to(fleet, RevokedDevices.REVOKE)
    await give_list(fleet, listed(acme, idevid, reason=HOLD))
    watch = watch_of(fleet)
    assert await watch.look() == 1
    await fleet.suspension.resume_device("SN17", by="anna")
    fleet.clock.advance(2 * HOUR)  # All is compared once more.
    assert (await watch.look(), await state_of(fleet, "SN17")) == (0, DeviceState.ACTIVE)
    await give_list(fleet, listed(acme, number=2))
    assert (await watch.look(), await known(fleet)) == (0, [])
    await give_list(fleet, listed(acme, idevid, number=3, reason=HOLD))
    assert (await watch.look(), await state_of(fleet, "SN17")) == (1, DeviceState.SUSPENDED)
    await give_list(fleet, listed(acme, idevid, number=4))
    assert (await watch.look(), await state_of(fleet, "SN17")) == (1, DeviceState.REVOKED)
    assert [each.device.state for each in await known(fleet)] == [DeviceState.REVOKED]


async def test_a_stricter_setting_is_for_those_that_were_told_of_before(fleet: Fleet, acme: Manufacturer) -> None:
    idevid = acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=idevid)
    await give_list(fleet, listed(acme, idevid))
    watch = watch_of(fleet)
    assert await watch.look() == 1
    await is_to(fleet, RevokedDevices.SUSPEND)
    assert (await watch.look(), await state_of(fleet, "SN17")) == (1, DeviceState.SUSPENDED)
    await is_to(fleet, RevokedDevices.REPORT)
    assert (await watch.look(), await state_of(fleet, "SN17")) == (0, DeviceState.SUSPENDED)


@pytest.mark.usefixtures("acme")
async def test_a_stricter_setting_is_for_the_devices_of_its_own_manufacturer(fleet: Fleet) -> None:
    other = Manufacturer("Other", begin=NOON - DAY)
    await register(fleet, other, name="other")
    idevid = other.idevid("SN18")[0]
    await enrol(fleet, "SN18", certificate=idevid)
    await is_to(fleet, RevokedDevices.SUSPEND, "other")
    terms = ManufacturerService(fleet.database, fleet.clock, nothing)
    assert (await terms.find("acme")).revoked_devices is RevokedDevices.REPORT
    await give_list(fleet, listed(other, idevid), "other")
    watch = watch_of(fleet)
    assert await watch.look() == 1
    assert [len(await known(fleet, name)) for name in ("acme", "other")] == [0, 1]
    await fleet.suspension.resume_device("SN18", by="anna")
    await is_to(fleet, RevokedDevices.SUSPEND)
    assert (await watch.look(), await state_of(fleet, "SN18")) == (0, DeviceState.ACTIVE), "as anna has decided"


async def test_a_milder_setting_leaves_what_an_operator_has_decided(fleet: Fleet, acme: Manufacturer) -> None:
    idevid = acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=idevid)
    await is_to(fleet, RevokedDevices.REVOKE)
    await give_list(fleet, listed(acme, idevid, reason=HOLD))
    watch = watch_of(fleet)
    assert await watch.look() == 1
    await fleet.suspension.resume_device("SN17", by="anna")
    await is_to(fleet, RevokedDevices.SUSPEND)
    assert (await watch.look(), await state_of(fleet, "SN17")) == (0, DeviceState.ACTIVE)


@pytest.mark.parametrize("few", [100, 0])
async def test_of_who_is_out_already_nobody_is_told_that_he_is_in(
    fleet: Fleet, acme: Manufacturer, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(issued_to, "FEW", few)  # None: all is done again in a thread.
    idevid = acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=idevid)
    await is_to(fleet, RevokedDevices.REVOKE)
    await give_list(fleet, listed(acme, idevid))
    watch, event = watch_of(fleet), "manufacturer has revoked a device that is in"
    with capture_logs() as logs:
        assert (await watch.look(), await state_of(fleet, "SN17")) == (1, DeviceState.REVOKED)
        await give_list(fleet, listed(acme, idevid, number=2, reason=HOLD))
        assert await watch.look() == 1
    assert [each["event"] for each in logs].count(event) == 1


async def test_who_has_come_in_by_something_else_since_is_left_alone(fleet: Fleet, acme: Manufacturer) -> None:
    idevids_ = [acme.idevid(name)[0] for name in ("SN1", "SN2")]
    for name, each in zip(("SN1", "SN2"), idevids_, strict=True):
        await enrol(fleet, name, certificate=each)
    await is_to(fleet, RevokedDevices.REVOKE)
    await fleet.enrolment.enrol(csr_der(names=["SN1"]), TokenCredential("SN1", await fleet.token("SN1", "line")))
    await give_list(fleet, listed(acme, *idevids_))
    watch = watch_of(fleet)
    assert await watch.look() == 1
    assert [await state_of(fleet, name) for name in ("SN1", "SN2")] == [DeviceState.ACTIVE, DeviceState.REVOKED]
    await fleet.enrolment.enrol(csr_der(names=["SN2"]), TokenCredential("SN2", await fleet.token("SN2", "line")))
    fleet.clock.advance(HOUR)
    assert (await watch.look(), await state_of(fleet, "SN2"), await known(fleet)) == (0, DeviceState.ACTIVE, [])
    for table in (idevids, recalls_table):
        rows = select(table)
        assert await fleet.database.read(lambda connection: connection.execute(rows).all()) == []


async def test_a_device_that_came_by_token_first_is_its_manufacturer_s_until_the_next_token(
    fleet: Fleet, acme: Manufacturer
) -> None:
    key, idevid = generate_key(), acme.idevid("SN1")[0]

    async def by_token() -> None:
        await fleet.enrolment.enrol(
            csr_der(key, names=["SN1"]), TokenCredential("SN1", await fleet.token("SN1", "line"))
        )

    async def recorded() -> int:
        return len(await fleet.database.read(lambda connection: connection.execute(select(idevids)).all()))

    await by_token()
    assert await recorded() == 0
    fleet.clock.advance(2 * HOUR)
    await enrol(fleet, "SN1", certificate=idevid, key=key)
    assert await recorded() == 1
    await by_token()
    assert await recorded() == 0


@pytest.mark.parametrize("shared", ["claim", "token"])
async def test_what_many_devices_share_does_not_release_one_from_its_manufacturer(fleet: Fleet, shared: str) -> None:
    """Else whoever has a stolen device, and a claim, has it certified for its own key before the theft is reported."""
    await group(fleet, "manufacturer", "claim", "token")
    acme = Manufacturer(begin=NOON - timedelta(days=1))
    await register(fleet, acme)
    key, idevid = generate_key(), acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=idevid, key=key)
    await is_to(fleet, RevokedDevices.SUSPEND)
    fleet.clock.advance(2 * HOUR)
    if shared == "claim":
        await enrol(fleet, "SN17", certificate=await claim(fleet), key=key)
    else:
        (issued,) = await fleet.token_service.create(TokenOrder([], "line"), by="admin")
        await enrol(fleet, "SN17", token=TokenCredential("SN17", issued.token), key=key)
    await give_list(fleet, listed(acme, idevid))
    assert (await watch_of(fleet).look(), await state_of(fleet, "SN17")) == (1, DeviceState.SUSPENDED)


@pytest.mark.parametrize("word", ["listed", "approval"])
async def test_an_operator_s_word_about_the_device_releases_it_from_its_manufacturer(fleet: Fleet, word: str) -> None:
    await group(fleet, "manufacturer", word)
    acme = Manufacturer(begin=NOON - DAY)
    await register(fleet, acme)
    key, idevid = generate_key(), acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=idevid, key=key)
    await is_to(fleet, RevokedDevices.SUSPEND)
    fleet.clock.advance(2 * HOUR)
    if word == "listed":
        known_by = spki_fingerprint(key.public_key()).hex()
        await DeviceListService(fleet.database, fleet.clock).add("line", [("SN17", known_by)], by="boss")
    else:
        number = await pending(fleet, "SN17", key=key, label="line")
        await ApprovalService(fleet.database, fleet.clock).decide(number, approve=True, by="boss")
    await enrol(fleet, "SN17", key=key, label="line")
    await give_list(fleet, listed(acme, idevid))
    assert (await watch_of(fleet).look(), await state_of(fleet, "SN17")) == (0, DeviceState.ACTIVE)


async def test_the_certificate_that_counts_is_the_one_it_came_in_by_last(fleet: Fleet, acme: Manufacturer) -> None:
    key = generate_key()
    first, second = acme.idevid("SN17")[0], acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=first, key=key)
    await is_to(fleet, RevokedDevices.SUSPEND)
    fleet.clock.advance(2 * HOUR)
    await enrol(fleet, "SN17", certificate=second, key=key)
    await give_list(fleet, listed(acme, first))
    assert await watch_of(fleet).look() == 0
    await give_list(fleet, listed(acme, second, number=2))
    assert (await watch_of(fleet).look(), len(await known(fleet))) == (1, 1)
    await fleet.suspension.resume_device("SN17", by="anna")
    fleet.clock.advance(2 * HOUR)
    third = acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=third, key=key)
    assert await known(fleet) == [], "nothing is said of the third one yet"
    await give_list(fleet, listed(acme, second, third, number=3))
    assert (await watch_of(fleet).look(), await state_of(fleet, "SN17")) == (1, DeviceState.SUSPENDED)


@pytest.mark.parametrize("hours", [1, -1])
async def test_who_came_in_while_a_list_came_is_found_an_hour_later_by_whatever_clock(
    fleet: Fleet, acme: Manufacturer, hours: int
) -> None:
    """Its certificate was looked at before the list was there, and recorded after it was walked."""
    early, late = acme.idevid("SN17")[0], acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=early)
    await give_list(fleet, listed(acme, late))
    watch = watch_of(fleet)
    assert await watch.look() == 0

    def recorded(connection: Connection) -> None:
        came = recalls.came_in_by(connection, [f"{early.serial_number:x}"])[0]
        recalls.came_in(connection, came.device_id, came.manufacturer_id, late.serial_number)

    await fleet.database.write(recorded)
    fleet.clock.advance(hours * HOUR - hours * timedelta(seconds=1))
    assert await watch.look() == 0, "nothing has changed that calls for a walk through every list"
    fleet.clock.advance(hours * timedelta(seconds=1))
    assert (await watch.look(), await watch.look()) == (1, 0)


async def test_a_serial_number_is_its_own_ca_s_and_a_ca_s_lists_are_all_its_registrations(
    fleet: Fleet, acme: Manufacturer
) -> None:
    idevid = acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=idevid)
    await is_to(fleet, RevokedDevices.REVOKE)
    await register(fleet, Manufacturer("Other", begin=NOON - DAY), name="other")
    other = Manufacturer(begin=NOON - DAY)
    await register(fleet, other, name="namesake")
    await give_list(fleet, listed(other, idevid), "namesake")
    assert await watch_of(fleet).look() == 0
    await ManufacturerService(fleet.database, fleet.clock, nothing).end("acme", by="admin")
    again = Manufacturer(begin=NOON - HOUR, key=acme.key)
    await register(fleet, again, name="acme-2")
    await give_list(fleet, listed(again, idevid), "acme-2")
    assert await watch_of(fleet).look() == 1
    assert await state_of(fleet, "SN17") is DeviceState.REVOKED, "as it is set for whom it came in by"


async def test_of_several_lists_what_is_final_counts_and_nothing_is_done_twice(
    fleet: Fleet, acme: Manufacturer
) -> None:
    idevid = acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=idevid)
    await is_to(fleet, RevokedDevices.REVOKE)
    await give_list(fleet, listed(acme, idevid, reason=HOLD))
    part = await give_list(fleet, listed(acme, idevid, point=scope("http://pki.acme.example/1.crl")))
    watch = watch_of(fleet)
    assert (await watch.look(), await state_of(fleet, "SN17")) == (1, DeviceState.REVOKED)
    fleet.clock.advance(HOUR)
    assert await watch.look() == 0
    await ManufacturerListService(fleet.database, fleet.clock).remove("acme", part.stored.sha256, by="anna")
    assert (await watch.look(), await state_of(fleet, "SN17")) == (1, DeviceState.REVOKED)


async def test_a_long_list_is_walked_in_portions(
    fleet: Fleet, acme: Manufacturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalls, "PAGE", 2)
    names = [f"SN{number}" for number in range(5)]
    those = [acme.idevid(name)[0] for name in names]
    for name, each in zip(names, those, strict=True):
        await enrol(fleet, name, certificate=each)
    await is_to(fleet, RevokedDevices.SUSPEND)
    await give_list(fleet, listed(acme, *those))
    assert await watch_of(fleet).look() == 5
    assert {await state_of(fleet, name) for name in names} == {DeviceState.SUSPENDED}
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    assert [each.device.name for each in await service.revoked("acme", limit=2, after="SN1")] == ["SN2", "SN3"]
    await give_list(fleet, listed(acme, number=2))
    assert (await watch_of(fleet).look(), await known(fleet)) == (0, [])


async def test_who_was_done_with_meanwhile_is_left_alone(fleet: Fleet, acme: Manufacturer) -> None:
    """Two processes find the same device: the one that has its row locked first does it."""
    idevid = acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=idevid)
    await is_to(fleet, RevokedDevices.SUSPEND)
    await give_list(fleet, listed(acme, idevid))

    class Slow(type(fleet.suspension)):  # type: ignore[misc]
        async def suspend_device(self, name: str, **said: Any) -> Any:
            if not seen:
                seen.append(name)
                assert await watch_of(fleet).look() == 1
                await fleet.suspension.resume_device(name, by="anna")
            return await fleet.suspension.suspend_device(name, **said)

    seen: list[str] = []
    slow = Slow(fleet.database, fleet.clock, ())
    late = RecallWatch(fleet.database, fleet.clock, fleet.revocation, slow, "provisioning")
    assert (await late.look(), seen) == (0, ["SN17"])
    assert await state_of(fleet, "SN17") is DeviceState.ACTIVE


@pytest.mark.parametrize("since", ["it has come in by a token", "the list says nothing of it"])
async def test_what_was_found_and_holds_no_more_is_followed_no_more(
    fleet: Fleet, acme: Manufacturer, since: str
) -> None:
    """Found, and before the device is locked everything is otherwise: that is asked again then."""
    idevid = acme.idevid("SN17")[0]
    await enrol(fleet, "SN17", certificate=idevid)
    await is_to(fleet, RevokedDevices.SUSPEND)
    await give_list(fleet, listed(acme, idevid))

    class Slow(type(fleet.suspension)):  # type: ignore[misc]
        async def suspend_device(self, name: str, **said: Any) -> Any:
            if since == "it has come in by a token":
                shown = TokenCredential(name, await fleet.token(name, "line"))
                await fleet.enrolment.enrol(csr_der(names=[name]), shown)
            else:
                await give_list(fleet, listed(acme, number=2))
            return await fleet.suspension.suspend_device(name, **said)

    slow = Slow(fleet.database, fleet.clock, ())
    late = RecallWatch(fleet.database, fleet.clock, fleet.revocation, slow, "provisioning")
    assert (await late.look(), await state_of(fleet, "SN17")) == (0, DeviceState.ACTIVE)
    assert await known(fleet) == []


@pytest.mark.parametrize("few", [issued_to.FEW, 0], ids=["few certificates", "many"])
async def test_what_holds_no_more_ends_nobody_and_voids_nothing(
    fleet: Fleet, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many it may hold when they are counted, and not when they are ended."""
    monkeypatch.setattr(issued_to, "FEW", few)
    certificate = await fleet.enrol("meter-17")
    token = await fleet.token("meter-17")
    held: list[bool] = []

    def holds(_connection: Connection, _device: Device) -> bool:
        held.append(few == 0 and not held)
        return held[-1]

    with pytest.raises(NoOccasion):
        await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="x", occasion=Occasion(holds))
    asked = len(held)
    held.clear()
    with pytest.raises(NoOccasion):
        await fleet.suspension.suspend_device("meter-17", by="x", occasion=Occasion(holds))
    assert asked == len(held) == (2 if few == 0 else 1)
    assert await is_good(fleet, certificate)
    await fleet.enrolment.enrol(csr_der(names=["meter-17"]), TokenCredential("meter-17", token))
