"""No core dumps: what a service's memory holds, the keys of the CAs among it, is not written to a disk by the kernel.

A limit of nothing says so (core(5)); systemd-coredump and its like, to which the kernel hands a dump whatever the limit
is, heed it. The process can still be looked into by its own user and by root, who have its files too.
"""

from __future__ import annotations

import resource


def forbid() -> None:
    """Have no memory of this process dumped, nor of what it starts: for ever, as the hard limit is lowered too."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
