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
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy.engine import URL, Connection

from provisioning.store.server_parameters import listeners_parameters

log = structlog.get_logger(__name__)

_CHANNEL: Final = "fleetgate_revocations"
TELL: Final = f"NOTIFY {_CHANNEL}"
"""Tells every process, when the transaction commits; for the end of one in which something was announced."""
_RETRY_SECONDS: Final = 1.0
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


async def listen(url: URL, heard: Callable[[], None]) -> None:
    """Call *heard* after every commit that was announced, until cancelled; returns at once on SQLite."""
    if url.get_backend_name() != "postgresql":
        return
    import psycopg  # An extra: a service on SQLite runs without it.

    lost = False
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                **listeners_parameters(url), autocommit=True
            ) as connection:
                await connection.execute(_FOREVER)
                await connection.execute(f"LISTEN {_CHANNEL}")
                log.info("listening for other processes on the store", code="ANNOUNCEMENTS_CURRENT")
                lost = False
                heard()
                async for _ in connection.notifies():
                    heard()
        except psycopg.Error as error:
            if not lost:
                log.warning("store tells nothing now", code="ANNOUNCEMENTS_LOST", detail=" ".join(str(error).split()))
            lost = True
        await asyncio.sleep(_RETRY_SECONDS)
