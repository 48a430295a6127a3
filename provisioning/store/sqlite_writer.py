"""The one connection that writes to SQLite: kept open between transactions, and replaced after a failed one.

Theory
------
A group of works is a few enrolments, and SQLite begins and commits in a twentieth of what the library takes to lend a
connection, to begin on it, to commit and to take it back. So the connection is lent once, and for the library is in one
transaction for as long as it is; what begins and ends in truth is said to the driver (`provisioning.store.prepared`
does the same with statements)::

    lent ─ BEGIN IMMEDIATE ─ works ─ COMMIT ─ BEGIN IMMEDIATE ─ works ✗ ─ given back, which rolls back ─ lent ─ …

Rules
-----
1. Whatever fails between BEGIN and COMMIT gives the connection back: nothing of a lost transaction is there afterwards.
2. Used by one caller at a time, in whichever thread.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import Connection, Engine

from provisioning.store.prepared import driver_of, told


class SqliteWriter:
    """Begins and ends transactions on a connection that it keeps."""

    def __init__(self, engine: Engine) -> None:
        """*engine* begins nothing by itself: it is said here."""
        self._engine: Final = engine
        self._connection: Connection | None = None
        self._patience: int | None = None

    def begin(self, patience: int) -> Connection:
        """Begin a transaction; wait *patience* milliseconds for SQLite's lock. Raises what SQLAlchemy raises."""
        connection = self._connection
        if connection is None:
            connection = self._connection = self._engine.connect()
            connection.begin()
        if patience != self._patience:
            self._say(connection, f"PRAGMA busy_timeout = {patience}")
            self._patience = patience
        self._say(connection, "BEGIN IMMEDIATE")
        return connection

    def commit(self) -> None:
        """Make everything durable; raise what SQLAlchemy raises if it is not."""
        if self._connection is None:
            raise AssertionError("nothing has begun")
        self._say(self._connection, "COMMIT")

    def release(self) -> None:
        """Undo what is not committed, and give the connection back."""
        connection, self._connection, self._patience = self._connection, None, None
        if connection is not None:
            connection.close()

    def _say(self, connection: Connection, text: str) -> None:
        try:
            driver_of(connection).execute(text)
        except connection.dialect.loaded_dbapi.Error as error:
            raised = told(connection, text, error)
            self.release()
            raise raised from error
