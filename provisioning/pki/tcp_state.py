"""The state of a TCP connection, as the kernel knows it: whether its peer has already left, how much has come of it."""

from __future__ import annotations

import socket
import struct
from typing import Final

_ANSWER: Final = 1
"""Bytes of the kernel's answer that are read: the first one is the state (tcp(7), ``TCP_INFO``)."""
_RECEIVED: Final = struct.Struct("=128xQ")
"""``tcpi_bytes_received`` of struct tcp_info in <linux/tcp.h>, and what is before it."""
_CLOSED: Final = 7
"""The state of a connection that was reset (RFC 9293 §3.3.2)."""
_CLOSE_WAIT: Final = 8
"""The state of one whose peer will send nothing more."""


def has_left(connected: socket.socket) -> bool:
    """Whether the peer has reset *connected*, or sends nothing more: it can complete no handshake.

    Reading tells less: bytes that arrived before the reset come first, and the reset after them.
    """
    return _state_of(connected) in (_CLOSED, _CLOSE_WAIT)


def was_reset(connected: socket.socket) -> bool:
    """Whether *connected* is over in both directions: the peer has reset it. Raises OSError if it is no TCP socket."""
    return _state_of(connected) == _CLOSED


def received(connected: socket.socket) -> int:
    """Return how many octets have come on *connected* so far, read or not; -1 if it has been closed."""
    try:
        told = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size)
        return int(_RECEIVED.unpack(told)[0])
    except (OSError, struct.error):
        return -1


def _state_of(connected: socket.socket) -> int:
    return connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ANSWER)[0]
