"""Reports a database that cannot be used when a program starts, with the reason, to the person who started it.

Strangers are told only that the store cannot be used now (`provisioning.store.lanes`, rule 4). The person who starts
the service, or runs a command on its machine, can fix it, and is told the database's message.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from provisioning.errors import ConfigurationError, Refused
from provisioning.pki.own_directory import quoted, user_argument, user_name
from provisioning.program import full_disk, read_only
from provisioning.store import held_lock
from provisioning.store.database import Database
from provisioning.store.lanes import RIGHTS_REMEDY, is_forbidden, is_locked, is_read_only

CROWDED_REMEDY: Final = (
    "raise max_connections, or see who has them: SELECT application_name, count(*) FROM pg_stat_activity GROUP BY 1; a "
    "process of the service, and so each worker, has up to seven"
)
_CROWDED: Final = ("too many clients", "connection slots are reserved", "too many connections for")
"""What PostgreSQL says, in English: the driver has no code for a session that was never opened."""
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
def reported(database: Database) -> Iterator[None]:
    """Do the same for what a command does in a store that it has opened; a full disk is told by the command itself."""
    try:
        yield
    except Refused as refusal:
        is_full = full_disk.told(refusal, Path(database.url.database or "").absolute().parent) is not None
        if getattr(refusal.__cause__, "orig", None) is None or is_full:
            raise
        raise ConfigurationError(f"{database.shown_url}: {_explained(refusal, database)}") from refusal


def reason_of(refusal: Refused) -> str:
    """Return the database's message in one line, for authorised readers only: it names hosts and users."""
    reason = refusal.__cause__ or refusal
    return " ".join(str(getattr(reason, "orig", reason)).split())


def is_crowded(refusal: Refused) -> bool:
    """Whether a PostgreSQL server has no connection left for us."""
    reason = reason_of(refusal)
    return any(each in reason for each in _CROWDED)


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
        if is_crowded(refusal):
            return f"{reason}: {CROWDED_REMEDY}"
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
    if (found := read_only.told(place) or full_disk.told(refusal, place)) is not None:
        return found
    closed = _closed(file) or "look at the file's owner, its directory and the disk"
    return f"{reason}; {closed}"


def _closed(file: Path) -> str | None:
    """Return which of the store's files this user may not use, and what to do; None: none of them."""
    real, us = file.resolve(), os.geteuid()
    for each in (real, *(real.with_name(f"{real.name}-{part}") for part in ("wal", "shm")), real.parent):
        with contextlib.suppress(OSError):
            owner = each.stat().st_uid
            if not os.access(each, os.R_OK | os.W_OK, effective_ids=True):
                remedy = f"chmod u+rw {quoted(each)}" if owner == us else f"chown {user_argument(us)} {quoted(each)}"
                return f"{each} belongs to {user_name(owner)}, and {user_name(us)} may not read and write it: {remedy}"
    return None


def _is_damaged(refusal: Refused) -> bool:
    error = getattr(refusal.__cause__, "orig", None)
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF in _DAMAGED
