"""As many file descriptors as the user may have: a connection is one, and who is not asked gives a process 1024.

The small number is for programs that wait by select(2), which knows no descriptor above 1023. Nothing here does: what
waits, waits by epoll or poll.
"""

from __future__ import annotations

import resource


def take_all() -> int:
    """Raise this process's limit, and that of what it starts, to what its user is allowed (the hard limit); return it.

    `resource.RLIM_INFINITY` is no limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
