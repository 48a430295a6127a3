"""Whether a database is the broker's own, whole, and of a schema that it knows: at each start, and before one.

Theory
------
A broker that starts finds out by opening its database, which may create files, take a log in, or remove one. Whoever
only asks (``--test-config``), perhaps while a broker runs, must not change anything: `look` opens the file alone, as
one that never changes, without its log and without a lock. So while there is a log, whether the file is whole is not
known before the start.

Rules
-----
1. What prevents a start is a `StoreError` that names the file and the remedy, in the same words at both occasions.
2. `look` writes nothing and waits for nobody. Of a database that a broker has open it says nothing: that has looked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from broker.store.database_files import StoreError, examine, lock_file_of, log_of
from broker.store.schema import MIGRATIONS, NEVER_WRITTEN, VERSION
from provisioning.program import full_disk, read_only
from provisioning.program.sqlite_lock import is_held

_PLACE_IS_UNFIT: Final = (
    *("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_FULL"),
    *("SQLITE_IOERR", "SQLITE_PERM"),
)
"""Prefixes of error names that do not mean that the file itself is damaged."""


def unusable(path: Path, error: Exception | str) -> StoreError:
    """Return the error to raise for *error*, met at *path*, with the remedy."""
    # SQLite says of a disk that cannot be read (EIO), too, that the database is damaged.
    remedy = (
        f"move it away, with {path.name}-wal and -shm, or put back a backup: what is in it is lost then; if it should "
        "be whole, look first whether its disk can be read (dmesg)"
    )
    name = getattr(error, "sqlite_errorname", "")
    if isinstance(error, Exception) and (found := locked(error)) is not None:
        return StoreError(f"{path} cannot be used as the broker's database: {error}: {found}, and start again")
    if isinstance(error, OSError) or name.startswith(_PLACE_IS_UNFIT):
        remedy = "see that this user can write it, and that the disk is not full, or give another state_dir"
        full = full_disk.told(error, path.parent) if isinstance(error, Exception) else None
        if (found := read_only.told(path.parent) or full) is not None:
            return StoreError(f"{path} cannot be used as the broker's database: {found}, or give another state_dir")
    return StoreError(f"{path} cannot be used as the broker's database: {error}; {remedy}")


def locked(error: BaseException) -> str | None:
    """Return what to do if *error* means that another program writes into the database, or has it locked; else None."""
    if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
        return "another program has a transaction open in it (a sqlite3 shell?): end that"
    return None


def of_another_schema(path: Path, version: int) -> StoreError:
    """Return the error to raise for *path*, whose schema has another *version*, later or unknown."""
    return StoreError(f"{path} has schema {version}, this broker knows {VERSION}: use the broker that made it")


def refuse_foreign(database: sqlite3.Connection) -> None:
    """Raise `sqlite3.DatabaseError` for another program's database, before changing anything in it."""
    try:
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except UnicodeDecodeError as error:  # Which SQLite's message repeats.
        raise sqlite3.DatabaseError("it is damaged (a name in its schema is no text)") from error
    (ours,) = database.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'deliveries'").fetchone()
    if tables and not ours:
        raise sqlite3.DatabaseError("it is another program's")


def refuse_damaged(database: sqlite3.Connection) -> None:
    """Raise `sqlite3.Error` for a database that is damaged.

    Otherwise what a damaged page held would be missing, and nobody told; a start reads all of it anyway.
    """
    (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(f"it is damaged ({' '.join(found.split())})")
    if (orphan := database.execute("PRAGMA foreign_key_check").fetchone()) is not None:
        raise sqlite3.DatabaseError(f"it is damaged (a row of {orphan[0]} refers to none of {orphan[2]})")


def refuse_unsound(database: sqlite3.Connection) -> None:
    """Raise `sqlite3.Error` for a row that no broker has written, in a database of the present schema.

    Restored, it would be an exception whenever its client connects.
    """
    for table, what in NEVER_WRITTEN.items():
        if database.execute(f"SELECT 1 FROM {table} WHERE {what} LIMIT 1").fetchone() is not None:  # noqa: S608 - ours
            raise sqlite3.DatabaseError(f"it is damaged (a row of {table} has a value that is never written)")


def look(path: Path, *, inside: bool = True) -> str | None:
    """Return what a broker would warn of that opens the database *path* now; None: nothing.

    Raises `StoreError` if it would not start, as far as that is known without looking *inside*: gigabytes to be read.
    """
    try:
        with _lock_of(path) as lock:
            if (lock is not None and _is_held(lock)) or is_held(path):
                return None
            doubt = examine(path, lock)
        for each in (path, log_of(path), lock_file_of(path)):
            if each.exists() and not os.access(each, os.R_OK | os.W_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(each))
        if inside and path.exists() and path.stat().st_size:
            _look_inside(path)
    except (sqlite3.Error, OSError) as error:
        raise unusable(path, error) from error
    return doubt


def _look_inside(path: Path) -> None:
    """Raise `StoreError`, or sqlite3.Error, for content with which a broker would not start."""
    log = log_of(path)
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?immutable=1", uri=True)) as database:
        refuse_foreign(database)
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in {0, *MIGRATIONS, VERSION}:
            raise of_another_schema(path, version)
        if not log.exists() or not log.stat().st_size:
            refuse_damaged(database)
            if version == VERSION:
                refuse_unsound(database)


@contextlib.contextmanager
def _lock_of(path: Path) -> Iterator[int | None]:
    """Yield the descriptor of the lock file beside the database *path*, or None if there is none. Raises OSError."""
    try:
        lock = os.open(lock_file_of(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield lock
    finally:
        os.close(lock)


def _is_held(lock: int) -> bool:
    """Whether a broker has the database open whose lock file is open as *lock*."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(lock, fcntl.LOCK_UN)  # At once: a broker may be about to start.
    return False
