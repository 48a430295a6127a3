"""How many file descriptors a process may have, a shell that allows few, and a moment without any."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def a_shell_that_allows(soft: int) -> Iterator[None]:
    """Give processes started in the context a soft limit of *soft*; the hard limit stays."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more in the context."""
    free = os.dup(0)
    os.close(free)
    with a_shell_that_allows(free):
        yield


def allowed(pid: int) -> tuple[int, int]:
    """Return the soft and the hard limit of a process."""
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)
