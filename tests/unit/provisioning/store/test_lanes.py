"""Works that wait together are committed together on SQLite, and each is undone alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.errors import Refused
from provisioning.store import lanes, schema
from provisioning.store.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    await schema.upgrade(opened)
    await opened.write(lambda connection: connection.execute(text("CREATE TABLE notes (word TEXT UNIQUE)")))
    yield opened
    await opened.close()


@pytest.fixture
def commits(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which transactions have been committed; a group stays open as long as somebody waits."""
    monkeypatch.setattr(lanes, "_GROUP_SECONDS", 60)
    seen: list[str] = []
    event.listen(database._writer._engine, "commit", lambda _connection: seen.append("commit"))
    return seen


def note(connection: Connection, word: str) -> str:
    connection.execute(text("INSERT INTO notes VALUES (:word)"), {"word": word})
    return word


async def noted(database: Database) -> set[str]:
    return await database.read(lambda connection: set(connection.execute(text("SELECT word FROM notes")).scalars()))


async def together(database: Database, *words: str, fail: str = "") -> list[object]:
    """Let works wait behind one that is held until all of them do; *fail* names one that fails after its change."""
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

    holding = asyncio.create_task(database.write(first))
    await asyncio.to_thread(inside.wait, 20)
    calls = [
        asyncio.create_task(database.write(lambda connection, word=word: work(connection, word)))  # type: ignore[misc]
        for word in words
    ]
    await asyncio.sleep(0)  # Each is in the queue now.
    go_on.set()
    _, *outcomes = await asyncio.gather(holding, *calls, return_exceptions=True)
    return outcomes


async def test_who_waits_together_pays_for_one_commit(database: Database, commits: list[str]) -> None:
    assert await together(database, "a", "b", "c", "d") == ["a", "b", "c", "d"]
    assert await noted(database) == {"a", "b", "c", "d"}
    assert len(commits) == 1


async def test_a_work_that_fails_undoes_its_own_change_only(database: Database, commits: list[str]) -> None:
    a, b, c = await together(database, "a", "b", "c", fail="b")
    assert (a, type(b), c) == ("a", ZeroDivisionError, "c")
    assert await noted(database) == {"a", "c"}
    assert len(commits) == 1


async def test_if_the_commit_fails_everybody_is_told_and_nothing_is_kept(
    database: Database, commits: list[str]
) -> None:
    await database.write(lambda connection: connection.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)")))
    children = "CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)"
    await database.write(lambda connection: connection.execute(text(children)))
    commits.clear()
    for outcome in await together(database, "a", "orphan", "b"):
        assert isinstance(outcome, IntegrityError)
    assert await noted(database) == set()
    assert len(commits) == 1


async def test_a_disk_that_is_full_refuses_the_group_and_keeps_what_was_answered(database: Database) -> None:
    await database.write(lambda connection: note(connection, "before"))

    def limit_pages(connection: Connection, more: int) -> None:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.execute(text(f"PRAGMA max_page_count = {pages + more}"))

    await database.write(lambda connection: limit_pages(connection, 0))
    big = [letter * 100_000 for letter in "abc"]
    for outcome in await together(database, *big):
        assert isinstance(outcome, Refused)
        assert outcome.code == "UNAVAILABLE"
    assert await noted(database) == {"before"}
    await database.write(lambda connection: limit_pages(connection, 10_000))
    assert await together(database, *big) == big
