"""The lock on an SQLite database itself: one program a file, by whichever name it is opened.

Theory
------
A lock file is found by name. A second name for the database, which a hard link or a file mounted twice is, leads to
another lock file, and to another log: two brokers wrote into one file, and damaged it. So the file itself is locked,
too: one byte of it, by an open file description (fcntl(2)), behind those that SQLite locks. SQLite, sqlite3, backups
and commands take no notice of it.

Rules
-----
1. Its descriptor is closed after SQLite's: to close any descriptor of a file drops all locks of the process's own kind,
   SQLite's, on it. So `is_held` is not for a process that has the database open.
2. It is no lock of SQLite's kind, so it is not dropped in that way itself: only with the descriptor.

Does not handle: one database opened by its names in turn. What a program that was killed has left is in the log beside
the name that it used.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_FIRST_FREE: Final = 0x40000000 + 512
"""Behind SQLite's bytes for locks: one for a pending, one for a reserved, 510 for shared locks (its os.h)."""
_FIRST_SHARED: Final = 0x40000000 + 2
_FORM: Final = "hhqqi0q"
_SHARED: Final = struct.pack(_FORM, fcntl.F_RDLCK, os.SEEK_SET, _FIRST_SHARED, 1, 0)
_LOCK: Final = struct.pack(_FORM, fcntl.F_WRLCK, os.SEEK_SET, _FIRST_FREE, 1, 0)


def share(path: Path) -> int:
    """Read-lock the database *path* as who reads it does, and return the descriptor that holds the lock.

    SQLite then takes it for open, and does not move its log into it when it is closed. Raises OSError.
    """
    held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, _SHARED)
    except OSError:
        os.close(held)
        raise
    return held


def hold(path: Path) -> int:
    """Lock the database *path*, which exists, and return the descriptor that holds the lock.

    Raises BlockingIOError if another has locked it so, and OSError.
    """
    held = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, _LOCK)
    except OSError as error:
        if error.errno != errno.EINVAL:  # A kernel that is not Linux's own may know no such lock.
            os.close(held)
            raise
    return held


def is_held(path: Path) -> bool:
    """Whether somebody holds the database *path*, by any of its names. Raises OSError.

    Of one that is not there none has; of one that may not be read that is not known.
    """
    try:
        looked = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        (kind, *_) = struct.unpack(_FORM, fcntl.fcntl(looked, fcntl.F_OFD_GETLK, _LOCK))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.close(looked)
    return bool(kind != fcntl.F_UNLCK)
