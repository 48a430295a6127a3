"""The kernel's own search for peers that have vanished: the only one, where a client has asked for no keep alive.

Rules
-----
1. A peer that has been silent for the longest keep alive that others may have is asked, by the kernel, whether it is
   there. It is given up when one and a half times that have passed, as a client with such a keep alive would be.
2. Where the system's own setting asks earlier, that stays.

Does not handle: a peer that owes acknowledgements, which the kernel gives up by itself (sysctl tcp_retries2).
"""

from __future__ import annotations

import socket
from typing import Final

_PROBES: Final = 5
_SHARE: Final = 2 * _PROBES
"""All probes together take half as long as the silence before them."""
_LONGEST: Final = 32_767
"""Seconds, the kernel's limit for each of the two."""


def probe(connected: socket.socket, silence: int) -> None:
    """Let the kernel look for the peer after *silence* seconds, and close the connection if it is not there."""
    idle = min(silence, _LONGEST)
    try:
        if connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= idle:
            return
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // _SHARE))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    except OSError:  # It has been reset, or is no TCP socket.
        return
