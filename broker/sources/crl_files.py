"""CRLs in files and directories: read at the start, and again whenever a file changes.

Rules
-----
1. A file that vanishes revokes nothing back: its list stays until it expires, and its absence is logged. Nothing else
   is remembered of the file, since each list may have a file name of its own. A file of a directory that cannot be read
   does not affect the others.
2. A file is compared by its time, size and inode, so replacing it by a rename is noticed, and a half-written one is
   read again when it is complete. One that could not be read is read as soon as it can be, changed or not.
3. Files are read in a thread: a directory may be on a disk that sleeps.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from broker.sources.crl_intake import CrlIntake, Window, is_open
from broker.timing.beat import next_beat
from provisioning.pki.crl import CrlProblem
from provisioning.program.given_file import LIST_BYTES, contents_of, too_large

_LIST = re.compile(r"[^.].*\.(?:crl|pem|der|r\d+)", re.IGNORECASE)

_Mark = tuple[int, int, int]
_UNREAD: _Mark = (0, 0, 0)


class CrlFiles:
    """The files and directories of the setting ``crlfile``."""

    def __init__(self, intake: CrlIntake, paths: Iterable[Path], interval: float) -> None:
        """Check every *interval* seconds."""
        self._intake = intake
        self.paths = tuple(paths)
        self._interval = interval
        self._marks: dict[Path, _Mark] = {}
        self._unmatched: dict[Path, tuple[int, int]] = {}
        """Files with lists of unknown CAs, and `CrlIntake.learned` when they were read."""
        self._baseless: dict[Path, int] = {}
        """Files with deltas whose base is not here, and `CrlIntake.bases` when they were read."""
        self._untimely: dict[Path, tuple[Window, ...]] = {}
        """Files with lists that were refused for their dates, and the periods in which those could be used."""
        self._lock = asyncio.Lock()
        self._begun = 0

    @property
    def undecided(self) -> bool:
        """Whether there is a list whose issuer was unknown, and may be known now, or whose base or time has come."""
        return bool(self._again())

    def _again(self) -> set[Path]:
        """Return the files with lists that were refused and may be used now."""
        now, learned, bases = datetime.now(UTC), self._intake.learned, self._intake.bases
        found = {path for path, windows in self._untimely.items() if is_open(windows, now)}
        found |= {path for path, known in self._unmatched.items() if known != learned}
        return found | {path for path, known in self._baseless.items() if known != bases}

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self.look()
            self._intake.alarm()
            await next_beat(self._interval)

    async def look(self) -> None:
        """Read every file that has changed, or whose issuer may be known, or base or time may have come by now.

        A caller that asks during a check waits for the next one, which it shares with all others who asked meanwhile.
        """
        begun = self._begun
        async with self._lock:
            if self._begun > begun:
                return
            self._begun += 1
            marks, gone = await asyncio.to_thread(self._survey)
            for path, reason in gone.items():
                self._unreadable(path, reason)
            for path in self._vanished(marks, gone):
                self._unreadable(path, "No such file or directory")
                del self._marks[path]
            again = self._again()
            for path, mark in marks.items():
                if mark != self._marks.get(path) or path in again:
                    await self._read(path, mark)

    async def _read(self, path: Path, mark: _Mark) -> None:
        try:
            content = await asyncio.to_thread(contents_of, path, LIST_BYTES)
        except OSError as error:  # Lack of permission or descriptors: it may be readable next time, unchanged.
            self._unreadable(path, error.strerror or str(error))
            return
        learned, bases = self._intake.learned, self._intake.bases
        taken = await self._intake.take(content, str(path))
        self._forget_refusals(path)
        if taken.unmatched:
            self._unmatched[path] = learned
        if taken.baseless:
            self._baseless[path] = bases
        if taken.untimely:
            self._untimely[path] = taken.untimely
        self._marks[path] = mark  # Not earlier: a caller of this check may give up, and cancel it.

    def _unreadable(self, path: Path, reason: str) -> None:
        """Log it, once, and read *path* as soon as possible."""
        if self._marks.get(path) != _UNREAD:
            self._intake.complain(CrlProblem.CRL_UNREADABLE, f"cannot be read: {reason}", str(path))
        self._marks[path] = _UNREAD
        self._forget_refusals(path)  # It will be read anyway, and no caller need wait for that.

    def forgotten(self, source: str) -> None:
        """Take note that a list of the file *source* is forgotten; it may be there still."""
        if (path := Path(source)) in self._marks:
            self._unmatched[path] = self._intake.learned

    def _forget_refusals(self, path: Path) -> None:
        self._unmatched.pop(path, None)
        self._baseless.pop(path, None)
        self._untimely.pop(path, None)

    def _vanished(self, marks: Mapping[Path, _Mark], gone: Mapping[Path, str]) -> list[Path]:
        """Return the files of directories that have disappeared."""
        return [each for each in self._marks if each not in marks and each not in gone and each not in self.paths]

    def _survey(self) -> tuple[dict[Path, _Mark], dict[Path, str]]:
        marks: dict[Path, _Mark] = {}
        gone: dict[Path, str] = {}
        for named in self.paths:
            try:
                found = [named]
                if named.is_dir():
                    found = sorted(each for each in named.iterdir() if _LIST.fullmatch(each.name))
                for path in found:
                    try:
                        status = path.stat()
                    except OSError as error:  # A dangling link, say: it does not hide the others.
                        gone[path] = error.strerror or str(error)
                        continue
                    if status.st_size > LIST_BYTES:
                        gone[path] = too_large(LIST_BYTES)
                    else:
                        marks[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
            except OSError as error:
                gone[named] = error.strerror or str(error)
        return marks, gone
