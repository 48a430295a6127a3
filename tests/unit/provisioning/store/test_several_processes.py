"""Two processes on one PostgreSQL: what locks and notifications must see to. Each fleet here is such a process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import select, text
from sqlalchemy.engine import Connection

from provisioning.ca.crl import CrlIssuer
from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store import (
    announcements,
    audit_findings,
    certificates,
    certificates_of_device,
    devices,
    inventory,
    revocations,
)
from provisioning.store.certificates import IssuedCertificate
from provisioning.store.counters import crl_counter
from provisioning.store.tables import certificates as certificates_table
from tests.support.fleet import Clock, Fleet, open_fleet, successor_csr
from tests.support.postgresql import PostgresqlServer
from tests.support.requests import csr_der

PATIENCE = 20


@pytest.fixture
async def two(postgresql: PostgresqlServer) -> AsyncIterator[tuple[Fleet, Fleet]]:
    with postgresql.database() as url:
        async with open_fleet(url) as first, open_fleet(url, first.authority) as second:
            yield first, second


async def outcomes(*calls: Coroutine[Any, Any, Any]) -> list[object]:
    """Run the calls at once; return for each its result, or the code of its refusal."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException) and not isinstance(each, Refused):
            raise each
    return [each.code if isinstance(each, Refused) else each for each in found]


async def test_one_token_buys_one_certificate_wherever_it_is_presented(two: tuple[Fleet, Fleet]) -> None:
    """Also twice in each process; in every order of two: `test_orders_of_statements`."""
    credential = TokenCredential("meter-1", await two[0].token("meter-1"))
    found = await outcomes(*(fleet.enrolment.enrol(csr_der(names=["meter-1"]), credential) for fleet in (*two, *two)))
    assert sum(isinstance(each, x509.Certificate) for each in found) == 1
    assert found.count(Code.TOKEN_USED) == 3
    counts = await two[1].database.read(lambda connection: inventory.count(connection, two[1].clock()))
    assert sum(counts.values()) == 1


async def test_a_device_that_two_processes_meet_for_the_first_time_is_one_device(two: tuple[Fleet, Fleet]) -> None:
    credentials = [TokenCredential("meter-1", await fleet.token("meter-1")) for fleet in two]
    calls = (
        fleet.enrolment.enrol(csr_der(names=["meter-1"]), credential)
        for fleet, credential in zip(two, credentials, strict=True)
    )
    found = await outcomes(*calls)
    issued = [each for each in found if isinstance(each, x509.Certificate)]
    assert issued
    assert set(found) - set(issued) <= {Code.NAME_TAKEN}
    counts = await two[0].database.read(devices.count)
    assert sum(counts.values()) == 1


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait for what another process does: nothing here is told of it."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.01)


async def until_somebody_waits_for_a_lock(fleet: Fleet) -> None:
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    await until(lambda: fleet.database.read(lambda connection: connection.execute(waiting).scalar_one()))


async def test_whoever_sees_a_certificate_sees_all_with_a_lower_number(two: tuple[Fleet, Fleet]) -> None:
    """What retires a CA looks, and later looks only at what is newer than the newest that it has seen."""
    first, second = two
    inside, go_on = threading.Event(), threading.Event()

    def number(connection: Connection, serial: int) -> int:
        now = first.clock()
        device = devices.add(connection, f"meter-{serial}", Role.DEVICE, None, now)
        issued = IssuedCertificate(b"", b"ca", serial, now, now + timedelta(days=1), b"")
        return certificates.add(connection, issued, device.id, now)

    def number_and_stay(connection: Connection) -> int:
        given = number(connection, 1)
        inside.set()
        assert go_on.wait(PATIENCE)
        return given

    async def seen(fleet: Fleet) -> set[str]:
        rows = select(certificates_table.c.serial)
        return set(await fleet.database.read(lambda connection: connection.execute(rows).scalars()))

    numbered = asyncio.create_task(first.database.write(number_and_stay))
    await asyncio.to_thread(inside.wait, PATIENCE)
    later = asyncio.create_task(second.database.write(lambda connection: number(connection, 2)))
    try:
        await until_somebody_waits_for_a_lock(first)
        assert await seen(second) == set(), "not the one with the higher number alone"
        assert not later.done()
    finally:
        go_on.set()
    assert await numbered < await later
    newest = await second.database.read(certificates.newest)
    assert newest == (await later, b"ca".hex(), serial_text(2))


