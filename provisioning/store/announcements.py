"""PostgreSQL notifications: another process on the same database has committed a change of revocations.

Theory
------
A transaction that writes events of the feed notifies; PostgreSQL delivers the notification when it commits, to every
process that listens. It has no content: the events are read from the store, in order. So a lost notification
(the connection broke) causes a delay, never a lost event: the feed polls at every heartbeat. SQLite has one
process, which notifies itself.

Rules
-----
1. One connection listens, outside the pools: it waits, and a pool's connections must not.
2. A broken connection is reopened after a pause; the listener is then called once, for what it may have missed.
3. A server that hangs, and whose kernel acknowledges what is sent, breaks no connection; nor does a former primary that
   takes no changes any more, while the address leads to its successor. So the server is asked now and then, and left if
   it says nothing (`provisioning.store.loop_waits`), or takes no changes.
4. In the same session a process says which CAs' keys it lacks (`provisioning.store.lacked_keys`), for as long as it is
   open: at once in a new one, otherwise when the server is asked. What it says would outlive its machine for hours,
   by the usual settings: the server ends this session when no sign of life has come for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final

import structlog
from sqlalchemy.engine import URL, Connection

from provisioning.store import lacked_keys
from provisioning.store.server_parameters import WATCHED_BY_SERVER, listeners_parameters

if TYPE_CHECKING:
    import psycopg

log = structlog.get_logger(__name__)

_CHANNEL: Final = "fleetgate_revocations"
TELL: Final = f"NOTIFY {_CHANNEL}"
"""Tells every process, when the transaction commits; for the end of one in which something was announced."""
_RETRY_SECONDS: Final = 1.0
_ASK_SECONDS: Final = lacked_keys.TURN_SECONDS
IS_READ_ONLY: Final = "SHOW transaction_read_only"
"""Asks PostgreSQL whether it takes no changes in this session, as it was opened: *on* or *off*."""
_FOREVER: Final = (
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout' AND setting <> '0'"
)
"""An administrator's limit (PostgreSQL 14) would end the session, which is idle by its nature, again and again."""

_ANNOUNCED: Final = "announced"
"""Of a connection's notes: whether its transaction has something to tell."""


def announce(connection: Connection) -> None:
    """Let the caller's transaction tell every process when it commits; nothing on SQLite."""
    connection.info[_ANNOUNCED] = True


def take(connection: Connection) -> bool:
    """Return whether anything was announced since this was last asked."""
    return connection.info.pop(_ANNOUNCED, None) is not None


async def listen(url: URL, heard: Callable[[], None], lacked: Callable[[], AbstractSet[int]] = frozenset) -> None:
    """Call *heard* after every commit that was announced, until cancelled; returns at once on SQLite.

    *lacked* returns the numbers of the keys that this process cannot use now.
    """
    if url.get_backend_name() != "postgresql":
        return
    import psycopg  # An extra: a service on SQLite runs without it.

    listens = told = False

    def begun() -> None:
        nonlocal listens, told
        if not listens:
            log.info("listening for other processes on the store", code="ANNOUNCEMENTS_CURRENT")
        listens, told = True, False
        heard()

    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                **listeners_parameters(url), autocommit=True
            ) as connection:
                await _hear(connection, begun, heard, lacked)
        except psycopg.Error as error:
            if not told:
                log.warning(
                    "no notifications from the store", code="ANNOUNCEMENTS_LOST", detail=" ".join(str(error).split())
                )
            listens, told = False, True
        await asyncio.sleep(_RETRY_SECONDS)


async def _hear(
    connection: psycopg.AsyncConnection[Any],
    begun: Callable[[], None],
    heard: Callable[[], None],
    lacked: Callable[[], AbstractSet[int]],
) -> None:
    """Call *begun* when *connection* listens, and *heard* for each announcement; return if its server takes no changes.

    Raises psycopg's errors.
    """
    await _asked(connection, _FOREVER)
    await _asked(connection, WATCHED_BY_SERVER)
    await _asked(connection, f"LISTEN {_CHANNEL}")
    begun()
    said: AbstractSet[int] = frozenset()
    while True:
        said = await _say(connection, said, lacked())
        async for _ in connection.notifies(timeout=_ASK_SECONDS):
            heard()
        if await (await _asked(connection, IS_READ_ONLY)).fetchone() == ("on",):
            return


async def _say(
    connection: psycopg.AsyncConnection[Any], said: AbstractSet[int], lacked: AbstractSet[int]
) -> AbstractSet[int]:
    """Say which keys are *lacked* where others were *said* to be, and return what was said."""
    for number in said ^ lacked:
        await _asked(connection, lacked_keys.saying(number, lacked=number in lacked))
    return lacked


async def _asked(connection: psycopg.AsyncConnection[Any], query: str) -> psycopg.AsyncCursor[Any]:
    """Return the answer to *query*; raise `ServerSilent` if there is none soon."""
    from provisioning.store.loop_waits import PROMPT_SECONDS, ServerSilent  # An extra, too.

    asking = asyncio.ensure_future(connection.execute(query.encode()))
    try:
        answered, _ = await asyncio.wait([asking], timeout=PROMPT_SECONDS)
    finally:
        if not asking.done():  # Cancelled, the driver would wait for the server once more.
            _hang_up(connection)
            await asyncio.wait([asking])
            asking.exception()
    if not answered:
        raise ServerSilent("the server has not answered in time: it, or its disk, hangs")
    return asking.result()


def _hang_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """Let the driver find *connection* ended: it closes it then, and whoever waits for it gets an error."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as same:
        same.shutdown(socket.SHUT_RDWR)
