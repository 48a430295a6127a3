"""Works that wait together are committed together on SQLite, in a thread or on the event loop; each is undone alone."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.errors import Refused
from provisioning.pki.panic import GaveUp
from provisioning.store import sqlite_lane
from provisioning.store.database import Database
from provisioning.store.engines import _KEPT_LOG_BYTES
from provisioning.store.sqlite_group import SqliteGroup
from provisioning.store.sqlite_lane import SqliteLane
from tests.support.notes import note, thread_of
from tests.support.notes import noted as noted_words
from tests.support.panic import panic


@pytest.fixture
async def database(sqlite_url: str) -> AsyncIterator[Database]:
    opened = Database(sqlite_url)
    await opened.write(lambda connection: connection.execute(text("CREATE TABLE notes (word TEXT UNIQUE)")))
    yield opened
    await opened.close()


@pytest.fixture
def commits(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which transactions have been committed; a group stays open as long as somebody waits, on a slow machine, too."""
    monkeypatch.setattr(sqlite_lane, "_GROUP_SECONDS", 60)
    monkeypatch.setattr(sqlite_lane, "_SHORT_SECONDS", 60)
    seen: list[str] = []
    on_commit(database, lambda: seen.append("commit"))
    return seen


def writer_of(database: Database) -> SqliteLane:
    assert isinstance(database._writer, SqliteLane)
    return database._writer


def driver_of(database: Database) -> Any:
    lent = writer_of(database)._writer._connection
    assert lent is not None
    return lent.connection.driver_connection


def on_commit(database: Database, tell: Callable[[], None]) -> None:
    """Have *tell* called where the writer says COMMIT."""
    driver_of(database).set_trace_callback(lambda said: tell() if said == "COMMIT" else None)


async def noted(database: Database) -> set[str]:
    return await database.read(noted_words)


@pytest.fixture(params=[False, True], ids=["in a thread", "on the event loop"])
def short(request: pytest.FixtureRequest) -> bool:
    """Where the works run."""
    chosen: bool = request.param
    return chosen


async def together(database: Database, *words: str, fail: str = "", short: bool = False) -> list[object]:
    """Let works wait until all of them do; *fail* names one that fails after its change."""
    inside, go_on = threading.Event(), threading.Event()

    def first(_connection: Connection) -> None:
        inside.set()
        assert go_on.wait(20)

    def work(connection: Connection, word: str) -> str:
        if word == "orphan":  # Found at the commit only.
            connection.execute(text("INSERT INTO children VALUES (7)"))
        note(connection, word)
        if word == fail:
            raise ZeroDivisionError
        return word

    if short:  # A group begins when the loop has heard everybody.
        return await asyncio.gather(
            *(database.write(lambda connection, word=word: work(connection, word), short=True) for word in words),  # type: ignore[misc]
            return_exceptions=True,
        )
    holding = asyncio.create_task(database.write(first))
    await asyncio.to_thread(inside.wait, 20)
    calls = [
        asyncio.create_task(database.write(lambda connection, word=word: work(connection, word)))  # type: ignore[misc]
        for word in words
    ]
    await asyncio.sleep(0)  # Each is in the queue now.
    go_on.set()
    _, *outcomes = await asyncio.gather(holding, *calls, return_exceptions=True)
    return list(outcomes)


async def test_who_waits_together_pays_for_one_commit(database: Database, commits: list[str], short: bool) -> None:
    assert await together(database, "a", "b", "c", "d", short=short) == ["a", "b", "c", "d"]
    assert await noted(database) == {"a", "b", "c", "d"}
    assert len(commits) == 1


async def test_a_work_that_fails_undoes_its_own_change_only(
    database: Database, commits: list[str], short: bool
) -> None:
    a, b, c = await together(database, "a", "b", "c", fail="b", short=short)
    assert (a, type(b), c) == ("a", ZeroDivisionError, "c")
    assert await noted(database) == {"a", "c"}
    assert len(commits) == 1


