"""PostgreSQL's connection that is slow, silent, cut or gone: which works and looks notice, and what they are told."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psycopg
import pytest
import uvloop
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store import schema
from provisioning.store.database import Database
from provisioning.store.postgresql_group import driver_of
from tests.support.notes import HERE, PATIENCE, lock, note, noted, somebody_else, thread_of, with_notes
from tests.support.postgresql import PostgresqlServer

_WAITS_FOR_STANDBY = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    """Run *test* on asyncio's loop and on uvloop, which tell of a broken socket in different ways."""

    @pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def run(own_server: PostgresqlServer, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        async def opened() -> None:
            async with with_notes(own_server) as database:
                await test(database, own_server)

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(opened())

    return run


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresqlServer]:
    """One that may be stopped; running again after each test."""
    with PostgresqlServer() as server:
        yield server


async def cut(database: Database) -> None:
    """End every session of the database's, as an administrator may."""
    with somebody_else(database) as other:
        ended = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = current_database()"
        other.execute(f"{ended} AND pid <> pg_backend_pid()".encode())
    await asyncio.sleep(0)


def cut_off(database: Database, connection: Connection) -> None:
    """End the session of *connection*, as an administrator may."""
    with somebody_else(database) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [driver_of(connection).info.backend_pid])


async def of_a_group_that_is_cut(
    database: Database, short: bool, fails: Callable[[Connection], None], next_one: Callable[[Connection], Any]
) -> Any:
    """Return what the *next_one* gets of works that wait together; who is in the group that *fails* is refused."""
    with lock(database):
        works = [lambda connection: note(connection, "a"), fails, next_one]
        waiting = [asyncio.create_task(database.write(work, short=short)) for work in works]
        await asyncio.sleep(0.05)
    *refused, last = await asyncio.gather(*waiting, return_exceptions=True)
    for each in refused:
        assert isinstance(each, Refused)
        assert each.code is Code.UNAVAILABLE
    return last


@on_both_loops
async def test_what_the_socket_does_not_take_at_once_is_sent_while_the_loop_goes_on(
    database: Database,
    server: PostgresqlServer,  # noqa: ARG001 - of another test
) -> None:
    long = "x" * 30_000_000
    turns = 0

    def measured(connection: Connection) -> int:
        found = driver_of(connection).execute("SELECT length(%s), %s", [long, long]).fetchone()
        assert found is not None
        assert found[1] == long
        size: int = found[0]
        return size

    measuring = asyncio.create_task(database.write(measured, short=True))
    while not measuring.done():
        turns += 1
        await asyncio.sleep(0)
    assert await measuring == len(long)
    assert turns > 10


@on_both_loops
async def test_a_connection_that_was_cut_while_nobody_used_it_costs_no_work_and_no_look(
    database: Database,
    server: PostgresqlServer,  # noqa: ARG001 - of another test
) -> None:
    await database.look(noted)
    for word, short in (("a", True), ("b", False), ("c", True)):
        await cut(database)
        assert await database.write(lambda connection, word=word: note(connection, word), short=short) == word  # type: ignore[misc]
        await cut(database)
        assert word in await database.look(noted)
    assert await database.write(thread_of, short=True) != HERE  # Where it connects.
    assert await database.write(thread_of, short=True) == HERE


@on_both_loops
async def test_a_server_that_is_gone_refuses_and_one_that_is_back_is_found(
    database: Database, server: PostgresqlServer
) -> None:
    def short(work: Callable[[Connection], Any]) -> Coroutine[Any, Any, Any]:
        return database.write(work, short=True)

    for ask in (database.look, database.write, short):
        assert await ask(noted) == set()
    server.stop()
    for ask in (database.look, short, database.look, database.write):
        with pytest.raises(Refused) as refusal:
            await ask(noted)
        assert refusal.value.code is Code.UNAVAILABLE
    server.start()
    for ask in (database.look, short):
        assert await ask(noted) == set()


@on_both_loops
async def test_a_socket_that_speaks_while_nobody_listens_does_not_keep_the_loop_busy(
    database: Database,
    server: PostgresqlServer,  # noqa: ARG001 - of another test
) -> None:
    await database.write(thread_of, short=True)
    waits = database._writer._kept._waits  # type: ignore[attr-defined]
    assert waits._watched
    await cut(database)
    async with asyncio.timeout(PATIENCE):
        while waits._watched:
            await asyncio.sleep(0)


@pytest.mark.usefixtures("patient")
async def test_a_connection_that_is_cut_after_a_change_refuses_its_group_and_keeps_nothing(
    database: Database, short: bool
) -> None:
    def fails(connection: Connection) -> None:
        note(connection, "lost")
        cut_off(database, connection)
        note(connection, "never")

    assert await of_a_group_that_is_cut(database, short, fails, lambda c: note(c, "b")) == "b"
    assert await database.look(noted) == {"b"}


