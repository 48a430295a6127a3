"""Another program's lock: waits are bounded however many wait, the reason is logged, and all goes on afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.errors import Code, Refused
from provisioning.store import schema, sqlite_group
from provisioning.store.database import Database
from provisioning.store.postgresql_group import _WRITERS
from provisioning.store.side_by_side import go_alone
from tests.support.postgresql import PostgresqlServer

WAIT = 1.0
"""How long a work waits for a lock here, in seconds."""
MANY = 12


def count(connection: Connection) -> None:
    connection.execute(text("INSERT INTO counters (name, value) VALUES ('mine', 1) ON CONFLICT DO NOTHING"))


def needs_no_lock(connection: Connection) -> None:
    connection.execute(text("UPDATE devices SET name = name"))


def fails_after_a_change(connection: Connection) -> None:
    needs_no_lock(connection)
    raise ZeroDivisionError


def find(connection: Connection) -> object:
    return connection.execute(text("SELECT value FROM counters WHERE name = 'mine'")).scalar()


@contextlib.contextmanager
def locked(url: str, table: LiteralString = "counters") -> Iterator[psycopg.Connection[object]]:
    """Have another program lock *table* of the database at *url*."""
    with psycopg.connect(url.replace("+psycopg", "").partition("?")[0]) as other:
        other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield other
        other.rollback()


def is_unavailable(outcome: object) -> bool:
    return isinstance(outcome, Refused) and outcome.code is Code.UNAVAILABLE


@pytest.mark.parametrize("way", ["write", "short", "together", "look", "read"])
async def test_all_who_wait_for_a_lock_of_another_program_are_told_so_when_one_has_waited_in_vain(
    postgresql: PostgresqlServer, way: str
) -> None:
    with postgresql.database() as url:
        database = Database(f"{url}?options=-clock_timeout%3D{int(WAIT * 1000)}")
        try:
            await database.write(count)
            await database.look(find)

            def failed() -> bool:
                return database.write_failed

            ways: dict[str, Callable[[int], Coroutine[None, None, object]]] = {
                "write": lambda _: database.write(count),
                "short": lambda _: database.write(count, short=True),
                "together": lambda number: database.write(count, lambda: [number], short=True),
                "look": lambda _: database.look(find),
                "read": lambda _: database.read(find),
            }
            ask = ways[way]
            with locked(url), capture_logs() as logged:
                begun = time.monotonic()
                told = await asyncio.gather(*(ask(number) for number in range(MANY)), return_exceptions=True)
                took = time.monotonic() - begun
                assert all(map(is_unavailable, told)), told
                assert took < (MANY - 2) * WAIT, "they do not wait one after the other"
                late = await asyncio.gather(ask(MANY), return_exceptions=True)
                assert is_unavailable(late[0])
                assert failed()
                with pytest.raises(Refused):
                    await database.probe()
            assert any("another program has locked what is needed" in str(each.get("detail")) for each in logged)
            await database.probe()
            assert not failed()
            again = await asyncio.gather(*(ask(number) for number in range(MANY)), return_exceptions=True)
            assert not any(isinstance(each, BaseException) for each in again), again
        finally:
            await database.close()


@pytest.mark.parametrize("right", ["CREATE ON SCHEMA public", "UPDATE, DELETE, TRUNCATE ON audit_entries"])
async def test_a_user_who_may_not_try_everything_is_told_that_it_is_over(
    postgresql: PostgresqlServer, right: str
) -> None:
    """Not an owner: one that may write to the tables, and perhaps only append to the audit log."""
    url = postgresql.new_database()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as owner:
        owner.execute(f"CREATE ROLE writer_{owner.info.dbname} LOGIN".encode())
        writer = f"writer_{owner.info.dbname}"
        owner.execute(f"GRANT CREATE ON SCHEMA public TO {writer}".encode())
        owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {writer}".encode())
        owner.execute(f"REVOKE {right} FROM {writer}".encode())
    database = Database(f"{url.replace('fleet@', f'{writer}@')}?options=-clock_timeout%3D{int(WAIT * 1000)}")

    def failed() -> bool:
        return database.write_failed

    try:
        with locked(url), pytest.raises(Refused):
            await database.write(count)
        assert failed()
        with locked(url, "devices"), pytest.raises(Refused):
            await database.probe()
        await database.probe()
        assert not failed()
        await database.write(count)
    finally:
        await database.close()


async def test_where_tables_are_to_be_made_in_a_place_that_is_no_more_the_service_is_ready_again(
    postgresql: PostgresqlServer,
) -> None:
    """The server makes them in the database's own place then, and says so to nobody."""
    url = postgresql.new_database()
    place = f"place_{url.rpartition('/')[2]}"
    with (
        tempfile.TemporaryDirectory(prefix="fleetgate-place-", dir="/tmp") as directory,
        psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as owner,
    ):
        postgresql.give(Path(directory))
        owner.execute(f"CREATE TABLESPACE {place} LOCATION '{directory}'".encode())
        owner.execute(f"ALTER DATABASE {owner.info.dbname} SET default_tablespace = {place}".encode())
        database = Database(f"{url}?options=-clock_timeout%3D{int(WAIT * 1000)}")
        try:
            with locked(url), pytest.raises(Refused):
                await database.write(count)
            owner.execute(f"DROP TABLESPACE {place}".encode())
            await database.probe()
            assert not database.write_failed
        finally:
            await database.close()


