"""The one connection of a lane on PostgreSQL: kept open between transactions, and reopened when it is broken.

A new connection may lead to another server, a standby that has taken over. If that lacks what was committed last, and
answered, it is reported: tokens that were spent are good again, and nobody else would notice. If it was a logical
replica, its numbers are moved up (`provisioning.store.row_numbers`); if it is one still, it is not used
(`provisioning.store.subscribed`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

import structlog
from psycopg.pq import TransactionStatus
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from provisioning.directory.audit_chain import AuditHead
from provisioning.store import audit, lost_ends, row_numbers, server_faults, subscribed
from provisioning.store.executor import told
from provisioning.store.loop_waits import LoopWaits
from provisioning.store.opened_sessions import UnfitServer
from provisioning.store.postgresql_group import SharedTransaction, driver_of
from provisioning.store.server_parameters import WRITERS_DURABILITY, WRITERS_REST

log = structlog.get_logger(__name__)


class Stale(Exception):
    """The connection has broken since its last transaction; nothing was done in the one that was to begin."""


class KeptConnection:
    """A connection used by one caller at a time; opened in threads only, because that may take seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Final = engine
        self._connection: Connection | None = None
        self._waits: LoopWaits | None = None
        self._unwanted = False
        self._rests_since = -math.inf
        self._committed: AuditHead | None = None
        """The audit log's end that was committed last."""
        self._compared = False
        """Whether the open connection's server has been asked for it: until it has answered, nothing is written."""

    @property
    def is_open(self) -> bool:
        """Whether a transaction can begin without connecting; whether the server is there, only a query tells."""
        connection = self._connection
        if connection is None or self._unwanted or connection.invalidated:
            return False
        return not driver_of(connection).closed

    def renew(self) -> None:
        """Open another connection for the next transaction: this one's server takes no changes."""
        self._unwanted = True

    def doubt(self) -> None:
        """Do the same if another one has found the server silent since, or leads to another server now."""
        if self._connection is None or not self.is_open:
            return
        driver = driver_of(self._connection)
        if driver.is_former or driver.at_standby or self._rests_since < driver.silences.last:
            self._unwanted = True

    def on_loop(self, loop: asyncio.AbstractEventLoop) -> LoopWaits:
        """Wait on the event loop until `in_thread` is called; return the object that does."""
        if self._connection is None:
            raise AssertionError("a connection is opened in a thread")
        driver = driver_of(self._connection)
        if self._waits is None or self._waits.loop is not loop:
            self._waits = LoopWaits(loop, driver.pgconn.socket)
        driver.waits = self._waits
        return self._waits

    def in_thread(self) -> None:
        """Let the driver wait from now on, blocking the calling thread."""
        if self._connection is not None and self.is_open:
            driver_of(self._connection).waits = None

    @contextlib.contextmanager
    def transaction(self, pause: Callable[[], None]) -> Iterator[SharedTransaction]:
        """Run the block in a transaction under all writers' lock; raise `Stale`, or SQLAlchemy's error.

        *pause* is called wherever other code may run.
        """
        kept = self.is_open
        with self._in_use() as connection, connection.begin():
            shared = SharedTransaction(connection, pause)
            try:
                shared.begin()
            except DBAPIError as error:
                if kept and error.connection_invalidated:
                    raise Stale from error
                raise
            if not self._compared:
                self._compare(connection)
                self._compared = True
            with audit.one_end(connection):
                yield shared
                end = audit.end_of(connection)
            shared.commit()
            self._committed = end or self._committed

    @contextlib.contextmanager
    def asking(self) -> Iterator[Connection]:
        """Let the block query, and change nothing; raise `Stale`, or SQLAlchemy's error."""
        kept = self.is_open
        try:
            # If it has become silent, another connection is asked, and waited for as long as the server may take.
            with self._in_use() as connection, _prompt(connection, kept=kept), connection.begin():
                yield connection
        except DBAPIError as error:
            if kept and error.connection_invalidated:
                raise Stale from error
            raise

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[Connection]:
        connection = self._connection if self.is_open else None
        if connection is None:
            connection = self._open()
        try:
            yield connection
        finally:
            self._rests_since = time.monotonic()
            if not self.is_open or driver_of(connection).pgconn.transaction_status != TransactionStatus.IDLE:
                self.drop()

    def _compare(self, connection: Connection) -> None:
        if (fault := server_faults.other_collation(connection)) is not None:
            log.error(
                "the database orders text otherwise",
                code="COLLATION_CHANGED",
                detail=f"{fault}: {server_faults.COLLATION_REMEDY}",
            )
        lost = lost_ends.of(connection)
        if not lost.is_known(connection):  # Perhaps another process's: that one's alone may be lost.
            lost.doubt()
        known = self._committed
        if known is None:
            return
        row_numbers.move_up(connection)
        if audit.has(connection, known):
            return
        self._committed = None
        lost.doubt()
        log.error(
            "the database has lost changes that were answered: docs/postgresql.md says what to repeat, and "
            "fleet-provisioning revoke --certificate FILE revokes certificates that it has lost",
            code="STORE_WENT_BACK",
            committed=str(known),
        )

    def _open(self) -> Connection:
        self.drop()
        self._unwanted = self._compared = False
        connection = self._engine.connect()
        try:
            _prepare(connection)
        except BaseException:  # It may work, but not be what was asked for: nobody gets it.
            _leave(connection)
            raise
        self._connection = connection
        return connection

    def drop(self) -> None:
        """Close the connection without waiting for anything."""
        connection, self._connection = self._connection, None
        waits, self._waits = self._waits, None
        if connection is not None:
            _leave(connection)
        if waits is not None and not waits.loop.is_closed():
            waits.loop.call_soon_threadsafe(waits.close)


def _prepare(connection: Connection) -> None:
    """Make it fit for a writer, and see that its server is; raise SQLAlchemy's error otherwise."""
    driver = driver_of(connection)
    statement = "autocommit"
    try:
        driver.autocommit = True  # For the driver: `SharedTransaction` sends BEGIN and COMMIT itself.
        for statement in (WRITERS_REST, WRITERS_DURABILITY):  # Without them an answered commit may not be on disk.
            driver.execute(statement.encode(), prepare=False)
        statement = subscribed.FILLED
        if (filled := subscribed.found_by(driver)) is not None:
            raise UnfitServer(*filled)
    except connection.dialect.loaded_dbapi.Error as error:
        raise told(connection, statement, error) from error


def _leave(connection: Connection) -> None:
    connection.invalidate()
    connection.close()


def _prompt(connection: Connection, *, kept: bool) -> AbstractContextManager[None]:
    return driver_of(connection).prompt() if kept else contextlib.nullcontext()
