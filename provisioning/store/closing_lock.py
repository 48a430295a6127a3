"""The lock of a process that closes a store: SQLite has removed the log, and the names are still there, without a loss.

Theory
------
The last process that closes a store has SQLite remove the log, and then removes the names of file and log
(`provisioning.store.sqlite_files`). In between the store looks like one whose log somebody has deleted, for as long as
the system lets the process wait. So the file with the names is locked meanwhile; a process that is gone holds no lock.

Rules
-----
1. It is shared, and a process that looks takes no lock: none waits for another, however long that is stopped.
2. It belongs to an open file description (fcntl(2)), so reading the file does not drop it. Where the kernel has no such
   locks, nothing is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_FORM: Final = "hhqqi0q"
_SHARED: Final = struct.pack(_FORM, fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0)
_ALONE: Final = struct.pack(_FORM, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)


@contextlib.contextmanager
def held(names: Path) -> Iterator[None]:
    """Lock the file *names* meanwhile, if it is there, and can be."""
    with contextlib.ExitStack() as kept:
        with contextlib.suppress(OSError):
            descriptor = os.open(names, os.O_RDONLY | os.O_CLOEXEC)
            kept.callback(os.close, descriptor)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _SHARED)
        yield


def is_held(names: Path) -> bool:
    """Whether anybody holds it, this process or another one."""
    with contextlib.suppress(OSError):
        looked = os.open(names, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kind, *_ = struct.unpack(_FORM, fcntl.fcntl(looked, fcntl.F_OFD_GETLK, _ALONE))
        finally:
            os.close(looked)
        return bool(kind != fcntl.F_UNLCK)
    return False
