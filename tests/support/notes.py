"""A PostgreSQL store with one table, of words, and functions that record one."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.store.database import Database
from provisioning.store.postgresql_group import _WRITERS
from tests.support.postgresql import PostgresqlServer

PATIENCE = 60
"""Seconds."""
NOTES = "CREATE TABLE notes (word TEXT UNIQUE);"
HERE = threading.main_thread().name
"""The thread of the event loop."""


@asynccontextmanager
async def with_notes(server: PostgresqlServer) -> AsyncIterator[Database]:
    """Open a store with the table on *server* for the block."""
    with server.database(more=NOTES) as url:
        opened = Database(url)
        try:
            await opened.write(noted)  # So that the first connection is not opened on the event loop.
            yield opened
        finally:
            await opened.close()


@contextmanager
def somebody_else(database: Database, *statements: str) -> Iterator[psycopg.Connection]:
    """Connect another program, which begins with *statements*, until the end of the block."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as other:
        for statement in statements:
            other.execute(statement.encode())
        yield other
        other.rollback()


def lock(database: Database) -> Any:
    """Hold the lock of all writers for the block."""
    return somebody_else(database, f"SELECT pg_advisory_xact_lock({_WRITERS})")


def note(connection: Connection, word: str) -> str:
    """Record *word*, and return it; `IntegrityError` if it is already recorded."""
    connection.execute(text("INSERT INTO notes VALUES (:word)"), {"word": word})
    return word


def noted(connection: Connection) -> set[str]:
    """Return the recorded words."""
    return set(connection.execute(text("SELECT word FROM notes")).scalars())


def thread_of(_connection: Connection) -> str:
    """Return the name of the thread in which the work runs."""
    return threading.current_thread().name
