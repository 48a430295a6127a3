"""A device with very many certificates: shut out at once, and what it has is revoked a portion at a time."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import partial

import pytest
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.authentication import authenticate
from provisioning.errors import Code, Refused
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.revocation import portions
from provisioning.revocation.portions import Portions
from provisioning.revocation.service import RevocationService
from provisioning.store import audit, certificates, conditions, devices
from provisioning.store.devices import DeviceState
from provisioning.store.revocations import EventKind
from tests.support.fleet import Fleet, successor_csr
from tests.support.many_certificates import (
    Between,
    Died,
    dying_after,
    events,
    many_of,
    serials_of,
    unfinished,
)
from tests.support.requests import csr_der

COMPROMISED = RevocationReason.KEY_COMPROMISE
SUPERSEDED = RevocationReason.SUPERSEDED


pytestmark = pytest.mark.usefixtures("small_portions")


async def test_all_is_revoked_newest_first_while_others_write(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    every = await many_of(fleet)
    between = Between(fleet, monkeypatch)
    fleet.told.clear()
    outcome = await fleet.revocation.revoke_device("meter-1", COMPROMISED, by="anna")
    assert len(between.others) == 3
    assert fleet.told == ["feed", "crl"] * 3, "after each portion"
    await asyncio.gather(*between.others)
    assert between.threads == {"store-writer"}, "not on the event loop"
    assert outcome.changed
    assert sorted(each.serial for each in outcome.revoked) == sorted(serials_of(every))
    told = await events(fleet)
    assert [each.sequence for each in told] == [1, 2, 3, 4, 5]
    assert [each.serial for each in told] == serials_of(every)[::-1]
    assert await unfinished(fleet) == []
    entries = await fleet.database.read(lambda connection: audit.about(connection, "anna", 99))
    assert [each.action for each in entries] == ["revoked"] * 4
    assert '"serials": "in the entries that follow"' in entries[0].details
    assert all(serial in "".join(each.details for each in entries[1:]) for serial in serials_of(every))

    again = await fleet.revocation.revoke_device("meter-1", COMPROMISED, by="anna")
    assert (again.changed, len(again.revoked)) == (False, 5)
    assert len(await events(fleet)) == 5


async def test_in_between_it_gets_and_keeps_nothing_and_the_next_start_ends_it(
    fleet: Fleet,
) -> None:
    every = await many_of(fleet)
    with dying_after(1):
        with pytest.raises(Died):
            await fleet.revocation.revoke_device("meter-1", COMPROMISED, by="anna")
        assert [each.serial for each in await events(fleet)] == serials_of(every)[:2:-1]

        good = every[0]
        with pytest.raises(Refused, match="CERTIFICATE_REVOKED: meter-1 was revoked"):
            await fleet.reenrol(good, successor_csr(good))
        with pytest.raises(Refused, match="CERTIFICATE_REVOKED: meter-1 was revoked"):
            await fleet.database.read(lambda connection: authenticate(connection, good, fleet.clock()))
        token = TokenCredential("meter-1", await fleet.token("meter-1"))
        with pytest.raises(Refused, match="UNAVAILABLE: meter-1 was just revoked"):
            await fleet.enrolment.enrol(csr_der(names=["meter-1"]), token)
        key_id, serial = certificate_key(good)
        known, said = await fleet.database.read(
            lambda connection: certificates.revocation_of(connection, key_id.hex(), serial_text(serial))
        )
        assert (known, said) == (True, (fleet.clock(), COMPROMISED)), "what OCSP says"

    started = RevocationService(fleet.database, fleet.clock, ())
    await started.portions.finish_left()
    assert sorted(each.serial for each in await events(fleet)) == sorted(serials_of(every))
    assert [each.sequence for each in await events(fleet)] == [1, 2, 3, 4, 5]
    assert await unfinished(fleet) == []
    await fleet.enrolment.enrol(csr_der(names=["meter-1"]), token)  # Its new token is good now.
    await started.portions.finish("meter-1")
    assert len(await events(fleet)) == 5, "what another process has done is not done again"


async def test_what_is_decided_meanwhile_comes_after(
    fleet: Fleet,
) -> None:
    every = await many_of(fleet)
    with dying_after(1), pytest.raises(Died):
        await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="anna")
    with pytest.raises(Refused, match="REVOCATION_FINAL"):
        await fleet.suspension.suspend_device("meter-1", by="berta")
    await fleet.revocation.decommission("meter-1", by="berta")
    device = await fleet.database.read(lambda connection: devices.find(connection, "meter-1"))
    assert device is not None
    assert device.state is DeviceState.DECOMMISSIONED
    assert [(each.reason, each.kind) for each in await events(fleet)] == [
        (RevocationReason.SUPERSEDED, EventKind.REVOKED)
    ] * 5
    await fleet.revocation.revoke_device("meter-1", COMPROMISED, by="berta")
    assert [each.reason for each in (await events(fleet))[5:]] == [COMPROMISED] * len(every)
    assert (await fleet.database.read(lambda connection: devices.find(connection, "meter-1"))) == device


async def test_what_was_on_hold_is_not_good_again_in_between(fleet: Fleet) -> None:
    """Its release would let it in at the broker, until its portion."""
    every = await many_of(fleet)
    held = serials_of(every)[0]
    await fleet.suspension.suspend_serial(held, by="anna")
    with dying_after(1), pytest.raises(Died):
        await fleet.revocation.revoke_device("meter-1", COMPROMISED, by="anna")
    with pytest.raises(Refused, match="REVOCATION_FINAL: meter-1 is revoked"):
        await fleet.suspension.resume_serial(held, by="berta")
    await fleet.revocation.portions.finish("meter-1")
    assert {each.kind for each in await events(fleet)} == {EventKind.REVOKED}


async def test_who_asked_for_it_may_go_and_lose_his_role_meanwhile(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = await many_of(fleet)
    permitted = True
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    portion = Portions._device_portion

    def noted(self: Portions, connection: Connection, name: str) -> object:
        loop.call_soon_threadsafe(begun.set)
        return portion(self, connection, name)

    def check(_connection: Connection) -> None:
        if not permitted:
            raise Refused(Code.OPERATOR_ROLE, "he may not any more")

    monkeypatch.setattr(Portions, "_device_portion", noted)
    with conditions.of_one_request():
        conditions.require(check)
        asked = asyncio.create_task(fleet.revocation.revoke_device("meter-1", COMPROMISED, by="anna"))
        await begun.wait()
        permitted = False
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await fleet.revocation.portions.finish("meter-1")
    assert len(await events(fleet)) == len(every)


async def test_what_is_revoked_already_is_no_portion_s_news(fleet: Fleet) -> None:
    every = await many_of(fleet)
    for each in serials_of(every)[3:]:
        await fleet.revocation.revoke_serial(each, COMPROMISED, by="berta")
    fleet.told.clear()
    outcome = await fleet.revocation.revoke_device("meter-1", COMPROMISED, by="anna")
    assert fleet.told == ["feed", "crl"] * 2, "of three portions"
    assert len(await events(fleet)) == len(every)
    entries = await fleet.database.read(lambda connection: audit.about(connection, "anna", 99))
    assert len(entries) == 3, "the decision's, and two portions'"
    assert outcome.changed
    assert sorted(each.serial for each in outcome.revoked) == sorted(serials_of(every)[:3]), "and no other's"


@pytest.mark.parametrize("way", ["alone", "in a batch"])
async def test_an_end_that_finds_no_certificate_is_in_the_log_for_the_state_and_the_tokens_that_it_ends(
    fleet: Fleet, way: str
) -> None:
    async def revoke() -> bool:
        if way == "alone":
            return (await fleet.revocation.revoke_device("meter-1", SUPERSEDED, by="anna")).changed
        return (await fleet.revocation.revoke_batch(["meter-1"], [], SUPERSEDED, by="anna")).changed

    for each in serials_of(await many_of(fleet)):
        await fleet.revocation.revoke_serial(each, SUPERSEDED, by="berta")
    assert await revoke()
    token = TokenCredential("meter-1", await fleet.token("meter-1"))
    assert await revoke()
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-1"]), token)
    assert not await revoke()
    entries = await fleet.database.read(lambda connection: audit.about(connection, "anna", 99))
    assert [json.loads(each.details)["tokens_voided"] for each in entries if each.action == "revoked"] == [0, 1]


async def test_why_it_is_not_finished_is_said_where_nobody_waits_for_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await many_of(fleet)
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def failing(_self: Portions, _connection: Connection, _name: str) -> object:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(20)
        raise Died("the disk is full")

    monkeypatch.setattr(Portions, "_device_portion", failing)
    asked = asyncio.create_task(fleet.revocation.revoke_device("meter-1", COMPROMISED, by="anna"))
    await begun.wait()
    (task,) = fleet.revocation.portions._tasks.values()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    with capture_logs() as logs:
        go_on.set()
        with pytest.raises(Died):
            await task
    assert [(event["event"], event["detail"]) for event in logs] == [
        ("end of a device, a key or a CA not finished", "the disk is full")
    ]


async def test_what_a_process_has_left_another_ends_unless_it_ends_itself(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = await many_of(fleet)
    with dying_after(1), pytest.raises(Died):
        await fleet.revocation.revoke_device("meter-1", COMPROMISED, by="anna")
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    portion = Portions._device_portion

    def noted(self: Portions, connection: Connection, name: str) -> object:
        loop.call_soon_threadsafe(begun.set)
        return portion(self, connection, name)

    monkeypatch.setattr(Portions, "_device_portion", noted)
    for is_to_end in (True, False):
        started = RevocationService(fleet.database, fleet.clock, ())
        running = asyncio.create_task(started.run())
        await begun.wait()
        async with asyncio.timeout(60):
            while not is_to_end and await unfinished(fleet):
                await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not started.portions._tasks, "nothing of it goes on"
    assert len(await events(fleet)) == len(every)


async def test_a_store_that_fails_once_does_not_end_the_rounds(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    await many_of(fleet)
    with dying_after(1), pytest.raises(Died):
        await fleet.revocation.revoke_device("meter-1", COMPROMISED, by="anna")
    monkeypatch.setattr(portions, "_ROUND_SECONDS", 0.0)
    failed, left = asyncio.Event(), portions._left

    def fails_once(connection: Connection) -> object:
        if failed.is_set():
            return left(connection)
        loop.call_soon_threadsafe(failed.set)
        raise Refused(Code.UNAVAILABLE, "the disk is away")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(portions, "_left", fails_once)
    running = asyncio.create_task(RevocationService(fleet.database, fleet.clock, ()).run())
    async with asyncio.timeout(60):
        await failed.wait()
        while await unfinished(fleet):
            assert not running.done()
            await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_an_admin_of_many_certificates_is_no_admin_from_the_first_moment(
    fleet: Fleet,
) -> None:
    """His certificates are still good, by themselves: he does not count as the one who is left."""
    for name in ("anna", "berta"):
        token = TokenCredential(name, await fleet.token(name, None, Role.OPERATOR))
        first = await fleet.enrolment.enrol(csr_der(names=[name]), token)
        await fleet.database.write(
            partial(
                Connection.exec_driver_sql,
                statement=f"INSERT INTO operators (name, role, granted_at, granted_by) VALUES ('{name}', 'admin', "
                "'2026-01-01 00:00:00+00:00', 'x')",
            )
        )
        for _ in range(2):
            await fleet.reenrol(first, successor_csr(first))
    with dying_after(0), pytest.raises(Died):
        await fleet.revocation.revoke_device("anna", COMPROMISED, by="berta")
    with pytest.raises(Refused, match="LAST_ADMIN"):
        await fleet.revocation.revoke_device("berta", COMPROMISED, by="berta")
