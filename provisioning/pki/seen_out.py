"""Ends a connection whose TLS handshake was refused, when the alert that says why is on its way.

RFC 8446 §6.2: after a fatal alert the connection is closed immediately. The stream is ended at once, so the peer reads
the alert and then the end. The socket itself stays open for a second: closing it while the peer still sends would reset
the connection, and the peer might lose the alert.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from typing import Final

from provisioning.pki.polite_handshake import on_refusal

_LINGER_SECONDS: Final = 1.0


def see_out_if_refused(accepted: socket.socket) -> None:
    """End the connection on *accepted* if its handshake, which this task begins next, is refused."""
    loop = asyncio.get_running_loop()
    on_refusal(functools.partial(loop.call_soon, _see_out, loop, accepted))


def _see_out(loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
    _end(accepted, socket.SHUT_WR)
    loop.call_later(_LINGER_SECONDS, _end, accepted, socket.SHUT_RDWR)


def _end(accepted: socket.socket, direction: int) -> None:
    with contextlib.suppress(OSError):  # The peer has gone, or the connection was closed.
        accepted.shutdown(direction)
