"""The log says that the clock was set, or is behind what was recorded, and says it once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from provisioning.service.clock_watch import ClockWatch
from provisioning.store import audit, schema
from provisioning.store.audit import Action
from provisioning.store.database import Database

NOW = datetime(2026, 3, 1, tzinfo=UTC)


async def told(
    directory: Path, steps: Iterable[float], recorded: Iterable[datetime] = ()
) -> list[tuple[object, object, object]]:
    """Return what is logged, if the clock is set ahead by each of *steps* between two looks."""
    database = Database(f"sqlite:///{directory / 'fleet.db'}", b"k" * 32)
    await schema.upgrade(database)
    for at in recorded:
        await database.write(
            lambda connection, at=at: audit.append(connection, at, "admin", Action.REVOKED, "meter-1", {})  # type: ignore[misc]
        )
    lasted, ahead, left = 0.0, 0.0, iter(steps)

    async def sleep(seconds: float) -> None:
        nonlocal lasted, ahead
        lasted += seconds
        step = next(left, None)
        if step is None:
            raise asyncio.CancelledError
        ahead += step

    watch = ClockWatch(
        database, lambda: NOW + timedelta(seconds=lasted + ahead), monotonic=lambda: 7.0 + lasted, sleep=sleep
    )
    with capture_logs() as lines, pytest.raises(asyncio.CancelledError):
        await watch.run()
    await database.close()
    return [(line["code"], line.get("seconds"), line.get("detail")) for line in lines]


async def test_a_clock_that_is_set_is_told_once_however_little_at_a_time(tmp_path: Path) -> None:
    assert await told(tmp_path, [0, 86400, 0, -1.5, 0, -1.5, 0]) == [
        ("CLOCK_SET", 86400, None),
        ("CLOCK_SET", -3, None),
    ]


async def test_a_start_before_the_last_entries_is_told(tmp_path: Path) -> None:
    recorded = [NOW + timedelta(hours=1), NOW]
    why = "it says 2026-03-01 00:00:00 UTC, but entry 1 of the audit log was recorded at 2026-03-01 01:00:00"
    assert await told(tmp_path, [0], recorded) == [("CLOCK_BEHIND", None, why)]


async def test_the_difference_of_two_machines_is_not(tmp_path: Path) -> None:
    assert await told(tmp_path, [0], [NOW + timedelta(minutes=1)]) == []