async def test_a_parser_that_panics_undoes_its_own_work_only(database: Database, short: bool) -> None:
    """What is no `Exception` ended the lane: nothing was written any more, and nobody answered."""

    def work(connection: Connection, word: str) -> str:
        note(connection, word)
        return panic() if word == "b" else word

    calls = [partial(work, word=word) for word in "abc"]
    outcomes = await asyncio.gather(*(database.write(each, short=short) for each in calls), return_exceptions=True)
    assert [type(each) for each in outcomes] == [str, GaveUp, str]
    assert await noted(database) == {"a", "c"}
    for read in (database.read, database.look):
        with pytest.raises(GaveUp):
            await read(lambda _: panic())


async def test_if_the_commit_fails_everybody_is_told_and_nothing_is_kept(
    database: Database, commits: list[str], short: bool
) -> None:
    await database.write(lambda connection: connection.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)")))
    children = "CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)"
    await database.write(lambda connection: connection.execute(text(children)))
    commits.clear()
    for outcome in await together(database, "a", "orphan", "b", short=short):
        assert isinstance(outcome, IntegrityError)
    assert await noted(database) == set()
    assert len(commits) == 1


async def test_a_disk_that_is_full_refuses_the_group_and_keeps_what_was_answered(
    database: Database, short: bool
) -> None:
    await database.write(lambda connection: note(connection, "before"))

    def limit_pages(connection: Connection, more: int) -> None:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.execute(text(f"PRAGMA max_page_count = {pages + more}"))

    await database.write(lambda connection: limit_pages(connection, 0))
    big = [letter * 100_000 for letter in "abc"]
    for outcome in await together(database, *big, short=short):
        assert isinstance(outcome, Refused)
        assert outcome.code == "UNAVAILABLE"
    assert await noted(database) == {"before"}
    await database.write(lambda connection: limit_pages(connection, 10_000))
    assert await together(database, *big, short=short) == big


async def test_the_log_of_changes_shrinks_again_when_a_long_look_at_the_file_is_over(database: Database) -> None:
    path = Path(database.url.database or "")
    log = path.with_name(f"{path.name}-wal")

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE filling SET content = randomblob(4000000)")

    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE filling (content)"))
    await database.write(lambda connection: connection.exec_driver_sql("INSERT INTO filling VALUES (1)"))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as looking:
        looking.execute("BEGIN")
        looking.execute("SELECT count(*) FROM filling").fetchone()
        for _ in range(10):
            await database.write(fill)
        assert log.stat().st_size > 40_000_000
    for statement in ("UPDATE filling SET content = 1", "UPDATE filling SET content = 2"):
        # The first one moves all of the log into the file.
        await database.write(partial(Connection.exec_driver_sql, statement=statement))
    assert log.stat().st_size <= _KEPT_LOG_BYTES


async def test_a_connection_that_broke_is_taken_anew(database: Database, short: bool) -> None:
    driver_of(database).close()
    (lost,) = await asyncio.gather(
        database.write(lambda connection: note(connection, "first"), short=short), return_exceptions=True
    )
    assert lost == "first" or (isinstance(lost, Refused) and lost.code == "UNAVAILABLE")
    assert await database.write(lambda connection: note(connection, "second"), short=short) == "second"
    assert await noted(database) == {"second"} | ({"first"} if lost == "first" else set())


async def test_a_file_that_is_damaged_or_no_database_cannot_be_used(tmp_path: Path, short: bool) -> None:
    (tmp_path / "fleet.db").write_bytes(b"no database at all " * 1000)
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    for refused in (database.read(noted_words), database.write(noted_words, short=short)):
        with pytest.raises(Refused, match="UNAVAILABLE"):
            await refused
    await database.close()


def slow_thread_of(connection: Connection) -> str:
    """Return it when the clock has gone on."""
    begun = time.monotonic()
    while time.monotonic() == begun:
        pass
    return thread_of(connection)


async def test_short_works_run_on_the_event_loop_and_their_commit_does_not(database: Database) -> None:
    committed: list[str] = []
    on_commit(database, lambda: committed.append(threading.current_thread().name))
    here = threading.current_thread().name
    assert await asyncio.gather(*(database.write(thread_of, short=True) for _ in range(3))) == [here] * 3
    assert await database.write(thread_of) != here
    assert here not in committed
    assert len(committed) == 2


async def test_a_work_that_is_not_short_leaves_the_event_loop_though_it_came_behind_short_ones(
    database: Database, commits: list[str]
) -> None:
    here = threading.current_thread().name
    first, long, _ = await asyncio.gather(*(database.write(thread_of, short=short) for short in (True, False, True)))
    assert first == here
    assert long != here
    assert len(commits) == 2


