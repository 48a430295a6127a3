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
1. What tells is the index (`provisioning.program.log_end`): how many pages there are, and how many are in the file.
   Nothing is moved to find out: SQLite would begin with pages of a transaction whose others are gone.
2. The length to compare with decreases only then: a look after a commit does not hide what happened before it.
3. A log that was cut stays so as long as the program runs: others may make the file longer again. Nor is what is left
   of it moved when the database is closed (`left`): the next start says what it lacks.
4. Pages that are in the file already are not missed. SQLite is made to begin such a log anew, not to go on behind a
   hole; as long as another program reads, it cannot, and nothing must be written.
5. What cannot be told is an error, and not assumed.
6. For both stores, the broker's and provisioning's. It belongs to the store's thread.
7. The index is opened once and closed after the database: closing it takes away SQLite's own locks on it. Not even then
   while somebody has the database open, who may be in this process.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from provisioning.program import sqlite_lock
from provisioning.program.file_identity import size
from provisioning.program.log_end import Counted, close, counted

_LOOKS: Final = 100
"""At an index that is being written, which takes microseconds."""


class LogLength:
    """The log *path* of an open database."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._index: int | None = None
        self._least = 0
        self._cut = False

    def watch(self, index: Path) -> None:
        """Look at the *index*, which is open, from now on. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):  # SQLite has no log where the file system shares no memory.
            self._index = os.open(index, os.O_RDONLY | os.O_CLOEXEC)

    def seen(self, length: int) -> None:
        """Take note that so many bytes are there."""
        self._least = max(self._least, length)

    def is_short(self, length: int) -> bool:
        """Whether *length* is less than has been seen: then ask `is_cut`, outside transactions."""
        return length < self._least or self._cut

    @property
    def known_cut(self) -> bool:
        """Whether `is_cut` has found so."""
        return self._cut

    def is_cut(self, database: sqlite3.Connection | sqlite3.Cursor) -> bool:
        """Whether the log lacks pages that are nowhere else.

        Raises sqlite3's errors if that cannot be told, or nothing must be written though it does not.
        """
        if not self._cut and self._all_is_in_the_file():
            self._begin_anew(database)
        return self._cut

    @contextlib.contextmanager
    def left(self, database: Path, *, is_short: bool) -> Iterator[None]:
        """Keep SQLite, while it closes the *database*, from moving what is left of a log that was cut.

        *is_short*: whether the log is there, and shorter than it was.
        """
        with contextlib.ExitStack() as kept:
            if is_short and not self._cut:
                with contextlib.suppress(sqlite3.Error):
                    self._all_is_in_the_file()
            if self._cut:
                with contextlib.suppress(OSError):
                    kept.callback(os.close, sqlite_lock.share(database))
            if self._index is not None:
                kept.callback(close, self._index)
                self._index = None
            yield

    def _all_is_in_the_file(self) -> bool:
        """Take note of whether the log was cut; return whether it was, and nothing is missing."""
        try:
            before, index = size(self._path), self._counted()
            after = size(self._path)
        except OSError as error:
            raise sqlite3.OperationalError(f"{self._path.name} cannot be looked at: {error.strerror}") from error
        if max(before, after) >= index.least:  # Another program may have added pages meanwhile, or moved all.
            self._least = index.least
            return False
        self._cut = index.moved < index.committed
        return not self._cut

    def _counted(self) -> Counted:
        if self._index is not None:
            for _ in range(_LOOKS):
                if (found := counted(self._index)) is not None:
                    return found
        raise sqlite3.OperationalError(f"{self._path.name} is shorter than it was, and its index cannot be read")

    def _begin_anew(self, database: sqlite3.Connection | sqlite3.Cursor) -> None:
        busy, *_ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.OperationalError(
                f"{self._path} was emptied, or cut: nothing is lost, all of it is in the file; but another program "
                "reads, and keeps SQLite from beginning the log anew: end its transaction (a backup, a sqlite3 shell)"
            )
        self._least = 0