@pytest.mark.usefixtures("patient")
async def test_a_connection_that_is_cut_when_a_work_has_failed_refuses_its_group_as_any_other(
    database: Database, short: bool
) -> None:
    """What was wrong with the one is nothing that the others could do anything about."""

    def fails(connection: Connection) -> None:
        try:
            note(connection, "a")
        finally:
            cut_off(database, connection)

    got = await of_a_group_that_is_cut(database, short, fails, lambda c: (note(c, "b"), thread_of(c)))
    assert (got[0], got[1] == HERE) == ("b", False), "where a new connection may be opened"
    assert await database.look(noted) == {"b"}


@on_both_loops
async def test_a_commit_that_no_standby_has_confirmed_is_not_taken_for_one(
    database: Database, server: PostgresqlServer
) -> None:
    """Synchronous replication, and an administrator who cancels the wait for it: the server says COMMIT, and warns."""
    words: set[str] = set()
    address = server.url("postgres").replace("+psycopg", "")
    with psycopg.connect(address, autocommit=True, options="-c synchronous_commit=local") as administrator:
        administrator.execute("ALTER ROLE fleet SET client_min_messages = 'error'")
        await cut(database)
        administrator.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        administrator.execute("SELECT pg_reload_conf()")
        try:
            waits = None
            async with asyncio.timeout(PATIENCE):
                while waits is None:  # The setting is in force a moment later.
                    word = f"word {len(words)}"
                    words.add(word)
                    writing = asyncio.create_task(
                        database.write(lambda connection, word=word: note(connection, word), short=True)  # type: ignore[misc]
                    )
                    while not writing.done() and waits is None:
                        await asyncio.sleep(0.01)
                        waits = administrator.execute(_WAITS_FOR_STANDBY).fetchone()
            assert await database.read(lambda connection: schema.waiting_for_standby(connection, 0)) == 1
            assert await database.read(lambda connection: schema.waiting_for_standby(connection, 3600)) == 0
            administrator.execute("SELECT pg_cancel_backend(%s)", waits)
            with pytest.raises(Refused) as caught:
                await writing
            assert caught.value.code is Code.UNAVAILABLE
            assert "canceling wait for synchronous replication" in str(caught.value.__cause__)
        finally:
            administrator.execute("ALTER ROLE fleet RESET client_min_messages")
            administrator.execute("ALTER SYSTEM RESET synchronous_standby_names")
            administrator.execute("SELECT pg_reload_conf()")
    assert await database.read(noted) == words, "the last one is there, and could have been lost"
    assert await database.read(lambda connection: schema.waiting_for_standby(connection, 0)) == 0


class MuteServer:
    """Something that takes connections and says nothing, as the address of a machine that hangs; counts them."""

    def __init__(self) -> None:
        self.taken = 0
        self._given_up = asyncio.Event()

    async def take(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        await self._given_up.wait()
        writer.close()

    def give_up(self) -> None:
        """Let all attempts to connect fail now, as they would when they have lasted for `connect_timeout`."""
        self._given_up.set()


@pytest.mark.parametrize(("ask", "most"), [("write", 1), ("write, short", 1), ("look", 1), ("read", 2 * 4)])
async def test_a_server_that_cannot_be_reached_is_not_waited_for_by_one_after_the_other(ask: str, most: int) -> None:
    """Each attempt may take five seconds: of a hundred that wait, the last would wait for minutes."""
    mute = MuteServer()
    async with await asyncio.start_server(mute.take, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        database = Database(f"postgresql+psycopg://fleet@127.0.0.1:{port}/fleet?sslmode=disable&gssencmode=disable")
        how = {"write, short": functools.partial(database.write, short=True)}.get(ask) or getattr(database, ask)
        waiting = [asyncio.create_task(how(noted)) for _ in range(30)]
        async with asyncio.timeout(PATIENCE):
            while mute.taken == 0:
                await asyncio.sleep(0)
        mute.give_up()
        for refused in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(refused, Refused)
            assert refused.code is Code.UNAVAILABLE
        await database.close()
    assert mute.taken <= most


async def test_a_session_that_has_not_what_was_prepared_in_it_is_left(database: Database) -> None:
    """It was 500, and the feed's look ended the service."""

    def forgets(connection: Connection) -> None:  # As one that a pooler gives in its place, where nothing was prepared.
        connection.exec_driver_sql("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")

    async def retyped() -> None:
        with somebody_else(database, "ALTER TABLE notes ALTER word TYPE varchar(80)") as other:
            other.commit()

    async def forgotten() -> None:
        await database.write(forgets)

    for change in (forgotten, retyped):
        for _ in range(7):  # The driver prepares what comes again and again.
            await database.write(noted, short=True)
        await change()
        with pytest.raises(Refused) as caught:
            await database.write(noted, short=True)
        assert caught.value.code is Code.UNAVAILABLE
        assert await database.write(noted, short=True) == set()
