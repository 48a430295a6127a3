"""Connections and transactions: one writer, many readers.

Theory
------
SQLite has one writer at a time. Letting connections fight for it through SQLite's busy handler costs sleeps and
fairness, so writes queue for a pool of exactly one connection, in order of arrival; reads have a pool of their own
and, in WAL mode, neither wait for the writer nor hold it up. PostgreSQL needs no such care: there both are the same
pool, and the queries lock the rows they decide upon (``FOR UPDATE``, which SQLite's dialect leaves out because its
writer holds everything).

Rules
-----
1. Everything that decides and records does both inside one `write`; it is durable when the block has ended.
2. A store that cannot be reached is `Refused` with UNAVAILABLE, here and nowhere else.
3. SQLite: WAL, synchronous FULL (a commit is on disk before the answer leaves), foreign keys on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from provisioning.errors import Code, ConfigurationError, Refused

_READERS: Final = 4
_WAIT_SECONDS: Final = 15.0
_BUSY_MILLISECONDS: Final = 10_000  # Only another process, such as a backup, can hold SQLite's lock.


class Database:
    """The store's connections. Open for the life of the process; `close` it at the end."""

    def __init__(self, url: str) -> None:
        """Raise `ConfigurationError` if *url* is not one of the databases that are supported."""
        parsed = _checked_url(url)
        self._engines: Final[list[AsyncEngine]] = []
        if parsed.get_backend_name() == "sqlite":
            self._writer = self._sqlite(parsed, size=1, begin="BEGIN IMMEDIATE")
            self._reader = self._sqlite(parsed, size=_READERS, begin="BEGIN")
        else:
            self._writer = self._reader = self._pooled(parsed, size=10)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that may change the store: committed at the end, undone by any exception."""
        with _unavailable():
            async with self._writer.begin() as connection:
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that only reads, from one snapshot."""
        with _unavailable():
            async with self._reader.begin() as connection:
                yield connection

    async def close(self) -> None:
        """Close every connection."""
        for engine in self._engines:
            await engine.dispose()

    def _pooled(self, url: URL, size: int, **options: Any) -> AsyncEngine:
        engine = create_async_engine(
            url,
            poolclass=AsyncAdaptedQueuePool,
            pool_size=size,
            max_overflow=0,
            pool_timeout=_WAIT_SECONDS,
            **options,
        )
        self._engines.append(engine)
        return engine

    def _sqlite(self, url: URL, size: int, begin: str) -> AsyncEngine:
        engine = self._pooled(url, size)

        @event.listens_for(engine.sync_engine, "connect")
        def configure(connection: Any, _record: object) -> None:
            # The driver's own transaction control starts them too late (at the first change); ours is explicit.
            connection.isolation_level = None
            cursor = connection.cursor()
            for pragma in (
                f"busy_timeout = {_BUSY_MILLISECONDS}",
                "journal_mode = WAL",
                "synchronous = FULL",
                "foreign_keys = ON",
            ):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        @event.listens_for(engine.sync_engine, "begin")
        def start(connection: Any) -> None:
            connection.exec_driver_sql(begin)

        return engine


def _checked_url(url: str) -> URL:
    parsed = make_url(url)
    if parsed.drivername not in ("sqlite+aiosqlite", "postgresql+psycopg"):
        raise ConfigurationError(
            f"database_url begins with {parsed.drivername!r}: use sqlite+aiosqlite:///FILE or "
            "postgresql+psycopg://HOST/DATABASE"
        )
    return parsed


class _unavailable:  # noqa: N801 - reads as a statement
    """Turn the failure of the database itself into a refusal that the caller may retry."""

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, PoolTimeout | OperationalError) or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        ):
            cause = error.orig if isinstance(error, DBAPIError) else "it is too busy"
            raise Refused(Code.UNAVAILABLE, f"the store cannot be used now ({cause}); try again") from error
