"""The broker's database on disk: the file, its write-ahead log (-wal), and a lock that says which two go together.

Theory
------
SQLite finds its log by name, and says nothing where that goes wrong. If the file is deleted while it is open, SQLite
writes on into one that is gone with the process; if the log is deleted, what has not been moved into the file is gone.
At a start it removes a log whose file is missing, and reads a log that belongs to another file into this one. Messages
that were acknowledged would be lost, or mixed with those of an older copy. So file and log are compared with what was
there: before they are opened, and with each transaction. While they are open, the lock file names both. If the log's
index (-shm) was deleted, a program that opens the database makes another one: neither then knows what the other reads,
and the copy that a backup makes may be mixed. In a log that was emptied, SQLite writes on behind its end
(`provisioning.program.log_length`).

Rules
-----
1. A file that is not as it was is reported by a `StoreError`, or a text, with the remedy. Nothing is removed here.
2. A copy of all files is as good as the originals: something is wrong only if one of the two is another file, and the
   other one is the same. Nothing is wrong if the lock file that names them is another: it was copied, or is on a file
   system that numbers its inodes anew at each mount, as in some containers.
3. A lock file that was deleted is made again: it tells the next start what belongs together. Nobody gets in meanwhile:
   the database itself is locked, too (`provisioning.program.sqlite_lock`).
4. The lock file is emptied, on disk, before SQLite removes its log: an orderly end leaves no trace.

Does not handle: a log that is gone with the lock file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from provisioning.program.durable_names import sync_names
from provisioning.program.file_identity import MISSING, identity, inode, inode_and_size, size
from provisioning.program.log_end import cut
from provisioning.program.log_length import LogLength


class StoreError(Exception):
    """The database cannot be used; the text names the file and the remedy."""


def log_of(path: Path) -> Path:
    """Return where SQLite keeps the write-ahead log of the database *path*: beside the file that a link leads to."""
    real = Path(os.path.realpath(path))
    return real.with_name(f"{real.name}-wal")


def index_of(path: Path) -> Path:
    """Return where SQLite keeps the index of that log."""
    return log_of(path).with_name(f"{log_of(path).name.removesuffix('-wal')}-shm")


def lock_file_of(path: Path) -> Path:
    """Return the lock file of the database *path*: beside the file that a link leads to, so every link has the same."""
    return Path(os.path.realpath(path)).with_suffix(".lock")


def examine(path: Path, lock: int | None) -> str | None:
    """Return what must be said of the database *path*, though it can be opened; None: nothing.

    Raises `StoreError` and OSError.
    Called before it is opened. *lock* is its lock file, open; None: there is none.
    """
    log = log_of(path)
    both = f"{log.name} and {index_of(path).name}"
    if not size(path) and size(log):
        raise StoreError(
            f"{path} is missing, or empty, but not {log.name} beside it: put the file back that it belongs to; or "
            f"remove {both} to begin with an empty database: sessions and messages are lost then"
        )
    if lock is not None and (doubt := _not_together(path, lock, both)) is not None:
        return doubt
    return _cut_since(path, log)


def _not_together(path: Path, lock: int, both: str) -> str | None:
    log = log_of(path)
    last = os.pread(lock, 200, 0).decode("ascii", "replace").split()
    if len(last) not in {2, 3} or last[2:] not in ([], [identity(lock_file_of(path))]):
        return None  # The last process ended in order, or was of an older version; or the files are not where it was.
    (last_file, last_log), file, its_log = last[:2], identity(path), identity(log)
    if its_log == last_log != MISSING and file != last_file:
        raise StoreError(
            f"{path} is not the file that {log.name} beside it belongs to: put that back; or, if it is a backup, "
            f"remove {both}: they would damage it; or, if it is a copy of that very file, made since, empty "
            f"{lock_file_of(path)}"
        )
    if file == last_file and its_log == MISSING != last_log:
        return (
            f"{log.name} is gone since the broker was killed: what was acknowledged last is lost, unless sqlite3 was "
            f"used on {path.name} meanwhile, which takes it in"
        )
    return None


def _cut_since(path: Path, log: Path) -> str | None:
    index = index_of(path)
    if (found := cut(log, index)) is None:
        return None
    was = f"{log} was cut, or damaged: of {found.committed} pages that were committed {found.there} are left"
    if found.is_torn:
        raise StoreError(
            f"{was}, and {path.name} may have parts of what is missing: put the log back, or a backup "
            "(docs/backup.md); or, to use what there is all the same, or if both were restored together, remove "
            f"{index.name}"
        )
    if found.is_older:
        raise StoreError(
            f"{was}, which are older than {path.name}, and would undo or damage it: nothing is lost if {log.name}, "
            f"{index.name} and {lock_file_of(path).name} are removed before it is opened; but if {path.name} and its "
            f"log were restored together, beside an index that was there, remove {index.name} alone"
        )
    return f"{was}: what was acknowledged last is lost"


class DatabaseFiles:
    """The files of one database, whose lock file is open as *lock*, and locked."""

    def __init__(self, path: Path, lock: int) -> None:
        self._path = path
        self._log = log_of(path)
        self._index = index_of(path)
        self._lock_file = lock_file_of(path)
        self._lock = lock
        self._length = LogLength(self._log)
        self._opened = (0, 0, 0)
        """The inode numbers of the file, of its log and of that's index: none is used again while they are open."""

    def opened(self) -> None:
        """Take note of the files, which are open now. Raises OSError."""
        self._opened = inode(self._path), inode(self._log), inode(self._index)
        self._length.watch(self._index)
        self.note_log()
        sync_names(self._path.parent)  # The log is new, perhaps: after a power failure it must not be missing.
        self._note()

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Have SQLite close the database meanwhile, and remove its log: the names of both are forgotten before.

        It does not remove it if another file is in the place of the one that was opened; nor if it was cut: that is
        left to the next start.
        """
        is_short = False
        with contextlib.suppress(OSError):  # The worst is a warning at the next start.
            is_short = self.log_is_short
        with self._length.left(self._path, is_short=is_short):
            with contextlib.suppress(OSError):
                if not self._length.known_cut and (self._opened == (0, 0, 0) or not self._file_is_gone()):
                    self._write_lock("")
            yield

    def lost(self, database: sqlite3.Connection) -> str | None:
        """Return what has become of the files that *database* has open; None: they are there.

        Raises OSError, and sqlite3's errors.
        """
        if inode(self._lock_file) != os.fstat(self._lock).st_ino:
            self._lock_again()
        if self._file_is_gone():
            return (
                f"{self._path} was deleted, or another file is in its place: put it back; or stop the broker, put back "
                "a backup, and start it"
            )
        (log, length), index = inode_and_size(self._log), inode(self._index)
        for is_gone, each in ((log != self._opened[1], self._log), (index != self._opened[2], self._index)):
            if is_gone:
                return f"{each} was deleted: nothing is lost; stop the broker in order (SIGTERM), and start it"
        return self.cut(database) if self._length.is_short(length) else None

    @property
    def log_is_short(self) -> bool:
        """Whether the log is there, and shorter than it was: then ask `cut`. Raises OSError."""
        log, length = inode_and_size(self._log)
        return log == self._opened[1] and self._length.is_short(length)

    def cut(self, database: sqlite3.Connection) -> str | None:
        """Return what is to be said if somebody has cut the log. Raises sqlite3's errors. Not within a transaction."""
        if not self._length.is_cut(database):
            return None
        return (
            f"{self._log} was emptied, or cut: what was written last is lost, acknowledged messages among it. Stop the "
            "broker, and start it"
        )

    def _lock_again(self) -> None:
        try:
            again = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # The directory is gone, and the file with it: that is said of the file.
            return
        try:
            if os.path.sameopenfile(again, self._lock):  # It is back: our own lock would keep us out.
                return
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.dup2(again, self._lock, inheritable=False)
        except BlockingIOError:  # Another broker is about to be refused; or it has another file that is in the place.
            return
        finally:
            os.close(again)
        self._note()

    def _note(self) -> None:
        """Name both files, and itself, in the lock file. Raises OSError."""
        self._write_lock(f"{identity(self._path)} {identity(self._log)} {identity(self._lock_file)}\n")

    @property
    def log_is_gone(self) -> bool:
        """Whether the log was deleted, or another is in its place. Raises OSError."""
        return inode(self._log) != self._opened[1]

    def note_log(self) -> int:
        """Take note of how long the log is, and return it. Raises OSError."""
        length = size(self._log)
        self._length.seen(length)
        return length

    def _file_is_gone(self) -> bool:
        return inode(self._path) != self._opened[0]

    def _write_lock(self, text: str) -> None:
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, text.encode(), 0)
        os.fsync(self._lock)
