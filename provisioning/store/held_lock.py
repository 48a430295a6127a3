"""Whether another program keeps everybody else from writing to an SQLite database: a forgotten shell, a backup.

It is found by taking the lock for an instant, which changes nothing. A service that writes gives it back with each
commit, so a lock that is not to be had for seconds is somebody's who does not.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from provisioning.pki.own_directory import quoted


def remedy(database: Path) -> str:
    """Return what to do where the lock is held."""
    return f"end its transaction (a sqlite3 shell, a backup): fuser -v {quoted(database)} names those that have it open"


def is_held(database: Path, seconds: float) -> bool:
    """Whether the lock of all writers to *database* is not to be had for *seconds*."""
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=seconds, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
    return False
