"""Disables core dumps: the kernel must not write a service's memory, which includes the CAs' keys, to a disk.

A limit of zero does so (core(5)); systemd-coredump and similar programs, to which the kernel passes a dump whatever the
limit, respect it. The process can still be inspected by its own user and by root, who have its files too.
"""

from __future__ import annotations

import resource


def forbid() -> None:
    """Disable core dumps for this process and its children: for ever, as the hard limit is lowered too."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
