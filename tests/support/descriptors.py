"""How many file descriptors a process may have, and a shell that allows few."""

from __future__ import annotations

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


def allowed(pid: int) -> tuple[int, int]:
    """Return the soft and the hard limit of a process."""
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)
