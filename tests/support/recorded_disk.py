"""A record of what programs do to the disk, from which `tests.support.power_cuts` makes what a power failure leaves.

    disk = RecordedDisk(folder, log)                  # everything below *folder* is on disk now
    … start programs with disk.environment …
    disk.mark("…")                                    # somebody was told something, after all that was recorded before

A test that kills a process sees everything that it has written, since the kernel still has it. A power failure leaves
what was synced, and of the rest whatever the disk happened to write. So the calls are recorded with their data, in one
order for all processes and for the marks of the test.

Rules
-----
1. A mark is set when a client has received an answer, or a command has ended: what it was told must be on disk before.
2. The processes are started afresh, with the library loaded (`tests.support.programs`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_SYNC_MICROSECONDS = 2000


@dataclass(frozen=True, slots=True)
class Record:
    """One call, as *kind* says.

    ``C`` file created, ``D`` folder made, ``W`` written, ``T`` size set, ``S`` and ``E`` sync begun and ended, ``X``
    sync failed, ``R`` renamed, ``L`` given another name, ``U`` unlinked, ``M`` mark.
    """

    kind: str
    inode: int
    one: int
    """The mode of what is created, where it is written, the new size, or the process that syncs."""
    two: int
    """The number of the sync in its process."""
    first: bytes
    """The path, what is written, or the text of the mark."""
    second: bytes
    """The new path."""


class RecordedDisk:
    """What is done below one folder from now on."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder.resolve()
        self._log = log
        self._library = log.with_suffix(".so")
        compiler = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(self._library), str(_SOURCE)]
        subprocess.run([*compiler, "-ldl"], check=True)
        log.touch()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that is recorded."""
        return {
            "LD_PRELOAD": str(self._library),
            "RECORDED_DISK_ROOT": str(self.folder),
            "RECORDED_DISK_LOG": str(self._log),
            "RECORDED_DISK_SYNC_US": str(_SYNC_MICROSECONDS),
        }

    def mark(self, text: str) -> None:
        """Note that *text* has become known to somebody by now."""
        _mark(self._log, text)

    def fail_a_sync(self) -> None:
        """Have the next sync of a file fail, once; what it was to write is lost, and nobody is told again."""
        self._log.with_name(f"{self._log.name}.fail").touch()

    def records(self) -> list[Record]:
        """Return what was recorded so far."""
        return list(_read(self._log.read_bytes()))


def _read(log: bytes) -> Iterator[Record]:
    place = 0
    while place < len(log):
        end = log.index(b"\n", place)
        kind, *numbers = log[place:end].decode().split()
        inode, one, two, first, second = map(int, numbers)
        begin = end + 1
        place = begin + first + second
        yield Record(kind, inode, one, two, log[begin : begin + first], log[begin + first : place])


def listing(folder: Path) -> dict[str, bytes | None]:
    """Return the contents of all files below *folder*, None for a folder; without what is not durable anyway."""
    return {
        str(each.relative_to(folder)): each.read_bytes() if each.is_file() else None
        for each in sorted(folder.rglob("*"))
        if (each.is_dir() or each.is_file()) and not each.name.endswith("-shm")
    }


def inode_of(path: Path) -> int:
    """Return the number of what is at *path*."""
    return os.stat(path).st_ino  # noqa: PTH116 - one number, of a path of any kind


def mark(text: str) -> None:
    """Do what `RecordedDisk.mark` does, in a process that is recorded."""
    _mark(Path(os.environ["RECORDED_DISK_LOG"]), text)


def _mark(log: Path, text: str) -> None:
    content = text.encode()
    with log.open("ab", buffering=0) as file:
        file.write(b"M 0 0 0 %d 0\n%b" % (len(content), content))