async def test_works_run_in_the_order_in_which_they_came_wherever_they_run(database: Database) -> None:
    seen: list[int] = []
    await asyncio.gather(
        *(
            database.write(lambda _, number=number: seen.append(number), short=number % 3 > 0)  # type: ignore[misc]
            for number in range(10)
        )
    )
    assert seen == list(range(10))


async def test_a_lock_that_another_process_holds_does_not_hold_up_the_event_loop(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, begin, begins = asyncio.get_running_loop(), SqliteGroup.begin, asyncio.Event()

    def noted(group: SqliteGroup) -> None:
        loop.call_soon_threadsafe(begins.set)
        begin(group)

    monkeypatch.setattr(SqliteGroup, "begin", noted)
    with contextlib.closing(sqlite3.connect(tmp_path / "fleet.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(database.write(thread_of, short=True))
        await begins.wait()  # In the thread: if the loop waited, nobody would come to this.
        assert not waiting.done()
        other.execute("ROLLBACK")
        assert await waiting != threading.current_thread().name
    assert await database.write(thread_of, short=True) == threading.current_thread().name


async def test_a_short_work_that_is_slow_sends_the_next_ones_into_the_thread(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = threading.current_thread().name
    monkeypatch.setattr(sqlite_lane, "_SHORT_SECONDS", -1.0)
    assert await database.write(thread_of, short=True) == here
    assert await database.write(thread_of, short=True) != here
    monkeypatch.setattr(sqlite_lane, "_SHORT_SECONDS", 60.0)
    writer_of(database)._threaded_until = 0.0
    assert await database.write(thread_of, short=True) == here
    monkeypatch.setattr(sqlite_lane, "_SHORT_SECONDS", 0.0)
    monkeypatch.setattr(sqlite_lane, "_GROUP_SECONDS", 60)
    first, *others = await asyncio.gather(*(database.write(slow_thread_of, short=True) for _ in range(3)))
    assert (first == here, here in others) == (True, False), "those that wait behind it, too"


async def test_a_group_whose_time_is_over_when_it_has_begun_has_one_work_all_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    """Else a disk on which to begin takes longer than a group may go on would never see a work."""
    committed: list[str] = []

    def tell() -> None:
        committed.append("commit")
        if len(committed) > 20:  # So that a lane that would go on like this for ever fails here, and can be closed.
            monkeypatch.setattr(sqlite_lane, "_GROUP_SECONDS", 60)

    on_commit(database, tell)
    monkeypatch.setattr(sqlite_lane, "_LONGEST_GROUP_SECONDS", -1.0)
    monkeypatch.setattr(sqlite_lane, "_GROUP_SECONDS", -1.0)
    works = (database.write(partial(note, word=word), short=short) for word in "abc")
    assert await asyncio.gather(*works) == ["a", "b", "c"]
    assert len(committed) == 3


async def test_other_events_are_served_between_short_works(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_lane, "_SLICE_SECONDS", 0.0)
    monkeypatch.setattr(sqlite_lane, "_SHORT_SECONDS", 60)
    monkeypatch.setattr(sqlite_lane, "_GROUP_SECONDS", 60)
    loop = asyncio.get_running_loop()
    seen: list[str] = []

    def work(connection: Connection) -> None:
        slow_thread_of(connection)
        seen.append("work")
        loop.call_soon(seen.append, "other")

    await asyncio.gather(*(database.write(work, short=True) for _ in range(3)))
    assert seen == ["work", "other"] * 3


async def test_closing_finishes_what_waits(tmp_path: Path, short: bool) -> None:
    opened = Database(f"sqlite:///{tmp_path / 'other.db'}")
    await opened.write(lambda connection: connection.execute(text("CREATE TABLE notes (word TEXT UNIQUE)")))
    waiting = [
        asyncio.create_task(opened.write(lambda connection, word=word: note(connection, word), short=short))  # type: ignore[misc]
        for word in "abc"
    ]
    await asyncio.sleep(0)
    await opened.close()
    assert await asyncio.gather(*waiting) == ["a", "b", "c"]
