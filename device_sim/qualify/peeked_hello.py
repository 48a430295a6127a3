"""Reads a ClientHello before TLS does: what it says is visible nowhere else."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Final

from device_sim.qualify.client_hello import LONGEST, ClientHello, client_hello, record_length

HANDSHAKE: Final = 60.0
"""Seconds that a device may take for its handshake."""
_PEEK: Final = 0.005


async def peeked_hello(raw: socket.socket) -> ClientHello | None:
    """Return what the ClientHello says, which stays to be read; None if it does not come whole."""
    until = time.monotonic() + HANDSHAKE
    seen = 0
    while time.monotonic() < until:
        try:
            data = raw.recv(LONGEST, socket.MSG_PEEK)
        except BlockingIOError:
            data = b""
        except OSError:
            return None
        else:
            if not data:
                return None
        length = record_length(data)
        if length is not None and len(data) >= min(length, LONGEST):
            return client_hello(data)
        # Readiness would be reported at once for what has been peeked at.
        await asyncio.sleep(_PEEK if len(data) == seen else 0)
        seen = len(data)
    return None
