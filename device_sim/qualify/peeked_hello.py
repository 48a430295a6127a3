"""Reads the first bytes of a connection before TLS does: what a ClientHello says is visible nowhere else.

Rules
-----
1. They stay to be read.
2. Who breaks off is not waited for. A peek does not tell that: it shows what has come, again and again.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Final

from device_sim.qualify.client_hello import LONGEST, in_clear, settled
from provisioning.pki.tcp_state import has_left

HANDSHAKE: Final = 60.0
"""Seconds that a device may take for its handshake."""
_PEEK: Final = 0.005


async def first_bytes(raw: socket.socket) -> bytes:
    """Return what comes first: a whole ClientHello, or what is none; what there is of one, if no more comes."""
    until = time.monotonic() + HANDSHAKE
    seen = -1
    data = b""
    while time.monotonic() < until:
        try:
            over = has_left(raw)
            data = raw.recv(LONGEST, socket.MSG_PEEK)
        except BlockingIOError:
            pass
        except OSError:
            return b""
        if over or in_clear(data) or (data and settled(data)):
            return data
        # Readiness would be reported at once for what has been peeked at.
        await asyncio.sleep(_PEEK if len(data) == seen else 0)
        seen = len(data)
    return data
