"""Raises the limit of file descriptors to the user's maximum: each connection needs one, and the default is 1024.

The low default is for programs that use select(2), which supports no descriptor above 1023. Nothing here does: all
waits use epoll or poll.

A hard limit may be above what the kernel gives any process (fs.nr_open, proc(5)): "unlimited" from a container's
engine, or because fs.nr_open was made smaller later. Then neither limit can be set to more than that (setrlimit(2)).
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Final

_NR_OPEN: Final = Path("/proc/sys/fs/nr_open")
_OWN: Final = 256
"""Descriptors of a service besides connections: its store, its files, its own requests to others."""


def most_allowed(nr_open: Path = _NR_OPEN) -> int:
    """Return the highest limit for this process, by its user's hard limit and by the kernel's, in the file *nr_open*.

    ``resource.RLIM_INFINITY`` if there is no limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        kernel = int(nr_open.read_text())
        return kernel if hard == resource.RLIM_INFINITY else min(hard, kernel)
    return hard


def take_all(nr_open: Path = _NR_OPEN) -> None:
    """Raise the limit of this process, and of its children, to the highest that its user and the kernel allow.

    *nr_open* has the kernel's limit. If the limit cannot be raised, it stays.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most_allowed(nr_open)
    if soft == resource.RLIM_INFINITY or (wanted != resource.RLIM_INFINITY and soft >= wanted):
        return
    with contextlib.suppress(OSError, ValueError):  # Forbidden by a sandbox; ACCEPT_FAILED reports if it matters.
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))


def room_for(connections: int, limit: int | None = None) -> int:
    """Return for how many of *connections* there are descriptors, besides those that the process needs itself.

    *limit*: of descriptors; None: that of this process.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    return connections if most == resource.RLIM_INFINITY else min(connections, max(most - _OWN, most // 2))
