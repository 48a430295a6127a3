"""A device with very many certificates is suspended and resumed a portion at a time; what was decided last is done."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import timedelta

import pytest
from sqlalchemy.engine import Connection

from provisioning.enrolment.authentication import authenticate
from provisioning.errors import Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import issued_to
from provisioning.revocation.holds import ReleaseOutcome, StillHeld
from provisioning.revocation.portions import Portions
from provisioning.revocation.recording import IN_WHAT_FOLLOWS, RevocationOutcome
from provisioning.revocation.service import RevocationService
from provisioning.revocation.suspension import SuspensionService
from provisioning.store import audit, devices, unfinished_ends, unfinished_key_ends
from provisioning.store.certificates_of_key import key_of
from provisioning.store.database import Database
from provisioning.store.devices import DeviceState
from provisioning.store.revocations import EventKind
from tests.support.fleet import Fleet, successor_csr
from tests.support.many_certificates import (
    Between,
    Died,
    dying_after,
    events,
    many_of,
    said_by_ocsp,
    serials_of,
    stored,
    unfinished,
)

COMPROMISED = RevocationReason.KEY_COMPROMISE
HOLD = RevocationReason.CERTIFICATE_HOLD


pytestmark = pytest.mark.usefixtures("small_portions")


async def state(fleet: Fleet) -> DeviceState:
    device = await fleet.database.read(lambda connection: devices.find(connection, "meter-1"))
    assert device is not None
    return device.state


async def suspend(fleet: Fleet, way: str) -> RevocationOutcome:
    if way == "alone":
        return await fleet.suspension.suspend_device("meter-1", by="berta")
    return await fleet.suspension.suspend_batch(["meter-1"], [], by="berta")


async def resume(fleet: Fleet, way: str) -> ReleaseOutcome:
    if way == "alone":
        return await fleet.suspension.resume_device("meter-1", by="berta")
    return await fleet.suspension.resume_batch(["meter-1"], [], by="berta")


async def decisions(fleet: Fleet, *by: str) -> list[tuple[str, str, object]]:
    """Return what the audit log says that they have done: who, what, and which certificates."""
    entries = await fleet.database.read(lambda connection: audit.about(connection, "meter-1", 99))
    return [(each.actor, each.action, json.loads(each.details)["serials"]) for each in entries if each.actor in by]


async def test_a_device_is_suspended_and_resumed_in_portions_while_others_write(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = await many_of(fleet)
    between = Between(fleet, monkeypatch)
    suspended = await fleet.suspension.suspend_device("meter-1", by="anna")
    assert (suspended.changed, len(between.others)) == (True, 3)
    assert sorted(each.serial for each in suspended.revoked) == sorted(serials_of(every))
    assert {each.reason for each in suspended.revoked} == {HOLD}
    assert await state(fleet) is DeviceState.SUSPENDED
    portions = [serials_of(every)[3:][::-1], serials_of(every)[1:3][::-1], serials_of(every)[:1]]
    assert await decisions(fleet, "anna") == [("anna", "suspended", each) for each in (IN_WHAT_FOLLOWS, *portions)]
    again = await fleet.suspension.suspend_device("meter-1", by="anna")
    assert (again.changed, len(again.revoked)) == (False, 5)
    assert len(await decisions(fleet, "anna")) == 4, "nothing was decided"

    resumed = await fleet.suspension.resume_device("meter-1", by="berta")
    assert resumed.changed
    assert [each.serial for each in resumed.released] == serials_of(every)[::-1]
    assert [each.sequence for each in resumed.released] == [6, 7, 8, 9, 10]
    assert await state(fleet) is DeviceState.ACTIVE
    assert [each.kind for each in await events(fleet)] == [EventKind.REVOKED] * 5 + [EventKind.RELEASED] * 5
    assert await unfinished(fleet) == []
    assert await decisions(fleet, "berta") == [("berta", "resumed", each) for each in (IN_WHAT_FOLLOWS, *portions)]
    again_resumed = await fleet.suspension.resume_device("meter-1", by="berta")
    assert (again_resumed.changed, again_resumed.released) == (False, [])
    assert len(await decisions(fleet, "berta")) == 4
    await asyncio.gather(*between.others)


async def test_that_only_the_device_s_own_state_changes_is_a_change_and_in_the_log(fleet: Fleet) -> None:
    every = serials_of(await many_of(fleet))
    for serial in every:
        await fleet.suspension.suspend_serial(serial, by="anna")
    assert (await fleet.suspension.suspend_device("meter-1", by="berta")).changed
    for serial in every:
        await fleet.revocation.revoke_serial(serial, RevocationReason.SUPERSEDED, by="anna")
    resumed = await fleet.suspension.resume_device("meter-1", by="berta")
    assert (resumed.changed, resumed.released) == (True, [])
    assert await decisions(fleet, "berta") == [
        ("berta", "suspended", IN_WHAT_FOLLOWS),
        ("berta", "resumed", IN_WHAT_FOLLOWS),
    ]


@pytest.mark.parametrize("way", ["alone", "in a batch"])
async def test_who_asks_again_for_what_is_half_done_finishes_it_and_has_decided_nothing(fleet: Fleet, way: str) -> None:
    every = await many_of(fleet)
    await begin(fleet, "suspended", portions=1)
    again = await suspend(fleet, way)
    assert again.changed
    assert way != "alone" or len(again.revoked) == 3
    assert {await said_by_ocsp(fleet, each) for each in every} == {HOLD}
    begun = [each for each in await decisions(fleet, "anna", "berta") if each[2] == IN_WHAT_FOLLOWS]
    assert begun == [("anna", "suspended", IN_WHAT_FOLLOWS)]


@pytest.mark.parametrize("way", ["alone", "in a batch"])
async def test_those_of_many_that_are_on_hold_by_themselves_stay_so_when_their_device_is_resumed(
    fleet: Fleet, way: str
) -> None:
    oldest, second, third, *newer = serials_of(await many_of(fleet))
    for held in (oldest, third):
        await fleet.suspension.suspend_serial(held, by="anna")
    await suspend(fleet, way)
    resumed = await resume(fleet, way)
    assert {each.serial for each in await stored(fleet) if each.on_hold} == {oldest, third}
    assert {each.serial for each in resumed.released} <= {second, *newer}
    assert list(resumed.still_held) == [StillHeld(each, "meter-1", by_itself=True) for each in (oldest, third)]
    assert await state(fleet) is DeviceState.ACTIVE
    told = await fleet.database.read(lambda connection: audit.about(connection, "meter-1", 99))
    assert [stay for each in told if (stay := json.loads(each.details).get("still_suspended"))] == [[third]]


@pytest.mark.parametrize("way", ["alone", "in a batch"])
async def test_what_nobody_can_or_need_resume_is_not_told_as_still_suspended(
    fleet: Fleet, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In portions and at once: one has expired, of another the key was reported as compromised, and not all is done."""
    (expired,) = await many_of(fleet, more=0)
    fleet.clock.advance(timedelta(days=31))
    ended, held, _ = await many_of(fleet, more=2)
    for each in serials_of([expired, ended, held]):
        await fleet.suspension.suspend_serial(each, by="anna")
    keys = [key_of(each) for each in await stored(fleet) if each.serial in serials_of([ended])]
    await fleet.database.write(
        lambda connection: unfinished_key_ends.begin(
            connection, keys, invalidity_date=None, ended_at=fleet.clock(), ended_by="anna"
        )
    )
    for few in (2, 9):
        monkeypatch.setattr(issued_to, "FEW", few)
        await suspend(fleet, way)
        assert [each.serial for each in (await resume(fleet, way)).still_held] == serials_of([held])


