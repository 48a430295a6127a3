"""A transaction of SQLite's that is lost in the middle, and what its works have in common: where the audit log ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.errors import Code, Refused
from provisioning.store import audit, audit_findings, schema, sqlite_lane
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.executor import executor_of
from provisioning.store.sqlite_group import SqliteGroup
from tests.support.requests import NOON

KEY = b"k" * 32


@pytest.fixture
async def database(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A store with a log, where a group stays open as long as somebody waits."""
    for name in ("_GROUP_SECONDS", "_SHORT_SECONDS", "_SLICE_SECONDS"):
        monkeypatch.setattr(sqlite_lane, name, 60)
    opened = Database(sqlite_url, KEY)
    await schema.upgrade(opened)
    await opened.write(sealed_anew)
    yield opened
    await opened.close()


def sealed_anew(connection: Connection) -> None:
    """Seal the log with this store's key: its template had another one."""
    connection.execute(text("UPDATE audit_head SET seal = :none").bindparams(none=b""))
    audit.begin(connection)


@pytest.fixture(params=[False, True], ids=["in a thread", "on the event loop"])
def short(request: pytest.FixtureRequest) -> bool:
    """Where the works run."""
    chosen: bool = request.param
    return chosen


@pytest.fixture
def groups(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many works each group had that was closed; each has told how long its commit took."""
    del database  # What it has needed itself does not count.
    found: list[int] = []
    seconds: list[tuple[float, float]] = []
    commit = SqliteGroup.commit

    def noted(group: SqliteGroup) -> float:
        found.append(len(group._jobs))
        begun = time.monotonic()
        told = commit(group)
        seconds.append((told, time.monotonic() - begun))
        return told

    monkeypatch.setattr(SqliteGroup, "commit", noted)
    yield found
    assert all(0 <= told <= taken for told, taken in seconds)


def log(connection: Connection, subject: str) -> str:
    audit.append(connection, NOON, "admin", Action.REVOKED, subject, {})
    return subject


def fails(connection: Connection) -> None:
    log(connection, "undone")
    raise KeyError("its own")


def loses_it(connection: Connection) -> None:
    """Have SQLite undo the whole transaction, as it does itself where a disk is full."""
    executor_of(connection).execute("ROLLBACK")
    raise ZeroDivisionError


async def outcomes(database: Database, *works: Callable[[Connection], Any], short: bool) -> list[Any]:
    return await asyncio.gather(*(database.write(work, short=short) for work in works), return_exceptions=True)


async def logged(database: Database) -> list[str]:
    """Return whom the log is about, once it has been found whole."""
    assert await database.read(lambda connection: list(audit_findings.findings(connection, None))) == []
    return [each.subject for each in await database.read(lambda connection: audit.entries(connection, 0, 99))]


def entry(subject: str) -> Callable[[Connection], str]:
    return lambda connection: log(connection, subject)


async def test_the_entries_of_a_group_are_one_chain_without_those_that_were_undone(
    database: Database, groups: list[int], short: bool
) -> None:
    works = entry("a"), fails, entry("b"), fails
    found = await outcomes(database, *works, short=short)
    assert [each if isinstance(each, str) else type(each) for each in found] == [
        "a", KeyError, "b", KeyError,
    ]  # fmt: skip
    assert groups == [4]
    assert await logged(database) == ["a", "b"]
    assert await outcomes(database, entry("c"), short=short) == ["c"]
    assert await logged(database) == ["a", "b", "c"]


async def test_who_comes_after_a_transaction_was_lost_is_in_the_next_one(
    database: Database, groups: list[int], short: bool
) -> None:
    works = entry("a"), fails, loses_it, entry("b"), entry("c")
    first, own, loser, *others = await outcomes(database, *works, short=short)
    assert isinstance(own, KeyError), "it would have failed anyway"
    for each in (first, loser):
        assert isinstance(each, Refused)
        assert each.code is Code.UNAVAILABLE
    assert others == ["b", "c"]
    assert groups == [3, 2]
    assert await logged(database) == ["b", "c"]


async def test_where_the_end_of_the_log_cannot_be_written_nothing_is_kept_and_everybody_is_told(
    database: Database, groups: list[int], short: bool
) -> None:
    def forbid(connection: Connection) -> None:
        stop = "CREATE TRIGGER no_move BEFORE UPDATE ON audit_head BEGIN SELECT RAISE(ABORT, 'no'); END"
        connection.execute(text(stop))

    await database.write(forbid)
    groups.clear()
    for each in await outcomes(database, entry("a"), entry("b"), short=short):
        assert isinstance(each, Refused)
        assert each.code is Code.UNAVAILABLE
        assert isinstance(each.__cause__, IntegrityError)
    assert groups == [2]
    assert await logged(database) == []
    await database.write(lambda connection: connection.execute(text("DROP TRIGGER no_move")))
    assert await outcomes(database, entry("c"), short=short) == ["c"]
    assert await logged(database) == ["c"]
