"""Ends a connection whose TLS handshake was refused, when the alert that says why is on its way.

RFC 8446 §6.2: after a fatal alert the connection is closed immediately. The stream is ended at once, so the peer reads
the alert and then the end. The socket itself stays open for a second: closing it while the peer still sends would reset
the connection, and the peer might lose the alert.

A client that speaks HTTP without TLS understands no alert, and OpenSSL, which recognises the most common methods, sends
none: that client is told in HTTP, as by other servers. Without that a mistyped URL gets an empty reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Final

from provisioning.pki.polite_handshake import on_refusal

_LINGER_SECONDS: Final = 1.0
_HTTP: Final = "HTTP_REQUEST"
"""OpenSSL's reason. That for CONNECT is another: a client that takes this for a proxy gets the plain end."""
_TOLD: Final = b"INVALID_REQUEST: this port speaks HTTPS: write https:// in the URL\n"
_TO_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_TOLD), _TOLD)
)


def end_if_refused(accepted: socket.socket) -> None:
    """End the connection on *accepted* if its handshake, which this task begins next, is refused."""
    loop = asyncio.get_running_loop()
    on_refusal(lambda failure: loop.call_soon(_end_politely, loop, accepted, failure))


def _end_politely(loop: asyncio.AbstractEventLoop, accepted: socket.socket, failure: ssl.SSLError) -> None:
    if failure.reason == _HTTP:
        with contextlib.suppress(OSError):  # Nothing was sent before it, so there is room for it.
            accepted.send(_TO_HTTP)
    _end(accepted, socket.SHUT_WR)
    loop.call_later(_LINGER_SECONDS, _end, accepted, socket.SHUT_RDWR)


def _end(accepted: socket.socket, direction: int) -> None:
    with contextlib.suppress(OSError):  # The peer has gone, or the connection was closed.
        accepted.shutdown(direction)