async def test_who_is_half_suspended_gets_nothing_and_is_good_to_nobody_who_asks(fleet: Fleet) -> None:
    every = await many_of(fleet)
    with dying_after(1), pytest.raises(Died):
        await fleet.suspension.suspend_device("meter-1", by="anna")
    assert len(await events(fleet)) == 2
    good = every[0]
    with pytest.raises(Refused, match="DEVICE_SUSPENDED"):
        await fleet.reenrol(good, successor_csr(good))
    with pytest.raises(Refused, match="DEVICE_SUSPENDED"):
        await fleet.database.read(lambda connection: authenticate(connection, good, fleet.clock()))
    assert [await said_by_ocsp(fleet, each) for each in every] == [HOLD] * 5
    with pytest.raises(Refused, match="DEVICE_SUSPENDED: meter-1 is suspended as a whole: resume the device"):
        await fleet.suspension.resume_serial(serials_of(every)[0], by="anna")
    suspended = await fleet.suspension.suspend_serial(serials_of(every)[0], by="anna")
    assert (suspended.changed, len(suspended.revoked)) == (True, 1), "it has not to wait for the portions"

    await RevocationService(fleet.database, fleet.clock, ()).portions.finish_left()
    assert sorted(each.serial for each in await events(fleet)) == sorted(serials_of(every))
    assert await unfinished(fleet) == []