async def test_the_sequence_of_certificates_numbers_keeps_none_for_a_session(two: tuple[Fleet, Fleet]) -> None:
    sequence = text("SELECT cache_size FROM pg_sequences WHERE sequencename = 'certificates_id_seq'")
    assert await two[0].database.read(lambda connection: connection.execute(sequence).scalars().all()) == [1]


@contextlib.asynccontextmanager
async def while_being_revoked(fleet: Fleet, name: str) -> AsyncIterator[None]:
    """Revoke *name* in a transaction that commits when somebody waits for it at the end of the block."""
    inside, go_on = threading.Event(), threading.Event()

    def revoke(connection: Connection) -> None:
        device = devices.find(connection, name, for_update=True)
        assert device is not None
        inside.set()
        assert go_on.wait(PATIENCE)
        (certificate,) = certificates_of_device.every(connection, device.id)
        facts = {"reason": RevocationReason.SUPERSEDED, "revoked_at": fleet.clock(), "revoked_by": "admin"}
        revocations.add(connection, [certificate.id], **facts)  # type: ignore[arg-type]

    revoking = asyncio.create_task(fleet.database.write(revoke))
    await asyncio.to_thread(inside.wait, PATIENCE)
    yield
    await until_somebody_waits_for_a_lock(fleet)
    go_on.set()
    await revoking


async def test_a_renewal_that_waited_for_a_revocation_sees_it(two: tuple[Fleet, Fleet]) -> None:
    first, second = two
    certificate = await first.enrol()
    async with while_being_revoked(first, "meter-17"):
        renewal = asyncio.create_task(second.reenrol(certificate, successor_csr(certificate)))
    with pytest.raises(Refused) as caught:
        await renewal
    assert caught.value.code is Code.CERTIFICATE_REVOKED


async def test_a_revocation_that_waited_for_another_answers_with_its_facts(two: tuple[Fleet, Fleet]) -> None:
    first, second = two
    serial = f"{(await first.enrol()).serial_number:x}"
    async with while_being_revoked(first, "meter-17"):
        again = asyncio.create_task(second.revocation.revoke_serial(serial, RevocationReason.UNSPECIFIED, by="other"))
    outcome = await again
    assert not outcome.changed
    assert [(each.reason, each.sequence) for each in outcome.revoked] == [(RevocationReason.SUPERSEDED, 1)]


async def test_whatever_happens_at_once_nobody_waits_for_ever_and_the_numbers_have_no_gap(
    two: tuple[Fleet, Fleet],
) -> None:
    names = [f"meter-{number}" for number in range(12)]
    first, second = two
    issued = [await first.enrol(name) for name in names]
    tokens = [TokenCredential(name, await first.token(name)) for name in names]
    calls: list[Coroutine[Any, Any, Any]] = []
    for index, name in enumerate(names):
        one, other = (first, second) if index % 2 else (second, first)
        calls += [
            one.enrolment.enrol(csr_der(names=[name]), tokens[index]),
            other.revocation.revoke_device(name, RevocationReason.SUPERSEDED, by="admin"),
            one.reenrol(issued[index], successor_csr(issued[index])),
            other.suspension.suspend_device(name, by="admin"),
            one.token(name),
        ]
    found = await outcomes(*calls)
    assert Code.UNAVAILABLE not in found, "a deadlock, most likely: the locks are not taken in one order"
    events = await first.database.read(lambda connection: revocations.after(connection, 0, 1000))
    assert [each.sequence for each in events] == list(range(1, len(events) + 1))
    assert await first.database.read(lambda connection: list(audit_findings.findings(connection))) == []


