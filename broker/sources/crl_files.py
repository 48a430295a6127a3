"""CRLs in files and directories: read at the start, and again whenever a file changes.

Rules
-----
1. A file that vanishes revokes nothing back: its list stays until it expires, and its absence is logged. Nothing else
   is remembered of the file, since each list may have a file name of its own. A file of a directory that cannot be read
   does not affect the others; nor does one that is no file, as a pipe that somebody may never write to.
2. A file is compared by its time, size and inode, so replacing it by a rename is noticed, and a half-written one is
   read again when it is complete. One that could not be read is read as soon as it can be, changed or not.
3. Files are read in threads: a directory may be on a disk that sleeps, or answers no more. What the settings name is
   looked at independently: no file or directory waits for another one (decision 0357), and each has a thread of its
   own. Otherwise a few that hang would occupy those in which lists of all sources are read (decision 0362).
4. Whoever asks for a look waits for it, and may give up: it goes on. Else what takes longer to read than anybody waits
   would never be read, nor what comes behind it.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import re
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from io import FileIO
from pathlib import Path

from broker.sources.crl_intake import CrlIntake, Window, is_open
from broker.timing.beat import next_beat
from provisioning.pki.crl import CrlProblem
from provisioning.program.given_file import LIST_BYTES, contents_of, rest_of, too_large
from provisioning.program.own_thread import in_own_thread
from provisioning.program.shielded import shielded

_LIST = re.compile(r"[^.].*\.(?:crl|pem|der|r\d+)", re.IGNORECASE)

_Mark = tuple[int, int, int]
_UNREAD: _Mark = (0, 0, 0)
_NO_FILE = "it is no file"
_THREAD = "crl file"
_LONG = 3.0
"""Seconds after which a look lasts longer than a client waits for it (`broker.sources.asker`)."""


@dataclass(slots=True)
class _Looks:
    """The looks at one path of the settings: one is taken, and one more may wait for that."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    next: asyncio.Task[None] | None = None
    """The one that has not begun: whoever asks now sees what was written until now."""
    begun: float = math.inf
    """When the one that is taken has begun, by the loop's clock; infinity: none is."""


