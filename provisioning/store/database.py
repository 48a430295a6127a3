"""Transactions: each one a function, run whole in a thread of the store's; one writer, many readers.

Theory
------
A transaction is a function from a connection to a result. It runs in one thread from BEGIN to COMMIT, so the event loop
is crossed twice for a transaction and not four times for a statement: measured on SQLite, an enrolment's seven
statements cost a third of the time that they cost through an asynchronous driver, which has a thread for each
connection anyway (docs/decisions/0020-transactions-are-functions.md). The code in between is plain.

SQLite has one writer at a time. Letting connections fight for it through SQLite's busy handler costs sleeps and
fairness, so writes queue for one thread with one connection, in order of arrival; reads have threads of their own and,
in WAL mode, neither wait for the writer nor hold it up. PostgreSQL needs no such care: there both are the same threads,
and the queries lock the rows they decide upon (``FOR UPDATE``, which SQLite's dialect leaves out because its writer
holds everything).

Rules
-----
1. Everything that decides and records does both inside one `write`; it is durable when the call has returned.
2. A caller who is cancelled waits for the end of his transaction: he never goes on beside it.
3. The queue is bounded, and a store that cannot be used or is too busy is `Refused` with UNAVAILABLE, here and nowhere
   else.
4. SQLite: WAL, synchronous FULL (a commit is on disk before the answer leaves), foreign keys on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool

from provisioning.errors import Code, ConfigurationError, Refused

ResultT = TypeVar("ResultT")

_READERS: Final = 4
_POSTGRESQL_CONNECTIONS: Final = 10
_WAITING: Final = 4096
_BUSY_MILLISECONDS: Final = 10_000  # Only another process, such as a backup, can hold SQLite's lock.


class _Lane:
    """Threads that run transactions on connections of one kind."""

    def __init__(self, engine: Engine, threads: int, name: str) -> None:
        self._engine = engine
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting = 0

    async def run(self, work: Callable[[Connection], ResultT]) -> ResultT:
        if self._waiting >= _WAITING:
            raise Refused(Code.UNAVAILABLE, "too many requests wait for the store; try again")
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._transact, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            future.exception()  # Nobody is left to hear of it; the transaction is undone.
            raise
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._executor.shutdown()
        self._engine.dispose()

    def _transact(self, work: Callable[[Connection], ResultT]) -> ResultT:
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            if isinstance(error, OperationalError) or error.connection_invalidated:
                raise Refused(Code.UNAVAILABLE, f"the store cannot be used now ({error.orig}); try again") from error
            raise


class Database:
    """The store's connections. Open for the life of the process; `close` it at the end."""

    def __init__(self, url: str) -> None:
        """Raise `ConfigurationError` if *url* is not one of the databases that are supported."""
        parsed = _checked_url(url)
        if parsed.get_backend_name() == "sqlite":
            self._writer = _Lane(_sqlite(parsed, 1, "BEGIN IMMEDIATE"), 1, "store-writer")
            self._reader = _Lane(_sqlite(parsed, _READERS, "BEGIN"), _READERS, "store-reader")
        else:
            engine = _engine(parsed, _POSTGRESQL_CONNECTIONS)
            self._writer = self._reader = _Lane(engine, _POSTGRESQL_CONNECTIONS, "store")

    async def write(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """Run *work* in a transaction that may change the store: committed at its end, undone by any exception."""
        return await self._writer.run(work)

    async def read(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """Run *work* in a transaction that only reads, from one snapshot."""
        return await self._reader.run(work)

    async def close(self) -> None:
        """Finish what runs and close every connection."""
        for lane in {self._writer, self._reader}:
            await asyncio.to_thread(lane.close)


def _engine(url: URL, size: int) -> Engine:
    return create_engine(url, poolclass=QueuePool, pool_size=size, max_overflow=0)


def _sqlite(url: URL, size: int, begin: str) -> Engine:
    engine = _engine(url, size)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # The driver's own transaction control starts them too late (at the first change); ours is explicit.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {_BUSY_MILLISECONDS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _checked_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError("database_url is not a URL: use sqlite:///FILE or postgresql+psycopg://…") from error
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigurationError(
            f"database_url begins with {parsed.drivername!r}: use sqlite:///FILE or postgresql+psycopg://HOST/DATABASE"
        )
    return parsed