async def hears(announcement: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(PATIENCE):
            await announcement.wait()
    except TimeoutError:
        return False
    announcement.clear()
    return True


@contextlib.asynccontextmanager
async def listening(fleet: Fleet, heard: Callable[[], None]) -> AsyncIterator[None]:
    task = asyncio.create_task(announcements.listen(fleet.database.url, heard))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_another_process_is_told_at_the_commit_and_reads_the_event(two: tuple[Fleet, Fleet]) -> None:
    first, second = two
    await first.enrol()
    feed = RevocationFeed(second.database, heartbeat_seconds=60)
    await feed.start()
    heard = asyncio.Event()

    def told() -> None:
        heard.set()
        feed.announce()

    async with listening(second, told):
        assert await hears(heard), "once at the beginning, for what was missed"
        reading = asyncio.create_task(feed.run())
        subscription = await feed.subscribe(0)
        batches = subscription.batches()
        assert (await anext(batches))[0] == []
        await first.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
        async with asyncio.timeout(PATIENCE):  # Less than a heartbeat.
            events, _ = await anext(batches)
        assert [event.sequence for event in events] == [1]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def plan(fleet: Fleet) -> CrlPlan:
    issuing = fleet.authority.issuing_ca
    return CrlPlan(
        "issuing-ca",
        crl_counter("issuing-ca"),
        timedelta(hours=1),
        0.01,
        lambda: CrlIssuer(issuing.certificate, issuing.key),
        delta_url="http://ca.example.org/crl/issuing-ca.delta.crl",
    )


async def test_lists_of_several_processes_have_one_numbering_and_a_higher_number_never_tells_less(
    two: tuple[Fleet, Fleet],
) -> None:
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.advance(timedelta(seconds=seconds))
        await asyncio.sleep(0)

    publishers = [CrlPublisher(fleet.database, plan(fleet), clock, sleep) for fleet in two]
    await asyncio.gather(*(publisher.start() for publisher in publishers))
    published: list[tuple[int, int, datetime]] = []

    async def publish_often(publisher: CrlPublisher) -> None:
        for _ in range(8):
            crl = await publisher.publish()
            published.append((crl.number, crl.entries, crl.this_update))

    async def revoke_often() -> None:
        for number in range(8):
            await two[0].enrol(f"meter-{number}")
            await two[1].revocation.revoke_device(f"meter-{number}", RevocationReason.SUPERSEDED, by="admin")

    await asyncio.gather(revoke_often(), *map(publish_often, publishers))
    numbers, entries, updates = zip(*sorted(published), strict=True)
    assert len(set(numbers)) == 16
    assert list(entries) == sorted(entries)
    assert list(updates) == sorted(set(updates)), "thisUpdate rises with the number"


@pytest.fixture
def own_server() -> Iterator[PostgresqlServer]:
    with PostgresqlServer() as server:
        yield server


async def test_a_database_that_is_gone_refuses_cleanly_and_everything_is_there_when_it_is_back(
    own_server: PostgresqlServer,
) -> None:
    heard = asyncio.Event()
    async with open_fleet(own_server.new_database()) as fleet, listening(fleet, heard.set):
        assert await hears(heard)
        await fleet.enrol()
        csr, token = csr_der(names=["meter-18"]), TokenCredential("meter-18", await fleet.token("meter-18"))
        own_server.stop()
        for _ in range(10):
            assert await outcomes(fleet.enrolment.enrol(csr, token)) == [Code.UNAVAILABLE]
        own_server.start()

        async def is_back() -> bool:
            return await outcomes(fleet.token("meter-19")) != [Code.UNAVAILABLE]

        await until(is_back)
        await fleet.enrolment.enrol(csr, token)
        assert sum((await fleet.database.read(devices.count)).values()) == 2
        assert await fleet.database.read(lambda connection: list(audit_findings.findings(connection))) == []
        assert await hears(heard), "listens again, and was told once more"
