"""A service's store as it begins, as a file's content: its migrations take longer than what is tried with it."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from pathlib import Path

from provisioning.store import schema
from provisioning.store.database import Database


@functools.cache
def new_store(audit_key: bytes = b"") -> bytes:
    """Return a file of SQLite with the schema, and no rows; its audit log's beginning is sealed with *audit_key*."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "fleet.db")
        asyncio.run(_make(path, audit_key))
        return path.read_bytes()


async def _make(path: Path, audit_key: bytes) -> None:
    database = Database(f"sqlite:///{path}", audit_key)
    await schema.upgrade(database)
    await database.close()
