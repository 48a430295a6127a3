"""PostgreSQL's processes stop, and its kernel acknowledges what is sent: nobody waits for ever, nothing by half."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
from collections.abc import Awaitable, Iterator

import pytest
from psycopg.waiting import Ready, Wait
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store import engines, loop_waits
from provisioning.store.database import Database
from provisioning.store.loop_waits import LoopWaits, ServerSilent, Silence
from provisioning.store.postgresql_group import driver_of
from tests.support.notes import PATIENCE, note, noted, somebody_else

_OTHERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
_SOON = 0.3
"""Seconds; in force only where nothing will be said at all."""


@contextlib.contextmanager
def stopped(*sessions: int) -> Iterator[None]:
    for each in sessions:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in sessions:
            os.kill(each, signal.SIGCONT)


def session(connection: Connection) -> int:
    return driver_of(connection).info.backend_pid


def one(connection: Connection) -> object:
    return connection.execute(text("SELECT 1")).scalar_one()


def refused(outcome: object) -> bool:
    return isinstance(outcome, Refused) and outcome.code is Code.UNAVAILABLE


@pytest.mark.parametrize(("first", "rested"), [("write", math.inf), ("read", math.inf), ("read", -1.0)])
async def test_sessions_that_have_stopped_while_nobody_used_them_are_left_and_others_opened(
    database: Database, monkeypatch: pytest.MonkeyPatch, first: str, rested: float
) -> None:
    """One waits, for all; of all only who reads is refused, and not even he if his session has *rested*."""
    await database.look(noted)
    await database.read(noted)
    with somebody_else(database) as other:
        sessions = [each for (each,) in other.execute(_OTHERS)]
    monkeypatch.setattr(engines, "_RESTED_SECONDS", rested)
    with stopped(*sessions):
        async with asyncio.timeout(PATIENCE):
            with monkeypatch.context() as hasty:
                hasty.setattr(loop_waits, "PROMPT_SECONDS", _SOON)
                asking: Awaitable[object] = getattr(database, first)(one)
                found = (await asyncio.gather(asking, return_exceptions=True))[0]
            assert refused(found) if (first, rested) == ("read", math.inf) else found == 1
            monkeypatch.setattr(loop_waits, "PROMPT_SECONDS", 2 * PATIENCE)
            assert await database.write(lambda connection: note(connection, "a"), short=True) == "a"
            assert await database.look(noted) == await database.read(noted) == {"a"}
    assert not database.write_failed


async def test_who_is_at_it_when_the_server_stops_is_refused_and_nothing_of_it_stays(
    database: Database, *, short: bool
) -> None:
    stops = contextlib.ExitStack()

    def halves(connection: Connection) -> None:
        note(connection, "half")
        driver = driver_of(connection)
        driver.silence = Silence(_SOON, _SOON)
        stops.enter_context(stopped(session(connection)))
        note(connection, "other half")

    with stops:
        async with asyncio.timeout(PATIENCE):
            outcomes = await asyncio.gather(
                database.write(halves, short=short),
                database.read(lambda connection: driver_of(connection).closed),
                return_exceptions=True,
            )
        assert refused(outcomes[0])
        assert isinstance(outcomes[0].__cause__.orig, ServerSilent)  # type: ignore[union-attr]
        assert outcomes[1] is False, "others read meanwhile"
        assert database.write_failed
    assert await database.write(lambda connection: note(connection, "whole"), short=short) == "whole"
    assert await database.look(noted) == {"whole"}


async def test_a_commit_is_waited_for_no_longer_in_a_thread(database: Database, *, short: bool) -> None:
    """A standby that does not confirm: whatever else was in the transaction, all were told after 30 seconds only."""
    stops = contextlib.ExitStack()

    def stopping(connection: Connection) -> str:
        driver = driver_of(connection)
        driver.silence = Silence(_SOON, math.inf)
        stops.enter_context(stopped(session(connection)))
        return "a"

    with stops:
        async with asyncio.timeout(PATIENCE):
            (outcome,) = await asyncio.gather(database.write(stopping, short=short), return_exceptions=True)
    assert refused(outcome)


async def test_how_long_it_may_say_nothing_follows_from_the_limits_that_the_session_has(
    database: Database,
) -> None:
    limits: list[Silence] = []
    for options in (
        "",
        "-c lock_timeout=1min -c statement_timeout=2min",
        "-c lock_timeout=0",
        "-c statement_timeout=0",
    ):
        url = database.url.update_query_dict({"options": options}).render_as_string(hide_password=False)
        other = Database(url)
        try:
            limits.append(await other.write(lambda connection: driver_of(connection).silence))
        finally:
            await other.close()
    assert limits == [Silence(15, 35), Silence(65, 125), Silence(35, 35), Silence(15, math.inf)]


@pytest.mark.parametrize("arrived", [True, False])
async def test_what_has_arrived_while_this_process_was_stopped_counts(arrived: bool) -> None:
    """After SIGCONT a loop may see first that it is late."""
    outcomes: list[object] = []
    ours, servers = socket.socketpair()
    with ours, servers, contextlib.closing(LoopWaits(asyncio.get_running_loop(), ours.fileno())) as waits:

        def asks() -> None:
            try:
                outcomes.append(waits.until(Wait.R, 0.0))
            except ServerSilent:
                outcomes.append(ServerSilent)

        waits.run(asks)
        if arrived:
            servers.send(b"answer")
        waits._due()
    assert outcomes == [Ready.R if arrived else ServerSilent]
