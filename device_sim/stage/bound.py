"""Binds a child process to us: it is told to end when we do, even if we are killed (SIGKILL).

The kernel sends the signal if the child requests it (`PR_SET_PDEATHSIG`, prctl(2)), and the request survives execve(2).
So this file is started first, as a separate program, and becomes the child: that costs 20 ms, and needs none of our
code between fork and exec in a process with threads.

Rules
-----
1. The parent is a thread, the one that runs our loop: the main one.
2. It imports nothing of ours, and nothing slow: `signal` and `collections.abc` would add half as much again. It is
   started without `site` (``-I -S``).
"""

from __future__ import annotations

import os
import sys

_PR_SET_PDEATHSIG = 1  # Linux <linux/prctl.h>
_SIGTERM = 15


def bound(arguments: list[str]) -> list[str]:
    """Return the command that runs *arguments* until this process ends, when it gets SIGTERM."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *arguments]


def _become(parent: int, arguments: list[str]) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, _SIGTERM, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() == parent:  # Otherwise the parent has ended meanwhile, and no signal will come.
        try:
            os.execvp(arguments[0], arguments)  # noqa: S606 - no shell is wanted
        except OSError as error:
            sys.exit(f"{arguments[0]}: {error.strerror}")


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
