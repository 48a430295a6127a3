"""Have as many file descriptors as a run needs, or say before it begins that it cannot be.

A connection is a descriptor, and a shell usually allows 1024. What the user may allow himself is taken without asking;
processes that are started afterwards, such as a broker of the run's own, inherit it.
"""

from __future__ import annotations

import resource

SPARE = 256
"""What a process needs beside its connections, generously."""


class TooFewDescriptors(Exception):
    """This user may not have as many as are needed; the text has the remedy."""


def have(connections: int) -> None:
    """Raise this process's limit so that *connections* fit below it. Raises `TooFewDescriptors`."""
    needed = connections + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise TooFewDescriptors(
            f"{needed} descriptors are needed, and {hard} is the most this user may have; fewer devices, or as root: "
            f"prlimit --pid $$ --nofile={needed}, then start again from that shell"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
