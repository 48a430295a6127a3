"""Have as many file descriptors as a run needs, or say before it begins that it cannot be.

How they are taken, without asking, is `provisioning.program.descriptors`; processes that are started afterwards, such
as a broker of the run's own, inherit them.
"""

from __future__ import annotations

import resource

from provisioning.program.descriptors import take_all

SPARE = 256
"""What a process needs beside its connections, generously."""


class TooFewDescriptors(Exception):
    """This user may not have as many as are needed; the text has the remedy."""


def have(connections: int) -> None:
    """Take all descriptors that this user may have, *connections* at least. Raises `TooFewDescriptors`."""
    needed = connections + SPARE
    take_all()
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        raise TooFewDescriptors(
            f"{needed} descriptors are needed, and {most} is the most this user may have; fewer devices, or as root: "
            f"prlimit --pid $$ --nofile={needed}, then start again from that shell"
        )
