"""Detects that files have changed, by checking them once a second.

Theory
------
Certificates are renewed and policies edited in every way there is: written in place, replaced by a rename, by a
symbolic link that points elsewhere (as Kubernetes mounts secrets), two files one after the other. All of them change
what ``stat`` returns for the path. A change counts once it has been stable for a whole interval, so that a file is not
read while it is being written.

Rules
-----
1. A file that is missing or unreadable is in the middle of a change: it is waited for, for a number of checks. After
   that its absence counts as the change, so that the reader reports it; from then on no other file waits for it.
2. A change is reported once.
3. A file checked before it is read is known as it was then, so a change between the two counts (`begin`).
4. A pipe is read once, and does not change.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_LOOKS_FOR_ABSENT: Final = 30
_Mark = tuple[int, int, int]
_Look = dict[Path, _Mark | None]
_READ_ONCE: Final = (0, 0, 0)


class FileWatch:
    """The last known state of some files."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._known = self._last = _look(paths)
        self._stood = 0

    def begin(self, paths: Iterable[Path]) -> None:
        """Watch *paths* from now on: in their present state, or as they were if they were checked before."""
        self._last = _look(paths)
        self._known = {path: self._known.get(path, mark) for path, mark in self._last.items()}

    def changed(self, paths: Iterable[Path]) -> bool:
        """Check again; return whether *paths* differ from what was known, and are the same as at the last check."""
        now = _look(paths)
        self._stood = self._stood + 1 if now == self._last else 0
        self._last = now
        gone = any(mark is None and self._known.get(path) is not None for path, mark in now.items())
        if self._stood < (_LOOKS_FOR_ABSENT if gone else 1) or now == self._known:
            return False
        self._known = now
        return True


def _look(paths: Iterable[Path]) -> _Look:
    seen: _Look = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            seen[path] = None
        else:
            is_file = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            seen[path] = (status.st_mtime_ns, status.st_ino, status.st_size) if is_file else _READ_ONCE
    return seen
