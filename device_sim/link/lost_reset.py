"""A peer's RST that was lost on the way is asked for again.

Theory
------
A RST is sent once, and nobody acknowledges it. When it is lost, the connection seems open for as long as this side
sends nothing: a broker that has closed at once would be blamed for never doing so. The kernel can probe a silent
connection (RFC 9293 §3.8.4): a peer that has none answers with RST, one that has it acknowledges, and its program
notices nothing.
"""

from __future__ import annotations

import socket
from typing import Final

_EVERY: Final = 1
"""Seconds of silence before a probe, and between two."""
_MOST: Final = 127
"""Probes without an answer after which the kernel gives up, the most that it takes: it is not to end what nobody else
has ended."""


def ask_again(connected: socket.socket) -> None:
    """Let the kernel probe *connected* from now on when it is silent."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _EVERY)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _EVERY)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _MOST)
