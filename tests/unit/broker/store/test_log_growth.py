"""What is said while another program reads the database, so that the log grows, or writes into it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.mqtt.message import Message
from broker.store.journal import Journal
from broker.store.outage import Outage
from broker.store.soundness import unusable
from broker.store.sqlite import SqliteStore, log
from provisioning.program.log_growth import LogGrowth, held_up
from tests.support.batches import filled, stored

UNUSUAL = 100_000


@contextlib.contextmanager
def other_program(path: Path, begin: str) -> Iterator[sqlite3.Connection]:
    """Another program with a transaction: one that reads, unless it is to *begin* otherwise."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        other.execute(begin)
        other.execute("SELECT count(*) FROM messages").fetchone()
        yield other


async def grown(store: SqliteStore, journal: Journal) -> None:
    """Write one batch as the running broker does."""
    written = asyncio.Event()
    store.attach(journal, asyncio.get_running_loop(), written.set, lambda: None)
    journal.add(1, stored(Message(b"t", bytes(UNUSUAL), 1)))
    store.begin()
    await asyncio.wait_for(written.wait(), 10)
    journal.written()


async def test_a_log_that_another_program_keeps_from_the_file_is_told_when_it_doubles_and_when_that_is_over(
    store: SqliteStore,
) -> None:
    """It grew until the disk was full, and the first word was STORE_FAILED."""
    store._apply(filled())
    journal = Journal(100.0, last_session=7, last_message=40)
    store._growth = LogGrowth(store.path, log, unusual=UNUSUAL)
    held = []
    with capture_logs() as said:
        with other_program(store.path, "BEGIN"):
            for _ in range(8):
                await grown(store, journal)
                held.append(journal.held_log_bytes)
        for _ in range(2):
            await grown(store, journal)
    assert held[-1] > max(held[0], UNUSUAL), "for the metric"
    assert held == sorted(held)
    assert journal.held_log_bytes == 0
    assert [line["code"] for line in said] == [*["STORE_LOG_GROWS"] * 3, "STORE_LOG_MOVED"]
    first, second, *_ = said
    assert first["log_level"] == "warning"
    assert "another program reads broker.db, and keeps SQLite from moving the log into it" in first["detail"]
    assert second["megabytes"] >= 2 * first["megabytes"] - 1


class Seen(LogGrowth):
    """The log's growth, and how often it was looked at."""

    def __init__(self, path: Path, *, unusual: int) -> None:
        super().__init__(path, log, unusual=unusual)
        self.looks = 0
        self.seen_thrice, self.over = asyncio.Event(), asyncio.Event()

    def seen(self, size: int, reason: str | None) -> None:
        super().seen(size, reason)
        self.looks += 1
        if self.looks > 2:
            self.seen_thrice.set()
        if reason is None:
            self.over.set()


async def test_that_it_is_over_is_noticed_though_nothing_more_is_written(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.store.sqlite._LOOK_SECONDS", 0.001)
    store._apply(filled())
    journal = Journal(100.0, last_session=7, last_message=40)
    store._growth = growth = Seen(store.path, unusual=UNUSUAL)
    with capture_logs() as said:
        with other_program(store.path, "BEGIN"):
            await grown(store, journal)
            async with asyncio.timeout(60):
                await growth.seen_thrice.wait()
            assert journal.held_log_bytes > UNUSUAL, "as long as it reads, nothing changes"
        growth.over.clear()
        async with asyncio.timeout(60):
            await growth.over.wait()
    assert journal.held_log_bytes == 0
    assert [line["code"] for line in said] == ["STORE_LOG_GROWS", "STORE_LOG_MOVED"]


def test_a_log_that_is_only_long_is_no_news(tmp_path: Path) -> None:
    growth = LogGrowth(tmp_path / "broker.db", log)
    with capture_logs() as said:
        growth.seen(10**9, None)
    assert said == []


def test_what_prevents_the_move_is_told_though_every_commit_succeeds(store: SqliteStore) -> None:
    class Failing:
        def execute(self, _statement: str) -> Any:
            raise sqlite3.OperationalError("disk I/O error")

    store._apply(filled())
    assert held_up(store._database, store.path) is None
    told = held_up(Failing(), store.path)  # type: ignore[arg-type]
    assert told == "broker.db cannot be written: disk I/O error; see to its disk: otherwise that will be full"


def test_a_database_in_which_another_program_writes_is_no_full_disk(store: SqliteStore) -> None:
    """The remedy was to see whether the disk is full."""
    store._database.execute("PRAGMA busy_timeout=0")
    with other_program(store.path, "BEGIN IMMEDIATE"), pytest.raises(sqlite3.OperationalError) as locked:
        store._apply(filled())
    said = "database is locked: another program has a transaction open in it (a sqlite3 shell?): end that"
    assert f"{said}, and start again" in str(unusable(store.path, locked.value))
    with capture_logs() as logs:
        Outage(store.path).failed(locked.value, 0.0)
    assert logs[0]["detail"] == said
    store._apply(filled())


async def test_what_is_committed_is_written_though_the_log_cannot_be_looked_at(tmp_path: Path) -> None:
    """It counted as unwritten: what was cleared meanwhile was struck from the batch, though it was on disk already."""
    folder = tmp_path / "state"
    folder.mkdir()
    store = SqliteStore(folder / "broker.db")

    def hide(statement: str) -> None:
        if statement == "COMMIT":  # Its files are open: it comes through. Whoever looks at a name afterwards does not.
            store._database.set_trace_callback(None)
            folder.rename(tmp_path / "away")
            folder.symlink_to(folder)

    with contextlib.closing(store):
        store._apply(filled())
        journal = Journal(100.0, last_session=7, last_message=40)
        told: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        store.attach(journal, loop, lambda: told.put_nowait("written"), lambda: told.put_nowait("failed"))
        store._database.set_trace_callback(hide)
        journal.add(1, stored(Message(b"t", b"x", 1)))
        store.begin()
        outcome = await asyncio.wait_for(told.get(), 10)
        assert folder.is_symlink(), "the case has come"
        folder.unlink()
        (tmp_path / "away").rename(folder)
        assert outcome == "written"
        journal.written()
        await grown(store, journal)
        assert len(store.rows("SELECT id FROM messages")) == 3
