"""The connection on which other processes are heard: it is left when the server on it hangs, or takes no changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from provisioning.store import announcements, loop_waits
from tests.support.notes import PATIENCE
from tests.support.postgresql import PostgresqlServer

_SOON = 4.0
"""Seconds."""
_SESSIONS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND application_name LIKE 'fleet-provisioning%'"
)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "_ASK_SECONDS", 0.05)
    monkeypatch.setattr(announcements, "_RETRY_SECONDS", 0.01)


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[asyncio.Queue[None]]:
    """Yield what is heard: once at first, and then with each announcement and each new connection."""
    heard: asyncio.Queue[None] = asyncio.Queue()
    task = asyncio.create_task(announcements.listen(make_url(url), lambda: heard.put_nowait(None)))
    try:
        async with asyncio.timeout(PATIENCE):
            await heard.get()
            yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])


def sessions(other: psycopg.Connection) -> set[int]:
    return {pid for (pid,) in other.execute(_SESSIONS)}


async def test_a_server_that_hangs_is_left_and_heard_on_another_connection(
    postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel acknowledges what is sent: nothing else would ever end that connection."""
    monkeypatch.setattr(loop_waits, "PROMPT_SECONDS", 0.5)
    with (
        postgresql.database() as url,
        psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other,
        capture_logs() as logs,
    ):
        async with listening(url) as heard:
            (hanging,) = sessions(other)
            os.kill(hanging, signal.SIGSTOP)
            try:
                await heard.get()
                assert sessions(other) - {hanging}
                other.execute(announcements.TELL.encode())
                await heard.get()
            finally:
                os.kill(hanging, signal.SIGCONT)
    lost = [each["detail"] for each in logs if each.get("code") == "ANNOUNCEMENTS_LOST"]
    assert "has not answered in time" in lost[0]


async def test_who_stops_while_it_hangs_does_not_wait_for_it(
    postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_waits, "PROMPT_SECONDS", 10 * PATIENCE)
    asked = asyncio.Event()
    execute = psycopg.AsyncConnection.execute

    async def noted(connection: psycopg.AsyncConnection, query: bytes) -> object:
        if query == announcements.IS_READ_ONLY.encode():
            stopped.append(connection.info.backend_pid)
            os.kill(stopped[-1], signal.SIGSTOP)
            asked.set()
        return await execute(connection, query)

    stopped: list[int] = []
    monkeypatch.setattr(psycopg.AsyncConnection, "execute", noted)
    with postgresql.database() as url:
        try:
            async with listening(url):
                await asked.wait()
                ending = asyncio.get_running_loop().time()
        finally:
            for each in stopped:
                os.kill(each, signal.SIGCONT)
        assert asyncio.get_running_loop().time() - ending < _SOON, "the driver would cancel it, and wait 5 s"


async def test_a_server_that_takes_no_changes_is_left(postgresql: PostgresqlServer) -> None:
    """A former primary tells nothing: the address may lead to its successor by now."""
    with (
        postgresql.database() as url,
        psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other,
        capture_logs() as logs,
    ):
        name = url.rpartition("/")[2]
        other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        async with listening(url) as heard:
            first = sessions(other)
            other.execute("SET default_transaction_read_only = off")
            other.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
            while first & sessions(other):
                await heard.get()
            other.execute(announcements.TELL.encode())
            await heard.get()
    assert [each["code"] for each in logs if "code" in each] == ["ANNOUNCEMENTS_CURRENT"], "nothing was lost"
