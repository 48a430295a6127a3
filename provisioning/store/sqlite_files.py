"""SQLite's file and its write-ahead log (-wal): whether they belong together, and are there while they are written.

Theory
------
SQLite finds its log by name. If a database is restored beside the log of another, SQLite reads that log into the copy:
older and newer pages are mixed, and an index may lack a revocation. If the file is deleted or replaced while the
service runs, SQLite writes on into one that is gone with the process, revocations too. So a running service names both
in a file beside them, and whoever opens the store compares; at each commit the service checks that they are there.

Rules
-----
1. Files that do not belong together are not opened, and files that are gone are not written to; the error names the
   remedy. The same if the log's index (-shm) was deleted: whoever opens the store then makes another one, and two
   programs that know nothing of each other write to one place of the log.
2. A copy of all files is as good as the originals: something is wrong only if one of the two is another file, and the
   other one is the same. Nothing is wrong if the file with the names itself is not where it was written: it was copied,
   or is on a file system that numbers its inodes anew at each mount, as in some containers.
3. Nothing is written behind the end of a log that was emptied or cut (`provisioning.program.log_length`).
4. An orderly end leaves no names; or, while somebody still reads, who then takes the log in, the word `_ENDED` behind
   them. A command that takes the log in after the service was killed leaves none either; until it has removed them, a
   lock says so (`provisioning.store.closing_lock`).
5. A loss is reported by the program that finds it, and by the service even if another program opens the store first, in
   which case SQLite removes the evidence. So it is noted behind the names, until the service names the files (`keep`).

The same for the broker: `broker.store.database_files`, which also keeps a second broker out. Does not handle: a file
that was overwritten in its place (`cp`); a log that was left by a command that was killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from provisioning.errors import ConfigurationError
from provisioning.program.durable_names import sync_names
from provisioning.program.file_identity import MISSING, identity, inode, inode_and_size, size
from provisioning.program.log_end import Cut, cut
from provisioning.program.log_length import LogLength
from provisioning.store import closing_lock

log = structlog.get_logger(__name__)

_ENDED: Final = "ended"
_GONE: Final = "gone"
_LEFT: Final = re.compile("([0-9]+)/([0-9]+)")
"""Behind the names, after a loss: the log was gone; or so many of its pages were left, of so many."""
_LOST: Final = "what was committed last is lost, revocations too"
_REPEAT: Final = (
    "docs/backup.md says what to repeat; lost certificates are revoked by fleet-provisioning revoke --certificate FILE"
)


class SqliteFiles:
    """The files of one store; made before they are opened."""

    def __init__(self, path: Path) -> None:
        """Raise `ConfigurationError` if the file and the log beside it do not belong together."""
        self.path: Final = path
        real = Path(os.path.realpath(path))  # Where SQLite has its log if *path* is a link.
        self._log = real.with_name(f"{real.name}-wal")
        self._names = real.with_name(f"{real.name}-files")
        self._index = real.with_name(f"{real.name}-shm")
        self._inodes = (0, 0, 0)
        self._length: Final = LogLength(self._log)
        self._kept = ""
        self._log_found = MISSING
        self._had_its_log = False
        self.doubt: Final = self._examine()
        """What must be said of the store, though it can be opened; None: nothing."""

    def keep(self) -> None:
        """Name both, which are open now, and have `lost` tell of them from now on."""
        self._inodes = inode(self.path), inode(self._log), inode(self._index)
        self._log_found = identity(self._log)
        with contextlib.suppress(OSError):  # Then a log that is short is an error.
            self._length.watch(self._index)
        self.note_log()
        self._kept = f"{identity(self.path)} {self._log_found}"
        try:
            self._write(self._kept)
            sync_names(self._names.parent)
        except OSError as error:  # A full disk must not keep the service from starting.
            log.warning("lock file not written", code="LOCK_NOT_WRITTEN", file=str(self._names), detail=error.strerror)

    def lost(self) -> str | None:
        """Return what has become of the files since `keep`; None: they are there."""
        if self._inodes == (0, 0, 0):
            return None
        file, its_log, its_index = self._inodes
        with contextlib.suppress(OSError):  # Then SQLite says what is wrong with the disk.
            if inode(self.path) != file:
                return (
                    f"{self.path} was deleted, or another file is in its place: put it back; or stop the service, "
                    "put back a backup (docs/backup.md), and start it"
                )
            log_found, length = inode_and_size(self._log)
            if log_found != its_log:
                return f"{self._log} was deleted: nothing is lost; stop the service in order (SIGTERM), and start it"
            if inode(self._index) != its_index:
                return (
                    f"{self._index} was deleted: end the service by kill -9, for a stop in order would lose what "
                    "commands have changed since, and start it; nothing is lost then"
                )
            if self._length.is_short(length):
                return f"{self._log} was emptied, or cut, during a change, which was not made"
        return None

    @property
    def cut(self) -> str:
        """What is to be said if somebody has cut the log."""
        return (
            f"{self._log} was emptied, or cut: what was committed last is lost, revocations too. Stop the service, and "
            "start it; docs/backup.md says what to repeat"
        )

    def note_log(self) -> int:
        """Take note of how long the log is, and return it; 0: the files are not kept, or it cannot be seen."""
        length = 0
        if self._inodes != (0, 0, 0):
            with contextlib.suppress(OSError):
                length = size(self._log)
        self._length.seen(length)
        return length

    @property
    def log_is_short(self) -> bool:
        """Whether the log is there, and shorter than it was: then ask `log_is_cut`."""
        with contextlib.suppress(OSError):
            log_found, length = inode_and_size(self._log)
            return self._length.is_short(length) and log_found == self._inodes[1]
        return False

    def log_is_cut(self, database: sqlite3.Cursor) -> bool:
        """Whether somebody has cut the log, outside a transaction of *database*. Raises sqlite3's errors."""
        return self._length.is_cut(database)

    @property
    def log_is_gone(self) -> bool:
        """Whether the log alone was deleted since `keep`."""
        return inode(self.path) == self._inodes[0] and inode(self._log) != self._inodes[1]

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Close the store meanwhile. Notes, if they are kept, that now whoever has it open, too, may take the log in.

        But not one that was cut, which is left to the next start. Meanwhile a log that is gone is no loss; so call
        `closed` within, when all is closed.
        """
        with closing_lock.held(self._names), self._length.left(self.path, is_short=self.log_is_short):
            if self._length.known_cut:
                log.error("the store's last changes are gone", code="STORE_FAILED", detail=self.cut)
            elif self._kept:
                with contextlib.suppress(OSError):  # Then the next start warns for nothing.
                    self._write(f"{self._kept} {_ENDED}")
            with contextlib.suppress(OSError):
                self._had_its_log = identity(self._log) == self._log_found != MISSING
            yield

    def closed(self) -> None:
        """Forget the names if SQLite has taken the log in, and removed it: it was the last to close the store."""
        with contextlib.suppress(OSError):  # What is left is said at the next start, and harms nothing.
            log_now = identity(self._log)
            # Another one belongs to a program that opened the store since. If it was there before, ours was deleted.
            is_taken_in = log_now == MISSING or (self._had_its_log and log_now != self._log_found)
            both = [identity(self.path), self._log_found]
            if is_taken_in and self._named() in (both, [*both, _ENDED]):
                self._names.unlink()

    def _examine(self) -> str | None:
        both = f"{self._log.name} and {self._log.name.removesuffix('-wal')}-shm"
        try:
            if not size(self.path) and size(self._log):
                raise ConfigurationError(
                    f"the store {self.path} is missing, or empty, but not {self._log.name} beside it: put the file "
                    f"back that it belongs to; or, to restore a backup, remove {both} first (docs/backup.md)"
                )
            named, file = self._found()
            if self._is_gone(named, file):  # To note it while a command ends would tell of a loss for ever.
                is_closed = closing_lock.is_held(self._names)
                named, file = self._found()
                if is_closed and self._is_gone(named, file):
                    self._log_found = named[1]  # It was taken in: the last of all who close it forgets the names.
        except OSError:  # SQLite says what is wrong with it.
            return None
        loss = None if not named else self._not_together(named, file, both)
        loss = loss or self._cut_since(cut(self._log, self._index))
        if loss is not None:
            self._note(loss, file)
        elif named[2:] and named[0] == file and named[2] != _ENDED:
            loss = named[2]  # Whoever has opened it since has taken the evidence away.
        return None if loss is None else self._told(loss)

    def _found(self) -> tuple[list[str], str]:
        """Return what is named, and what the file is; look at the log. Raises OSError."""
        named, file, self._log_found = self._named(), identity(self.path), identity(self._log)
        return named, file

    def _is_gone(self, named: list[str], file: str) -> bool:
        """Whether the log alone is not there, and nothing lost was noted."""
        return named[:1] == [file] and self._log_found == MISSING != named[1] and not named[2:]

    def _not_together(self, named: list[str], file: str, both: str) -> str | None:
        """Return the word for what is lost, None if nothing is."""
        its_file, its_log = named[:2]
        if self._log_found == its_log != MISSING and file != its_file:
            raise ConfigurationError(
                f"the store {self.path} is not the file that {self._log.name} beside it belongs to: put that back; "
                f"or, if it is a backup, remove {both}: they would damage it (docs/backup.md); or, if it is a copy of "
                f"that very file, made since, remove {self._names.name}"
            )
        return _GONE if self._is_gone(named, file) else None

    def _cut_since(self, found: Cut | None) -> str | None:
        """Return the word for what is lost, None if nothing is."""
        if found is None:
            return None
        was = self._was_cut(found.there, found.committed)
        if found.is_torn:
            raise ConfigurationError(
                f"{was}, and {self.path.name} may have parts of what is missing: put the log back, or restore a backup "
                f"(docs/backup.md); or, to use what there is all the same, remove {self._index.name}, and have "
                f"fleet-provisioning doctor look whether it is damaged. {self._restored}"
            )
        if found.is_older:
            raise ConfigurationError(
                f"{was}, which are older than {self.path.name}, and would undo or damage it: nothing is lost if "
                f"{self._log.name}, {self._index.name} and {self._names.name} are removed before it is opened. "
                f"{self._restored}"
            )
        return f"{found.there}/{found.committed}"

    @property
    def _restored(self) -> str:
        return (
            f"But if {self.path.name} and its log were restored together, beside an index that was there, or the power "
            "failed within a minute after the log was emptied in order (wal_checkpoint(TRUNCATE)), remove "
            f"{self._index.name} alone"
        )

    def _was_cut(self, there: int | str, committed: int | str) -> str:
        return f"{self._log} was cut, or damaged: of {committed} pages that were committed {there} are left"

    def _told(self, loss: str) -> str:
        if (left := _LEFT.fullmatch(loss)) is not None:
            return f"{self._was_cut(*left.groups())}: {_LOST}: {_REPEAT}"
        return (
            f"{self._log.name} is gone since the service was killed: {_LOST}, "
            f"unless sqlite3 was used on {self.path.name} meanwhile, which takes it in: {_REPEAT}"
        )

    def _note(self, loss: str, file: str) -> None:
        """Note behind the names, for the service, what is lost (rule 5)."""
        try:
            self._write(f"{file} {self._log_found} {loss}")
            sync_names(self._names.parent)
        except OSError as error:  # Nobody is told later: so say it now, as an error, which commands show.
            detail = f"{self._told(loss)}; and {self._names} cannot be written: {error.strerror}"
            log.error("the store's last changes are gone", code="STORE_LOG_MISSING", detail=detail)

    def _named(self) -> list[str]:
        """Return what is named, nothing if there is none, or if it was written by an older version or elsewhere."""
        try:
            at, *named = self._names.read_text(encoding="ascii", errors="replace").split() or [MISSING]
        except FileNotFoundError:
            return []
        return named if len(named) in {2, 3} and at == identity(self._names) else []

    def _write(self, names: str) -> None:
        descriptor = os.open(self._names, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.geteuid() == 0:  # A command of root's, before the owner's service.
                owner = self.path.stat()
                with contextlib.suppress(OSError):  # On a network file system that maps root to another user.
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{identity(self._names)} {names}\n".encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
