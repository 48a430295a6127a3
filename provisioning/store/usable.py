"""Reports a database that cannot be used when a program starts, with the reason, to the person who started it.

Strangers are told only that the store cannot be used now (`provisioning.store.lanes`, rule 4). The person who starts
the service, or runs a command on its machine, can fix it, and is told the database's message.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from provisioning.errors import ConfigurationError, Refused
from provisioning.program import full_disk, read_only
from provisioning.store import held_lock
from provisioning.store.database import Database
from provisioning.store.lanes import RIGHTS_REMEDY, is_forbidden, is_locked, is_read_only

_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@contextlib.contextmanager
def usable(database: Database) -> Iterator[None]:
    """Turn a store's refusal in the block into a `ConfigurationError` with the reason and where to look.

    What else refuses there, such as a token that signs, says so itself.
    """
    try:
        yield
    except Refused as refusal:
        if getattr(refusal.__cause__, "orig", None) is None:  # Not of the database.
            raise
        raise ConfigurationError(
            f"database_url: the database {database.shown_url} cannot be used: {_explained(refusal, database)}"
        ) from refusal


@contextlib.contextmanager
def unlocked(database: Database) -> Iterator[None]:
    """Do the same only where another program keeps the database locked: commands say what else is wrong themselves."""
    try:
        yield
    except Refused as refusal:
        if not is_locked(refusal):
            raise
        raise ConfigurationError(f"{database.shown_url}: {_explained(refusal, database)}") from refusal


def reason_of(refusal: Refused) -> str:
    """Return the database's message in one line, for authorised readers only: it names hosts and users."""
    reason = refusal.__cause__ or refusal
    return " ".join(str(getattr(reason, "orig", reason)).split())


def unfit(refusal: Refused) -> tuple[str, str] | None:
    """Return what is wrong with the server that the URL leads to, and the remedy, if no service must work there."""
    error = getattr(refusal.__cause__, "orig", None)
    remedy = getattr(error, "remedy", None)  # Of an `UnfitServer`; only PostgreSQL needs its module.
    return None if error is None or remedy is None else (error.what, remedy)


def _explained(refusal: Refused, database: Database) -> str:
    reason = reason_of(refusal)
    if database.url.get_backend_name() != "sqlite":
        if is_locked(refusal):
            return f"{reason}: another program has locked what is needed; see docs/postgresql.md"
        if is_read_only(refusal):
            return (
                f"{reason}: it is a standby, or was restored to a point in time and waits there (SELECT "
                "pg_wal_replay_resume() ends that), or its settings say so; see docs/postgresql.md"
            )
        if is_forbidden(refusal):
            return f"{reason}: {RIGHTS_REMEDY}; see docs/postgresql.md"
        if unfit(refusal) is not None:
            return f"{reason}. See docs/postgresql.md"
        return (
            f"{reason}; is it running, and may the service connect to it and make tables there? See docs/postgresql.md"
        )
    if _is_damaged(refusal):
        # SQLite says of a disk that cannot be read (EIO) that the database is damaged.
        return f"{reason}. Look first whether its disk can be read (dmesg). Restore it from the backup: docs/backup.md"
    file = Path(database.url.database or "").absolute()
    if is_locked(refusal):
        return f"{reason}: another program keeps others from writing; {held_lock.remedy(file)}"
    place = file.parent
    found = read_only.told(place) or full_disk.told(refusal, place)
    return found or f"{reason}; look at the file's owner, its directory and the disk"


def _is_damaged(refusal: Refused) -> bool:
    error = getattr(refusal.__cause__, "orig", None)
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF in _DAMAGED
