"""Whether SQLite's write-ahead log (-wal) was emptied, or cut, under a program that has the database open.

Theory
------
SQLite knows from the log's index (-shm) how far the log goes, and writes the next pages there, however long the file
is. In a log that somebody has emptied they come behind a hole: they can be read, and every commit succeeds, until the
log is moved into the file, which that damages; or until the program is killed, after which nobody finds them. So a log
that is shorter than it was is looked at. It becomes so in order, too: by another program's checkpoint (TRUNCATE), or
when SQLite cuts it back itself; but between BEGIN IMMEDIATE and COMMIT nobody may.

Rules
-----
1. What tells is moving the pages into the file: that fails if one of them cannot be read, and counts them.
2. The length to compare with decreases only then: a look after a commit does not hide what happened before it.
3. A log that was cut stays so as long as the program runs: others may make the file longer again.
4. Pages that are in the file already are not missed. SQLite is made to begin such a log anew, not to go on behind a
   hole; as long as another program reads, it cannot, and nothing must be written.
5. What cannot be told is an error, and not assumed.
6. For both stores, the broker's and provisioning's. It belongs to the store's thread.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from provisioning.program.file_identity import size

_LOG_HEADER: Final = 32
_PAGE_HEADER: Final = 24
"""Bytes of the log (SQLite's file format, 4.1), and of each page in it."""


class LogLength:
    """The log *path* of an open database."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._least = 0
        self._cut = False

    def seen(self, length: int) -> None:
        """Take note that so many bytes are there."""
        self._least = max(self._least, length)

    def is_short(self, length: int) -> bool:
        """Whether *length* is less than has been seen: then ask `is_cut`, outside transactions."""
        return length < self._least or self._cut

    def is_cut(self, database: sqlite3.Connection | sqlite3.Cursor) -> bool:
        """Whether the log lacks pages that are nowhere else.

        Raises sqlite3's errors if that cannot be told, or nothing must be written though it does not.
        """
        if not self._cut:
            self._look(database)
        return self._cut

    def _look(self, database: sqlite3.Connection | sqlite3.Cursor) -> None:
        try:
            before = size(self._path)
            _, pages, moved = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            (page,) = database.execute("PRAGMA page_size").fetchone()
            after = size(self._path)
        except sqlite3.Error as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_IOERR_SHORT_READ:
                raise
            self._cut = True
            return
        except OSError as error:
            raise sqlite3.OperationalError(f"{self._path.name} cannot be looked at: {error.strerror}") from error
        if pages < 0:
            raise sqlite3.OperationalError(f"{self._path.name} is being moved into the file by another program")
        least = _LOG_HEADER + pages * (_PAGE_HEADER + page) if pages else 0
        if max(before, after) >= least:  # Another program may have added pages meanwhile, or moved all.
            self._least = least
        elif moved < pages:
            self._cut = True
        else:
            self._begin_anew(database)

    def _begin_anew(self, database: sqlite3.Connection | sqlite3.Cursor) -> None:
        busy, *_ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.OperationalError(
                f"{self._path} was emptied, or cut: nothing is lost, all of it is in the file; but another program "
                "reads, and keeps SQLite from beginning the log anew: end its transaction (a backup, a sqlite3 shell)"
            )
        self._least = 0
