"""What our kernel has accepted and not sent, or the other end not confirmed.

The transport's buffer below TLS, which nobody can ask, may have more.
"""

from __future__ import annotations

import fcntl
import struct
from typing import Final

_NOT_SENT: Final = 0x894B
"""``SIOCOUTQNSD`` of <linux/sockios.h>. Unlike SIOCOUTQ it does not count what a client that is gone never confirms."""
_NOT_CONFIRMED: Final = 0x5411
"""``SIOCOUTQ`` of the same."""
_INT: Final = struct.Struct("i")


def unsent(descriptor: int) -> int:
    """Return how many octets are not sent on the socket with *descriptor*; none of one that has been closed."""
    return _told(descriptor, _NOT_SENT) or 0


def unconfirmed(descriptor: int) -> int | None:
    """Return how many octets are not sent, or sent and not confirmed; None: the kernel does not say."""
    return _told(descriptor, _NOT_CONFIRMED)


def _told(descriptor: int, question: int) -> int | None:
    if descriptor < 0:
        return 0
    try:
        told = fcntl.ioctl(descriptor, question, bytes(_INT.size))
    except OSError:
        return None
    return int(_INT.unpack(told)[0])
