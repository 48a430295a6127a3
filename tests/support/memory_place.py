"""Where tests write that need no disk: a file system in memory, if the machine has one with room.

Most tests open a store, and a store waits for the disk at each commit: with everything on one disk, every worker waits
for the syncs of all others. What a failing, full, slow or interrupted disk does to a program is tested with one of the
tests' own (`tests.support.failing_disk`, `tests.support.recorded_disk`, `tests.support.held_store`). On the machine's
disk are the programs that the documents' commands start.

``PYTEST_DEBUG_TEMPROOT``, pytest's own variable, names another place: with ``/var/tmp`` all tests are on the disk.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - directories are made in it, which nobody else can use
ROOM: Final = 4 * 2**30
"""More than the largest tests write at a time."""


def memory_place(*, runs_programs: bool = False) -> Path | None:
    """Return an in-memory file system with room for the tests; None: there is none.

    If it *runs_programs*, it is one from which that is permitted: in a container it often is not.
    """
    if not (_MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > ROOM):
        return None
    return None if runs_programs and os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC else _MEMORY
