"""Complete lists: which are in the store, for the next start, that one without deltas waits for nothing, and that a
delta continues each that somebody may have. Nor does one wait for a second of a clock that was set back meanwhile.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import update
from structlog.testing import capture_logs

from provisioning.ca.crl import CrlIssuer
from provisioning.errors import ConfigurationError, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import publisher as publisher_module
from provisioning.revocation.crl_contents import CrlContents
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.revocation.shared_contents import SharedContents
from provisioning.revocation.suspension import SuspensionService
from provisioning.store import crls, revocations, tables
from provisioning.store.counters import crl_counter
from tests.support.fleet import Fleet
from tests.support.requests import NOON

NAME = "issuing-ca"
DELTA = "http://ca.example.org/crl/issuing-ca.delta.crl"


@pytest.fixture
async def publisher(fleet: Fleet) -> CrlPublisher:
    return published(fleet)


def published(fleet: Fleet, delta_url: str | None = None, shared: SharedContents | None = None) -> CrlPublisher:
    issuing = fleet.authority.issuing_ca

    async def sleep(seconds: float) -> None:
        fleet.clock.advance(timedelta(seconds=seconds))

    def issuer() -> CrlIssuer:
        return CrlIssuer(issuing.certificate, issuing.key)

    plan = CrlPlan(NAME, crl_counter(NAME), timedelta(hours=1), 0.01, issuer, delta_url)
    return CrlPublisher(fleet.database, plan, fleet.clock, sleep, shared)


async def test_a_long_list_is_stored_when_it_is_time_for_one_and_not_for_each_change(
    fleet: Fleet, publisher: CrlPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start has one that is half a life old at most, and the store's one writer is spared the others."""
    monkeypatch.setattr(publisher_module, "_STORED_BYTES", 0)
    await publisher.start()
    kept = [publisher.current]
    for minutes in (1, 30):
        fleet.clock.advance(timedelta(minutes=minutes))
        await publisher.publish()
        kept.append(await fleet.database.read(lambda connection: crls.newest(connection, NAME)))
    assert kept == [kept[0], kept[0], publisher.current]
    assert kept[0] != publisher.current


