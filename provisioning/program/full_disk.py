"""Reports a full disk to the person who runs a command or starts the service: which disk, and what to do.

The kernel and SQLite only say that "a disk" is full. It may be the one with the service's directory or the one with
temporary files, which SQLite uses for some of its work; checking both finds the full one.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_LITTLE: Final = 16 * 1024 * 1024
"""In bytes. The space of the failed write is free again when this is checked; founding a CA needs a tenth of it."""
_FEW: Final = 64
"""Files."""
_KILO: Final = 1024


def told(error: BaseException, place: Path) -> str | None:
    """Return which disk is full if that is why *error* was raised by a write below *place*; else None."""
    chain = list(_chain(error))
    says_full = any(map(_says_full, chain))
    if not says_full and not any(map(_may_mean_full, chain)):
        return None
    for each in (place, Path(tempfile.gettempdir())):
        if (found := _without_room(each)) is not None:
            return f"{found}; make room there"
    return (
        f"the disk of {place}, or what its user may have of it (quota), is full; make room there" if says_full else None
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and its causes; SQLAlchemy keeps the driver's error separately."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, getattr(each, "orig", None)]


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    return _sqlite_code(error) == sqlite3.SQLITE_FULL


def _may_mean_full(error: BaseException) -> bool:
    # If it cannot create the files beside the store (-wal, -shm), SQLite reports an I/O error for want of bytes, and
    # that it cannot open the store for want of inodes, not a full disk.
    return _sqlite_code(error) in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}


def _sqlite_code(error: BaseException) -> int:
    """Return SQLite's primary result code, 0 if it is no error of SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF if isinstance(error, sqlite3.Error) else 0


def _without_room(place: Path) -> str | None:
    try:
        found = os.statvfs(place)
    except OSError:
        return None
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    few_files = bool(found.f_files) and found.f_favail < _FEW
    if free >= _LITTLE and not few_files:
        return None
    mounted = _mounted(place)
    where = f"the disk at {place}" if mounted == place else f"the disk of {place}, mounted at {mounted},"
    files = f", and {found.f_favail} more files (inodes) fit" if few_files else ""
    return f"{where} has too little room: {free // _KILO} kB of {total // _KILO} kB are free{files}"


def _mounted(place: Path) -> Path:
    """Return the mount point of the file system with *place*."""
    real = place.resolve()
    return next(each for each in (real, *real.parents) if os.path.ismount(each))