class CrlFiles:
    """The files and directories of the setting ``crlfile``."""

    def __init__(self, intake: CrlIntake, paths: Iterable[Path], interval: float) -> None:
        """Check every *interval* seconds."""
        self._intake = intake
        self._paths = tuple(paths)
        self._interval = interval
        self._marks: dict[Path, _Mark] = {}
        self._unmatched: dict[Path, tuple[int, int]] = {}
        """Files with lists of unknown CAs, and `CrlIntake.learned` when they were read."""
        self._baseless: dict[Path, int] = {}
        """Files with deltas whose base is not here, and `CrlIntake.bases` when they were read."""
        self._untimely: dict[Path, tuple[Window, ...]] = {}
        """Files with lists that were refused for their dates, and the periods in which those could be used."""
        self._looks: dict[Path, _Looks] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files and directories that the settings name."""
        return self._paths

    @paths.setter
    def paths(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        for path in [each for each in self._marks if not {each, each.parent} & {*self._paths}]:
            self._unreadable(path, "the settings do not name it any more")
            del self._marks[path]

    @property
    def being_read(self) -> list[Path]:
        """Those of `paths` that are looked at, or read, at the moment."""
        return [path for path in self._paths if path in self._looks and self._looks[path].lock.locked()]

    @property
    def undecided(self) -> bool:
        """Whether there is a list whose issuer was unknown, and may be known now, or whose base or time has come.

        If its file has been read for long it hangs: each client would wait for it in vain.
        """
        return any(not self._hangs(path) for path in self._again())

    def _hangs(self, path: Path) -> bool:
        looks = self._looks.get(path) or self._looks.get(path.parent)
        return looks is not None and asyncio.get_running_loop().time() - looks.begun > _LONG

    def _again(self) -> set[Path]:
        """Return the files with lists that were refused and may be used now."""
        now, learned, bases = datetime.now(UTC), self._intake.learned, self._intake.bases
        found = {path for path, windows in self._untimely.items() if is_open(windows, now)}
        found |= {path for path, known in self._unmatched.items() if known != learned}
        return found | {path for path, known in self._baseless.items() if known != bases}

    @property
    def _has_bases(self) -> bool:
        """Whether complete lists have come since a delta was read whose base was not here."""
        return any(known != self._intake.bases for known in self._baseless.values())

    async def run(self) -> None:
        """Check until cancelled."""
        begun: set[asyncio.Task[None]] = set()
        while True:
            for task in [each for each in begun if each.done()]:
                begun.remove(task)
                task.result()  # Raises if there was a bug.
            begun.update(map(self._begin, self._paths))
            self._intake.alarm()
            await next_beat(self._interval)

    async def look(self) -> None:
        """Read every file that has changed, or whose issuer may be known, or base or time may have come by now.

        A caller that asks during a check waits for the next one, which it shares with all others who asked meanwhile.
        """
        await asyncio.gather(*(shielded(self._begin(named)) for named in self._paths))
        if self._has_bases:  # A delta was read before its base.
            await asyncio.gather(*(shielded(self._begin(named)) for named in self._paths))

    async def close(self) -> None:
        """Stop checking."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _begin(self, named: Path) -> asyncio.Task[None]:
        looks = self._looks.setdefault(named, _Looks())
        if looks.next is None:
            looks.next = asyncio.create_task(self._look_at(named, looks))
            self._under_way.add(looks.next)
            looks.next.add_done_callback(self._under_way.discard)
        return looks.next

    async def _look_at(self, named: Path, looks: _Looks) -> None:
        async with looks.lock:
            looks.next, looks.begun = None, asyncio.get_running_loop().time()
            try:
                await self._look_through(named)
            finally:
                looks.begun = math.inf

    async def _look_through(self, named: Path) -> None:
        try:
            marks, gone = await in_own_thread(partial(_survey, named), _THREAD)
        except OSError as error:  # The system gives no thread.
            marks, gone = {}, {named: error.strerror or str(error)}
        for path, reason in gone.items():
            self._unreadable(path, reason)
        for path in self._vanished(named, {*marks, *gone}):
            self._unreadable(path, "No such file or directory")
            del self._marks[path]
        again = self._again()
        for path, mark in marks.items():
            if mark != self._marks.get(path) or path in again:
                await self._read(path, mark)

    async def _read(self, path: Path, mark: _Mark) -> None:
        try:
            reading = contents_of if path in self._paths else _contents_of_file
            content = await in_own_thread(partial(reading, path, LIST_BYTES), _THREAD)
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
        self._marks[path] = mark

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

    def _vanished(self, named: Path, there: Collection[Path]) -> list[Path]:
        """Return the files of the directory *named* that have disappeared."""
        return [each for each in self._marks if each.parent == named and each not in there and each not in self._paths]


def _survey(named: Path) -> tuple[dict[Path, _Mark], dict[Path, str]]:
    """Return the files of *named*, a file or a directory, that can be read, and why others cannot."""
    marks: dict[Path, _Mark] = {}
    gone: dict[Path, str] = {}
    try:
        is_directory = named.is_dir()
        found = sorted(each for each in named.iterdir() if _LIST.fullmatch(each.name)) if is_directory else [named]
    except OSError as error:
        return marks, {named: error.strerror or str(error)}
    for path in found:
        try:
            status = path.stat()
        except OSError as error:  # A dangling link, say: it does not hide the others.
            gone[path] = error.strerror or str(error)
            continue
        if is_directory and not stat.S_ISREG(status.st_mode):
            gone[path] = _NO_FILE
        elif status.st_size > LIST_BYTES:
            gone[path] = too_large(LIST_BYTES)
        else:
            marks[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return marks, gone


def _contents_of_file(path: Path, most: int) -> bytes:
    """Do as `contents_of`, but for nothing else than a file: by now a pipe may have that name.

    To open one for which nobody writes lasts for ever.
    """
    with FileIO(str(path), opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, _NO_FILE, str(path))
        return rest_of(file, most, str(path))