async def test_nobody_is_refused_because_the_probe_finds_a_lock_for_which_it_does_not_wait(
    postgresql: PostgresqlServer,
) -> None:
    """`/readyz` asks again and again, while there is work that needs no locked table."""
    with postgresql.database() as url:
        database = Database(f"{url}?options=-clock_timeout%3D{int(WAIT * 1000)}")

        def rename(connection: Connection) -> None:
            connection.execute(text("UPDATE devices SET name = name"))

        try:
            with locked(url, "devices"):
                with pytest.raises(Refused):
                    await database.write(rename)
                probe, *told = await asyncio.gather(
                    database.probe(), *(database.write(count) for _ in range(MANY)), return_exceptions=True
                )
                assert is_unavailable(probe)
                assert told == [None] * MANY
                assert database.write_failed
            await database.probe()
            assert not database.write_failed
        finally:
            await database.close()


@pytest.mark.parametrize("way", ["side by side", "most go alone", "done one by one"])
async def test_of_works_that_go_together_one_waits_long_for_a_lock_and_neither_its_company_nor_who_is_behind_does(
    postgresql: PostgresqlServer, way: str
) -> None:
    with postgresql.database() as url:
        database = Database(f"{url}?options=-clock_timeout%3D{int(WAIT * 1000)}")

        def alone(connection: Connection) -> None:
            go_alone(connection)
            count(connection)

        works: list[Callable[[Connection], None]]
        if way == "most go alone":
            works = [*[alone] * MANY, needs_no_lock]  # The last one's outcome tells nothing of those before it.
        else:
            works = [*([fails_after_a_change] if way == "done one by one" else []), *[count] * MANY]
        try:
            await database.write(count)
            with locked(url):
                begun = time.monotonic()
                *told, last = await asyncio.gather(
                    *(
                        database.write(work, lambda number=number: [number], short=True)  # type: ignore[misc]
                        for number, work in enumerate(works)
                    ),
                    database.write(count),
                    return_exceptions=True,
                )
                took = time.monotonic() - begun
            if way == "most go alone":
                assert told.pop() is None
            elif way == "done one by one":
                assert isinstance(told.pop(0), ZeroDivisionError)
            assert took < (MANY - 2) * WAIT, "they do not wait as long one after the other"
            assert len(told) == MANY
            assert all(map(is_unavailable, [*told, last])), told
            assert await asyncio.gather(*(database.write(count) for _ in range(MANY))) == [None] * MANY
        finally:
            await database.close()


@pytest.mark.parametrize("short", [False, True], ids=["in a thread", "on the event loop"])
async def test_all_who_wait_for_another_process_are_told_so_when_one_has_waited_in_vain(
    postgresql: PostgresqlServer, *, short: bool
) -> None:
    """It holds the lock of all writers for longer than any of ours would."""
    with postgresql.database() as url:
        database = Database(f"{url}?options=-clock_timeout%3D{int(WAIT * 1000)}")
        try:
            await database.write(count)
            with psycopg.connect(url.replace("+psycopg", "")) as other:
                other.execute(f"SELECT pg_advisory_xact_lock({_WRITERS})".encode())
                begun = time.monotonic()
                asked = (database.write(count, short=short) for _ in range(MANY))
                told = await asyncio.gather(*asked, return_exceptions=True)
                assert all(map(is_unavailable, told)), told
                assert time.monotonic() - begun < (MANY - 2) * WAIT, "they do not wait one after the other"
                other.rollback()
            assert await asyncio.gather(*(database.write(count, short=short) for _ in range(MANY))) == [None] * MANY
        finally:
            await database.close()


async def test_who_came_later_than_the_one_that_waited_in_vain_has_a_try_of_its_own(
    postgresql: PostgresqlServer,
) -> None:
    with postgresql.database() as url:
        database = Database(f"{url}?options=-clock_timeout%3D{int(WAIT * 1000)}")
        try:
            await database.write(count)
            with locked(url):
                early = asyncio.create_task(database.write(count))
                await asyncio.sleep(WAIT / 2)
                later = asyncio.create_task(database.write(needs_no_lock))
                with pytest.raises(Refused):
                    await early
                await later
            await database.write(count)
        finally:
            await database.close()


async def test_all_who_wait_for_sqlite_are_told_so_when_one_has_waited_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_group, "PATIENCE_MILLISECONDS", int(WAIT * 1000))
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    try:
        await schema.upgrade(database)
        other = create_engine(database.url)
        with other.connect() as held:
            held.exec_driver_sql("BEGIN IMMEDIATE")
            begun = time.monotonic()
            asked = (database.write(count, short=bool(number % 2)) for number in range(MANY))
            told = await asyncio.gather(*asked, return_exceptions=True)
            assert all(map(is_unavailable, told)), told
            assert time.monotonic() - begun < (MANY - 2) * WAIT
            held.rollback()
        other.dispose()
        await asyncio.gather(*(database.write(count) for _ in range(MANY)))
    finally:
        await database.close()


async def test_a_read_that_has_waited_behind_one_that_waited_in_vain_is_refused_without_a_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any store: what fails here is made to look like a lock."""
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    tried = []
    goes_on = threading.Event()

    def fail(connection: Connection) -> None:
        tried.append(connection)
        goes_on.wait(10)
        connection.exec_driver_sql("SELECT * FROM nothing")

    monkeypatch.setattr("provisioning.store.lanes.is_locked", lambda _failure: True)
    try:
        asked = [asyncio.create_task(database.read(fail)) for _ in range(MANY)]
        while len(tried) < 4:
            await asyncio.sleep(0.01)
        goes_on.set()
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert all(map(is_unavailable, told)), told
        assert len(tried) <= 8, "who came before the first of them began has not waited as long, and has a try"
    finally:
        goes_on.set()
        await database.close()
