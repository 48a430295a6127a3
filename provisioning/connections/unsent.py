"""What our kernel has accepted and not sent: the transport's buffer below TLS, which nobody can ask, may have more."""

from __future__ import annotations

import fcntl
import struct
from typing import Final

_NOT_SENT: Final = 0x894B
"""``SIOCOUTQNSD`` of <linux/sockios.h>. Unlike SIOCOUTQ it does not count what a client that is gone never confirms."""
_INT: Final = struct.Struct("i")


def unsent(descriptor: int) -> int:
    """Return how many octets that is for the socket with *descriptor*; none of one that has been closed."""
    if descriptor < 0:
        return 0
    try:
        told = fcntl.ioctl(descriptor, _NOT_SENT, bytes(_INT.size))
    except OSError:
        return 0
    return int(_INT.unpack(told)[0])
