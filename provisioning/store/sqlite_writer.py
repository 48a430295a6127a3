"""The one connection that writes to SQLite: kept open between transactions, and replaced after a failed one.

Theory
------
A group of works is a few enrolments, and SQLite begins and commits in a twentieth of the time that SQLAlchemy takes to
check out a connection, begin, commit and return it. So the connection is checked out once, and for SQLAlchemy is then
in one transaction; the real BEGIN and COMMIT go directly to the driver (`provisioning.store.prepared`
does the same with statements)::

    checked out ─ BEGIN IMMEDIATE ─ works ─ COMMIT ─ BEGIN IMMEDIATE ─ works ✗ ─ returned: ROLLBACK ─ checked out ─ …

Rules
-----
1. Any failure between BEGIN and COMMIT returns the connection: nothing of a lost transaction remains.
2. Used by one caller at a time, in any thread.
3. Nothing is committed into files that are no longer those that were opened (`provisioning.store.sqlite_files`), nor
   behind the end of a log that was cut (`provisioning.program.log_length`).
4. A log that somebody keeps from being moved into the file is told of (`provisioning.program.log_growth`): every commit
   succeeds until the disk is full.
"""

from __future__ import annotations

import time
from typing import Final, NoReturn

import structlog
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError

from provisioning.program.log_growth import LogGrowth, held_up
from provisioning.store.executor import executor_of, keep_executor, leave_executor, told
from provisioning.store.sqlite_files import SqliteFiles

log = structlog.get_logger(__name__)

PATIENCE_MILLISECONDS: Final = 10_000
"""How long to wait for SQLite's lock: only another process, such as a backup, can hold it."""


class SqliteWriter:
    """Begins and ends transactions on a connection that it keeps."""

    def __init__(self, engine: Engine, files: SqliteFiles | None) -> None:
        """*engine* begins no transactions by itself: this class does. *files* has them, None: all is in memory."""
        self._engine: Final = engine
        self._files: Final = files
        self._connection: Connection | None = None
        self._patience: int | None = None
        self._growth: Final = None if files is None else LogGrowth(files.path, log)

    def begin(self, patience: int) -> Connection:
        """Begin a transaction; wait *patience* milliseconds for SQLite's lock. Raises SQLAlchemy's errors."""
        connection = self._connection
        if connection is None:
            connection = self._connection = self._engine.connect()
            connection.begin()
            keep_executor(connection)
        while True:
            if self._files is not None and self._files.log_is_short:
                if not patience:  # To look may take a while: whoever can wait does.
                    raise self._error("BEGIN", "the log is shorter than it was")
                self._check_not_cut(connection, self._files)
            self._wait_for(connection, patience)
            self._say(connection, "BEGIN IMMEDIATE")
            if self._files is None or not self._files.log_is_short:  # From here on nobody may empty it.
                return connection
            self._say(connection, "ROLLBACK")

    def commit(self) -> None:
        """Make everything durable; raise SQLAlchemy's error if it is not."""
        if self._connection is None:
            raise AssertionError("nothing has begun")
        if self._files is not None and (lost := self._files.lost()) is not None:
            self._refuse(self._connection, self._files, lost)
        self._say(self._connection, "COMMIT")
        if self._files is not None and self._growth is not None:
            self._look_at_log(self._connection, self._files, self._growth)

    def _check_not_cut(self, connection: Connection, files: SqliteFiles) -> None:
        """Raise SQLAlchemy's error if the log was cut, or if that cannot be told."""
        self._wait_for(connection, 0)
        try:
            cut = files.log_is_cut(executor_of(connection))
        except connection.dialect.loaded_dbapi.Error as error:
            raised = told(connection, "PRAGMA wal_checkpoint(PASSIVE)", error)
            self.release()
            raise raised from error
        if cut:
            self.release()
            raise self._error("BEGIN", files.cut)

    def _look_at_log(self, connection: Connection, files: SqliteFiles, growth: LogGrowth) -> None:
        length = files.note_log()
        if length >= growth.unusual:
            if growth.asks(time.monotonic()):
                growth.seen(length, held_up(executor_of(connection), files.path))
        elif growth.grows:
            growth.seen(length, None)

    def _refuse(self, connection: Connection, files: SqliteFiles, lost: str) -> NoReturn:
        """Roll back, and raise SQLAlchemy's error that says *lost*."""
        self._say(connection, "ROLLBACK")
        if files.log_is_gone:  # The log is open still: not even kill -9 loses what it holds once it is in the file.
            self._say(connection, "PRAGMA wal_checkpoint")
        elif files.log_is_short:
            self._check_not_cut(connection, files)
        self.release()
        raise self._error("COMMIT", lost)

    def _error(self, statement: str, what: str) -> OperationalError:
        return OperationalError(statement, None, self._engine.dialect.loaded_dbapi.OperationalError(what))

    def _wait_for(self, connection: Connection, patience: int) -> None:
        if patience != self._patience:
            self._say(connection, f"PRAGMA busy_timeout = {patience}")
            self._patience = patience

    def release(self) -> None:
        """Roll back what is not committed, and return the connection."""
        connection, self._connection, self._patience = self._connection, None, None
        if connection is not None:
            leave_executor(connection)
            connection.close()

    def _say(self, connection: Connection, text: str) -> None:
        try:
            executor_of(connection).execute(text)
        except connection.dialect.loaded_dbapi.Error as error:
            raised = told(connection, text, error)
            self.release()
            raise raised from error
