"""What the kernel does with bytes that it has accepted and not yet sent: gather them, drop them, give up in time.

Rules
-----
1. A closed connection is the kernel's alone: it tries to send the rest for `UNTAKEN_MILLISECONDS`. Otherwise a peer
   that is cut off would keep the buffer for a hundred seconds, and one that only stops reading for minutes.
2. If the kernel's next attempt is later than that, because the peer has been silent for as long, there is none.
3. A socket that has been reset, or is no TCP socket, has nothing to gather, drop or give up.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from provisioning.pki.late_handshake import drop

UNTAKEN_MILLISECONDS: Final = 15_000
"""A farewell that is lost three times on a link with a round trip of a second still arrives."""
_TCP: Final = int(socket.IPPROTO_TCP)
_CORK: Final = int(socket.TCP_CORK)
_BEGINNING: Final = struct.Struct("3xBB3xI")
"""Of the kernel's ``tcp_info``: unanswered probes of a peer that accepts nothing, doublings, retransmission timeout."""


def gather(connected: socket.socket) -> None:
    """Send nothing but whole segments until `send_on`, or until the stream ends: that sends the rest."""
    _set(connected, _TCP, _CORK, 1)


def send_on(connected: socket.socket) -> None:
    """Send everything again, as it comes."""
    _set(connected, _TCP, _CORK, 0)


def give_up_in_time(connected: socket.socket, milliseconds: int = UNTAKEN_MILLISECONDS) -> None:
    """After the socket is closed, which is next, try to send what is left for so long."""
    if next_attempt(connected) * 1000 > milliseconds:
        drop(connected)  # The limit is looked at when the attempt is due.
    else:
        _set(connected, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def next_attempt(connected: socket.socket) -> float:
    """Return how many seconds pass between the kernel's last attempt to send and the next, if an answer is due."""
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BEGINNING.size)
    except OSError:
        return 0.0
    probes, doublings, microseconds = _BEGINNING.unpack(info)
    return float(microseconds << (doublings if probes else 0)) / 1e6


def _set(connected: socket.socket, level: int, option: int, value: int | bytes) -> None:
    try:  # noqa: SIM105 - a context manager takes longer than the call
        connected.setsockopt(level, option, value)
    except OSError:
        pass
