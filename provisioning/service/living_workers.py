"""At which places of several workers there is a process now: told by a lock that ends with it, however it ends.

Theory
------
An inbox belongs to its place, and is there without a process as well: a worker that hangs and one that is gone are
silent alike. But a lock of POSIX on a file belongs to a process alone. A fork does not inherit it, and the kernel ends
it with the process; so each worker locks the octet with its number of a file in memory, made before the forks: the
service starts where no disk has room for another file.

Rules
-----
1. Who looks tries to share the lock, and lets it go at once: of two who look, neither takes the other for the worker.
2. Nobody in a worker closes the file: every lock of a process ends when it closes any descriptor of it.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final


class LivingWorkers:
    """Which places have a process."""

    def __init__(self) -> None:
        self._file: Final = open(os.memfd_create("living-workers", os.MFD_CLOEXEC), "wb")  # noqa: SIM115, PTH123

    def enter(self, number: int) -> None:
        """Have this process be the one at that place, until it ends."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, number)

    def has(self, number: int) -> bool:
        """Whether there is another process at that place."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, number)
        except OSError:
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)
        return False

    def close(self) -> None:
        """Close the file; for who has only looked."""
        self._file.close()