async def test_a_list_without_deltas_says_at_once_what_is_revoked_though_it_is_not_affordable_yet(
    fleet: Fleet, publisher: CrlPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_COMPLETE_SHARE", 1e9)
    await publisher.start()
    certificate = await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    await publisher.publish_changes()
    assert publisher.current is not None
    assert [each.serial_number for each in x509.load_der_x509_crl(publisher.current.der)] == [certificate.serial_number]


async def revoked(fleet: Fleet, name: str) -> int:
    certificate = await fleet.enrol(name)
    await fleet.revocation.revoke_device(name, RevocationReason.SUPERSEDED, by="admin")
    return certificate.serial_number


def in_delta(publisher: CrlPublisher) -> tuple[int, set[int]]:
    """Return the number of the delta's base, and the serial numbers in the delta."""
    assert publisher.delta is not None
    crl = x509.load_der_x509_crl(publisher.delta.der)
    base = crl.extensions.get_extension_for_class(x509.DeltaCRLIndicator).value.crl_number
    return base, {each.serial_number for each in crl}


async def test_a_delta_continues_a_list_that_another_process_began_before_and_finished_after(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of all, or those after a stop for longer than a list's life: nothing else says what is needed."""
    slow, quick = published(fleet, DELTA), published(fleet, DELTA)
    meanwhile: list[int] = []

    async def others() -> None:
        meanwhile.append(await revoked(fleet, "meanwhile"))
        await quick.publish()

    read = slow._read

    async def interrupted(*arguments: Any) -> Any:
        news = await read(*arguments)
        await others()
        return news

    monkeypatch.setattr(slow, "_read", interrupted)
    first = await slow.publish()
    last = await revoked(fleet, "last")
    await quick.publish()
    assert {each.serial_number for each in x509.load_der_x509_crl(first.der)} == set()
    assert in_delta(quick) == (first.number, {*meanwhile, last}), "whoever has the first list learns of both"


async def test_a_delta_of_a_clock_that_was_ahead_has_forgotten_nothing_that_is_needed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_COMPLETE_SHARE", 1e9)
    publisher = published(fleet, DELTA)
    await publisher.start()
    first = publisher.current
    early = await revoked(fleet, "early")
    fleet.clock.advance(timedelta(minutes=30))
    await publisher.publish()
    late = [await revoked(fleet, "late")]
    fleet.clock.advance(timedelta(minutes=31))  # By this clock the first list has lapsed.
    await publisher.publish_changes()
    assert publisher.current is not None
    assert in_delta(publisher) == (publisher.current.number, set(late))
    fleet.clock.advance(-timedelta(minutes=15))
    late.append(await revoked(fleet, "later"))
    await publisher.publish_changes()
    assert first is not None
    assert in_delta(publisher) == (first.number, {early, *late})


async def test_why_a_list_is_not_made_is_said_at_once_and_not_for_each_attempt(
    publisher: CrlPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root's key is in a safe, say, until somebody brings it."""
    monkeypatch.setattr(publisher_module, "_RETRY_SECONDS", 0.001)
    await publisher.start()
    attempts, enough = 0, asyncio.Event()
    loop = asyncio.get_running_loop()

    def away() -> CrlIssuer:
        nonlocal attempts
        attempts += 1
        if attempts == 8:
            loop.call_soon_threadsafe(enough.set)
        raise ConfigurationError("the key is in a safe" if attempts < 5 else "the token has no session left")

    monkeypatch.setattr(publisher, "_plan", replace(publisher._plan, open_issuer=away))
    publisher.changed()
    with capture_logs() as logs:
        running = asyncio.create_task(publisher.run())
        await enough.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    told = [(each["detail"], each["times"]) for each in logs if each.get("code") == "CRL_NOT_PUBLISHED"]
    assert told == [("the key is in a safe", 1), ("the token has no session left", 1)]


async def test_a_list_is_not_begun_for_ever_while_the_readers_are_with_another_server(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a fail-over whose old server still answers those that are connected with it."""
    publisher = published(fleet)
    await publisher.publish()
    await revoked(fleet, "lost")
    everything, readings = publisher._everything, 0

    async def of_the_old_server(issuer: CrlIssuer) -> CrlContents:
        nonlocal readings
        readings += 1
        contents = await everything(issuer)
        assert contents.last is not None
        contents.last = replace(contents.last, serial="1")
        return contents

    with monkeypatch.context() as patched:
        patched.setattr(publisher, "_contents", None)
        patched.setattr(publisher, "_everything", of_the_old_server)
        async with asyncio.timeout(60):
            with pytest.raises(Refused, match="let all addresses in database_url lead to one server"):
                await publisher.publish()
    assert readings < 10
    assert (await publisher.publish()).entries == 1, "it goes on when they are with the right one"


@pytest.mark.parametrize("together", [False, True])
async def test_a_delta_has_the_release_that_a_list_finished_since_the_store_was_read_does_not_know(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """When the quick one reads everything there is no list yet, so nobody needs releases; then the slow one's is."""
    suspension = SuspensionService(fleet.database, fleet.clock, ())
    held = await fleet.enrol("held")
    await suspension.suspend_device("held", by="admin")
    shared = SharedContents(fleet.database, fleet.clock) if together else None
    slow, quick = published(fleet, DELTA), published(fleet, DELTA, shared)
    read, everything = slow._read, quick._everything

    async def interrupted(*arguments: Any) -> Any:
        news = await read(*arguments)
        await suspension.resume_device("held", by="admin")
        contents = await everything(*arguments[:1])
        monkeypatch.setattr(quick, "_contents", contents)
        return news

    monkeypatch.setattr(slow, "_read", interrupted)
    first = await slow.publish()
    assert {each.serial_number for each in x509.load_der_x509_crl(first.der)} == {held.serial_number}
    await quick.publish()
    assert in_delta(quick) == (first.number, {held.serial_number}), "whoever has the first list learns of the release"


async def test_a_clock_that_is_set_back_while_a_list_is_begun_is_not_waited_for(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = published(fleet, DELTA)
    await publisher.start()
    begun = fleet.clock()
    fleet.clock.advance(timedelta(days=3650))
    take_second = crls.take_second

    def then_set_back(*arguments: Any) -> datetime:
        taken = take_second(*arguments)
        monkeypatch.setattr(crls, "take_second", take_second)
        fleet.clock.advance(timedelta(days=-3650, minutes=1))
        return taken

    monkeypatch.setattr(crls, "take_second", then_set_back)
    made = await publisher.publish()
    assert fleet.clock() - begun < timedelta(minutes=3), "else nobody is told of a revocation for ten years"
    assert begun < made.this_update <= fleet.clock()


async def test_what_is_listed_for_a_ca_is_its_own_and_had_not_ended(fleet: Fleet) -> None:
    """Two CAs may use one serial number: one's list must not revoke the other's certificate."""
    mine, other = [(await fleet.enrol(name)).serial_number for name in ("meter-1", "meter-2")]
    for name in ("meter-1", "meter-2"):
        await fleet.revocation.revoke_device(name, RevocationReason.KEY_COMPROMISE, by="admin")
    moved = (
        update(tables.certificates).where(tables.certificates.c.serial == f"{other:x}").values(issuer_key_id="00" * 20)
    )
    await fleet.database.write(lambda connection: connection.execute(moved))

    async def listed(issuer: bytes, since: datetime) -> list[int]:
        return [
            each.serial
            for each in await fleet.database.read(
                lambda connection: revocations.listed(connection, issuer, None, since)
            )
        ]

    assert await listed(fleet.issuer.key_id, NOON) == [mine]
    assert await listed(bytes(20), NOON) == [other]
    (ended,) = await fleet.database.read(
        lambda connection: [each.not_after for each in revocations.listed(connection, bytes(20), None, NOON)]
    )
    assert await listed(bytes(20), ended) == []
