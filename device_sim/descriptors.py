"""Obtains as many file descriptors as a run needs, or reports before it begins that it cannot.

`provisioning.program.descriptors` raises the limit without asking; processes started afterwards, such as a broker of
the run, inherit it.
"""

from __future__ import annotations

import resource

from provisioning.program.descriptors import take_all

SPARE = 256
"""What a process needs besides its connections, with a generous margin."""


class TooFewDescriptors(Exception):
    """This user may not have as many as needed; the text has the remedy."""


def have(connections: int) -> None:
    """Raise the limit as far as this user may; *connections* must be possible. Raises `TooFewDescriptors`."""
    needed = connections + SPARE
    take_all()
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        raise TooFewDescriptors(
            f"{needed} descriptors are needed, and {most} is the most this user may have; fewer devices, or as root: "
            f"prlimit --pid $$ --nofile={needed}, then start again from that shell"
        )
