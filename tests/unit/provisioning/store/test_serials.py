"""Serial numbers that rise, and what that is for: certificates that lie together in a large store."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code
from provisioning.store import sqlite_lane
from provisioning.store.database import Database
from provisioning.store.serials import BLOCK, NotReserved, SerialNumbers, new_serial, rising_serials, use
from provisioning.store.tables import serial_reservations
from tests.support.fleet import Fleet, open_fleet
from tests.support.requests import NOON, csr_der

TOGETHER = 32
HISTORY = 20_000
_HISTORY = (
    """INSERT INTO devices (id, name, role, created_at)
        WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < :count)
        SELECT 1000000 + n, 'old-' || n, 'device', '2026-01-01 00:00:00.000000' FROM counted""",
    """INSERT INTO certificates
        (id, issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der)
        SELECT id, 'aa', lower(hex(randomblob(16))), id, randomblob(32), 'ff', created_at, created_at, created_at,
            zeroblob(500)
        FROM devices WHERE id > 1000000""",
    "INSERT INTO device_keys SELECT spki_sha256, device_id FROM certificates WHERE id > 1000000",
)


@pytest.mark.parametrize("year", [1970, 2026, 4000])
def test_the_numbers_of_a_block_rise_with_the_time_and_are_as_long_as_others(year: int) -> None:
    now = datetime(year, 12, 1, tzinfo=UTC)
    blocks = [rising_serials(BLOCK, now + timedelta(milliseconds=after)) for after in (0, 1, 2)]
    numbers = [each for block in blocks for each in block]
    assert numbers == sorted(set(numbers))
    assert {each.bit_length() for each in numbers} == {127}


def test_two_blocks_of_one_moment_have_no_number_in_common() -> None:
    """Two processes', or one's whose clock was set back: 80 bits are random."""
    blocks = [rising_serials(1000, NOON) for _ in range(4)]
    assert len(set().union(*blocks)) == 4000
    assert {each >> 80 for block in blocks for each in block} == {blocks[0][0] >> 80}
    low = [each & (1 << 80) - 1 for block in blocks for each in block]
    assert all(0.4 < sum(each >> bit & 1 for each in low) / len(low) < 0.6 for bit in range(80))


async def test_numbers_are_used_in_their_order_and_one_that_is_given_back_comes_next(fleet: Fleet) -> None:
    numbers = SerialNumbers(fleet.database)
    used = []
    for _ in range(3):
        async with numbers.reservation(NOON) as given_back:
            pass
        async with numbers.reservation(NOON) as reservation:
            reservation.burnt = True
        assert reservation.serial == given_back.serial
        used.append(reservation.serial)
    assert used == sorted(used)


async def test_a_number_is_used_once_and_only_if_it_is_reserved(fleet: Fleet) -> None:
    numbers = SerialNumbers(fleet.database)
    async with numbers.reservation(NOON) as reservation:
        reservation.burnt = True
    await fleet.database.write(lambda connection: use(connection, reservation.serial))
    for number in (reservation.serial, new_serial()):
        with pytest.raises(NotReserved, match=f"serial number {number:x} is not reserved any more"):
            await fleet.database.write(functools.partial(use, serial=number))


async def test_a_block_that_the_store_has_lost_is_left(fleet: Fleet) -> None:
    """A standby took over that did not have it: one issuance is refused, and not one for each number of the block."""
    numbers = SerialNumbers(fleet.database)
    async with numbers.reservation(NOON):
        pass
    await fleet.database.write(lambda connection: connection.execute(text("DELETE FROM serial_reservations")))
    with pytest.raises(NotReserved) as refused:
        async with numbers.reservation(NOON) as reservation:
            await fleet.database.write(functools.partial(use, serial=reservation.serial))
    assert refused.value.code is Code.UNAVAILABLE
    async with numbers.reservation(NOON) as reservation:
        await fleet.database.write(functools.partial(use, serial=reservation.serial))


async def certify(numbers: SerialNumbers, database: Database, then: Callable[[], None] = lambda: None) -> int:
    """Use a number as a certificate does, each a moment later; *then* is called in its transaction."""

    def work(connection: Connection) -> None:
        reservation.burnt = True
        reservation.use(connection, NOON)
        then()

    async with numbers.reservation(next(_moments)) as reservation:
        await database.write(work, short=True)
    return reservation.serial


_moments = (NOON + timedelta(milliseconds=each) for each in itertools.count())


def fail() -> None:
    raise ZeroDivisionError


async def reserved(database: Database) -> int:
    number = select(func.count()).select_from(serial_reservations)
    return await database.read(lambda connection: connection.execute(number).scalar_one())


async def test_a_certificate_reserves_the_next_block_so_that_nobody_waits_for_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, write, transactions = SerialNumbers(fleet.database), fleet.database.write, list[object]()

    async def counted(work: Callable[[Connection], None], *, short: bool) -> None:
        transactions.append(work)
        await write(work, short=short)

    monkeypatch.setattr(fleet.database, "write", counted)
    used = [await certify(numbers, fleet.database) for _ in range(BLOCK + 2)]
    assert used == sorted(set(used))
    assert len(transactions) == len(used) + 1, "one for the first block"
    assert await reserved(fleet.database) == 2 * BLOCK - len(used), "one block, when half of the first was left"


@pytest.mark.parametrize("ending", ["fails", "is cancelled"])
async def test_a_block_that_is_perhaps_not_reserved_is_not_used(fleet: Fleet, ending: str) -> None:
    numbers = SerialNumbers(fleet.database)
    used = [await certify(numbers, fleet.database) for _ in range(BLOCK // 2)]
    if ending == "fails":
        with pytest.raises(ZeroDivisionError):
            await certify(numbers, fleet.database, fail)
        left = BLOCK // 2
    else:
        task = asyncio.create_task(certify(numbers, fleet.database))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left = BLOCK // 2 - 1 + BLOCK
    assert await reserved(fleet.database) == left
    used += [await certify(numbers, fleet.database) for _ in range(BLOCK // 2)]  # Each refuses a number not reserved.
    assert used == sorted(set(used))
    await numbers.release()
    assert await reserved(fleet.database) == (ending == "fails"), "under one may have been signed"


async def test_who_stops_gives_back_his_own_numbers_and_nobody_else_s(fleet: Fleet) -> None:
    mine, theirs = SerialNumbers(fleet.database), SerialNumbers(fleet.database)
    for each in (mine, theirs):
        async with each.reservation(NOON):
            pass
    await mine.release()
    assert await reserved(fleet.database) == BLOCK
    for each in (theirs, mine):  # Who goes on after all takes new ones.
        async with each.reservation(NOON) as reservation:
            await fleet.database.write(functools.partial(use, serial=reservation.serial))
            reservation.burnt = True


async def test_a_certificate_changes_one_page_at_random_of_a_large_store(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key's. By random serial numbers, and an index of keys beside that of their holders, it would be three."""
    for name in ("_GROUP_SECONDS", "_SHORT_SECONDS", "_SLICE_SECONDS"):
        monkeypatch.setattr(sqlite_lane, name, 60)  # All of them are in one transaction.

    def import_history(connection: Connection) -> None:
        for each in _HISTORY:
            connection.execute(text(each), {"count": HISTORY} if ":count" in each else {})

    def pages_written(connection: Connection) -> int:
        """Return how many were written since this was asked last."""
        return int(connection.exec_driver_sql("PRAGMA wal_checkpoint").one()[1])

    async with open_fleet(sqlite_url) as fleet:
        await fleet.database.write(import_history)
        await fleet.enrol("first")
        names = [f"meter-{number}" for number in range(TOGETHER)]
        requests = [(csr_der(names=[name]), TokenCredential(name, await fleet.token(name))) for name in names]
        await fleet.database.read(pages_written)
        await asyncio.gather(*(fleet.enrolment.enrol(csr, token) for csr, token in requests))
        assert await fleet.database.read(pages_written) / TOGETHER < 3.7