async def test_who_is_half_resumed_is_let_in_when_it_is_done(fleet: Fleet) -> None:
    every = await many_of(fleet)
    await fleet.suspension.suspend_device("meter-1", by="anna")
    with dying_after(1), pytest.raises(Died):
        await fleet.suspension.resume_device("meter-1", by="anna")
    assert await state(fleet) is DeviceState.SUSPENDED
    assert [await said_by_ocsp(fleet, each) for each in every] == [HOLD] * 3 + [None] * 2
    with pytest.raises(Refused, match="DEVICE_SUSPENDED"):
        await fleet.reenrol(every[-1], successor_csr(every[-1]))
    with pytest.raises(Refused, match="DEVICE_SUSPENDED: meter-1 is being resumed as a whole: wait until it is"):
        await fleet.suspension.resume_serial(serials_of(every)[0], by="anna")
    assert not (await fleet.suspension.resume_serial(serials_of(every)[-1], by="anna")).changed, "it is good again"

    await RevocationService(fleet.database, fleet.clock, ()).portions.finish_left()
    assert await state(fleet) is DeviceState.ACTIVE
    assert [await said_by_ocsp(fleet, each) for each in every] == [None] * 5


async def begin(fleet: Fleet, what: str, *, portions: int) -> None:
    """Let the device be *suspended*, or *resumed* after that, by a process that dies after so many portions."""
    if what == "resumed":
        await fleet.suspension.suspend_device("meter-1", by="anna")
    decide = fleet.suspension.suspend_device if what == "suspended" else fleet.suspension.resume_device
    with dying_after(portions), pytest.raises(Died):
        await decide("meter-1", by="anna")


@pytest.mark.parametrize("way", ["alone", "in a batch"])
@pytest.mark.parametrize("first", ["suspended", "resumed"])
async def test_what_was_decided_last_is_done_to_every_certificate(fleet: Fleet, first: str, way: str) -> None:
    every = await many_of(fleet)
    await begin(fleet, first, portions=2)
    if first == "suspended":
        assert (await resume(fleet, way)).changed
    else:
        assert (await suspend(fleet, way)).changed
    assert await state(fleet) is (DeviceState.ACTIVE if first == "suspended" else DeviceState.SUSPENDED)
    assert {await said_by_ocsp(fleet, each) for each in every} == {None if first == "suspended" else HOLD}
    assert await unfinished(fleet) == []
    assert (await decisions(fleet, "berta"))[0][1:] == (
        "resumed" if first == "suspended" else "suspended",
        IN_WHAT_FOLLOWS,
    )


@pytest.mark.parametrize("way", ["alone", "in a batch"])
@pytest.mark.parametrize("first", ["suspended", "resumed"])
async def test_an_end_does_not_wait_for_it(fleet: Fleet, first: str, way: str) -> None:
    every = await many_of(fleet)
    await begin(fleet, first, portions=1)
    before = len(await events(fleet))
    if way == "alone":
        await fleet.revocation.revoke_device("meter-1", COMPROMISED, by="berta")
    else:
        await fleet.revocation.revoke_batch(["meter-1"], [], COMPROMISED, by="berta")
    assert await state(fleet) is DeviceState.REVOKED
    ended = [(each.kind, each.reason) for each in (await events(fleet))[before:]]
    assert ended == [(EventKind.REVOKED, COMPROMISED)] * 5, "none was held, or released, before"
    assert [await said_by_ocsp(fleet, each) for each in every] == [COMPROMISED] * 5
    assert await unfinished(fleet) == []


async def test_what_is_decided_while_the_last_portion_ends_is_done_before_its_answer(
    fleet: Fleet, store_url: str
) -> None:
    """Whoever does portions has seen that nothing is left, and has not ended yet: that is no answer."""
    every = await many_of(fleet)
    told: list[None] = []
    answered: list[asyncio.Task[None]] = []

    def resumed(connection: Connection) -> None:
        device = devices.find(connection, "meter-1")
        assert device is not None
        unfinished_ends.begin(connection, [device.id], reason=None, ended_at=fleet.clock(), ended_by="berta")

    async def elsewhere() -> None:
        other = Database(store_url)
        try:
            await other.write(resumed)
        finally:
            await other.close()

    def tell(_changed: object) -> None:
        told.append(None)
        if len(told) == 3:  # The last portion is committed, and the loop goes on when this returns.
            decided = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            decided.start()
            decided.join()
            answered.append(asyncio.ensure_future(found.finish("meter-1")))

    found = Portions(fleet.database, fleet.clock, tell)
    await SuspensionService(fleet.database, fleet.clock, (), found).suspend_device("meter-1", by="anna")
    await asyncio.gather(*answered)
    assert len(answered) == 1
    assert await unfinished(fleet) == []
    assert await state(fleet) is DeviceState.ACTIVE
    assert {await said_by_ocsp(fleet, each) for each in every} == {None}
