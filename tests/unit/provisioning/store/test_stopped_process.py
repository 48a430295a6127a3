"""A process that is stopped in the middle of a write (SIGSTOP, a machine that sleeps) holds nobody up for long."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection, make_url

from provisioning.errors import Code, Refused
from provisioning.store import kept_connection, stalled
from provisioning.store.database import Database
from provisioning.store.postgresql_group import _WRITERS, SharedTransaction
from provisioning.store.server_parameters import rest_longer
from tests.support.postgresql import PostgresqlServer

PATIENCE = 20
TREE = Path(__file__).parents[4]
HOW = ("idle", "idle-on-loop", "sending")


@asynccontextmanager
async def writer(url: str, *hows: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.stopped_writer", url, *hows, stdout=asyncio.subprocess.PIPE, cwd=TREE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


def words(connection: Connection) -> list[str]:
    return sorted(connection.execute(text("SELECT word FROM notes")).scalars())


async def test_others_write_while_it_is_stopped_and_it_hears_that_its_own_write_was_ended(
    postgresql: PostgresqlServer,
) -> None:
    hasty = "-c lock_timeout=900ms -c idle_in_transaction_session_timeout=500ms"
    with postgresql.database() as plain:
        url = make_url(plain).update_query_dict({"options": hasty}).render_as_string(hide_password=False)
        database = Database(url)

        def note(connection: Connection) -> None:
            connection.execute(text("INSERT INTO notes VALUES ('meanwhile')"))

        try:
            await database.write(lambda connection: connection.execute(text("CREATE TABLE notes (word TEXT)")))
            async with asyncio.timeout(PATIENCE), writer(url, *HOW) as process:
                for _ in HOW:
                    assert await line(process) == "stopped"
                    await database.write(note, short=True)
                    os.kill(process.pid, signal.SIGCONT)
                    assert await line(process) == "UNAVAILABLE"
                    assert await line(process) == "again"
                assert await process.wait() == 0
            assert await database.read(words) == ["again"] * len(HOW) + ["meanwhile"] * len(HOW)
        finally:
            await database.close()


async def test_nobody_is_refused_who_waits_beside_another(postgresql: PostgresqlServer) -> None:
    with postgresql.database() as plain:
        url = make_url(plain).update_query_dict({"options": "-c lock_timeout=500ms"}).render_as_string(False)
        waiting = [Database(url) for _ in range(3)]
        try:
            await waiting[0].write(lambda connection: connection.execute(text("CREATE TABLE notes (word TEXT)")))
            async with asyncio.timeout(PATIENCE), writer(url, "sending") as process:
                assert await line(process) == "stopped"
                works = [each.write(lambda connection: connection.scalar(text("SELECT 1"))) for each in waiting]
                assert await asyncio.gather(*works, return_exceptions=True) == [1, 1, 1]
        finally:
            for each in waiting:
                await each.close()


async def test_what_computes_for_long_may_and_only_in_its_own_transaction(postgresql: PostgresqlServer) -> None:
    def limit(connection: Connection) -> str:
        shown: str = connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one()
        return shown

    def long(connection: Connection) -> str:
        rest_longer(connection)
        return limit(connection)

    with postgresql.database() as url:
        database = Database(url)
        try:
            assert [await database.write(each) for each in (limit, long, limit)] == ["5s", "1min", "5s"]
        finally:
            await database.close()


async def test_who_has_the_lock_and_is_not_in_the_middle_of_sending_keeps_it(
    postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []
    say = SharedTransaction._say

    def said(transaction: SharedTransaction, statements: str) -> str | None:
        waited.extend(each for each in statements.split("; ") if "pg_advisory_xact_lock" in each)
        return say(transaction, statements)

    monkeypatch.setattr(SharedTransaction, "_say", said)
    with postgresql.database() as plain:
        hasty = make_url(plain).update_query_dict({"options": "-c lock_timeout=50ms"})
        database = Database(hasty.render_as_string(hide_password=False))
        try:
            with psycopg.connect(plain.replace("+psycopg", "")) as other:
                other.execute(f"SELECT pg_advisory_xact_lock({_WRITERS})".encode())
                for short in (False, True):
                    with pytest.raises(Refused) as caught:
                        await database.write(words, short=short)
                    assert caught.value.code is Code.UNAVAILABLE
                assert waited == [f"SELECT pg_advisory_xact_lock({_WRITERS})"] * 2, "once each, and not once more"
                other.execute("SELECT 1")
            assert await database.write(lambda connection: connection.scalar(text("SELECT 1")), short=True) == 1
        finally:
            await database.close()


@pytest.mark.parametrize(("module", "name"), [(kept_connection, "WRITERS_REST"), (stalled, "_LOOK")])
async def test_a_session_that_ends_at_any_of_it_refuses_as_the_store_does(
    postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    monkeypatch.setattr(module, name, "SELECT pg_terminate_backend(pg_backend_pid()) -- %s")
    with postgresql.database() as plain:
        hasty = make_url(plain).update_query_dict({"options": "-c lock_timeout=50ms"})
        database = Database(hasty.render_as_string(hide_password=False))
        try:
            with psycopg.connect(plain.replace("+psycopg", "")) as other:
                other.execute(f"SELECT pg_advisory_xact_lock({_WRITERS})".encode())
                with pytest.raises(Refused) as caught:
                    await database.write(words)
                assert caught.value.code is Code.UNAVAILABLE
            monkeypatch.undo()
            assert await database.write(lambda connection: connection.scalar(text("SELECT 1"))) == 1
        finally:
            await database.close()
