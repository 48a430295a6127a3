"""The TLS session of one accepted socket: the inner `ssl` object, without `ssl.SSLSocket` around it.

Theory
------
`ssl.SSLSocket` wraps the object that holds OpenSSL's session in a Python layer for blocking callers. Under an event
loop that layer only costs: a frame and three checks per read or write, five system calls per connection (the options
and the peer's name are queried again, and the time-out is set at each step of the handshake), and a dict per
connection. The standard library itself creates the inner object by `SSLContext._wrap_socket`. It is not documented, but
unchanged from Python 3.7 to 3.15, and other event loops rely on it. Figures: docs/decisions/0016.

Where it is missing or has changed, `open_tls` uses `ssl.SSLSocket` instead, which behaves the same: the slow twin;
tests/integration/broker/test_tls_session.py requires the same results from both.

Rules
-----
1. The socket must outlive its session: OpenSSL's object holds it by a weak reference.
2. No policy: the context defines who is verified and how.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from broker.sockets.accepted_socket import AcceptedSocket
from provisioning.pki import handshake_bounds, openssl


class TlsSession(Protocol):
    """What a transport uses of TLS. Each call raises `ssl.SSLError` as `ssl.SSLSocket` does."""

    @property
    def session_reused(self) -> bool | None:
        """Whether the TLS session was resumed."""

    def do_handshake(self) -> None:
        """Continue the handshake."""

    def getpeercert(self, binary_form: bool, /) -> Any:
        """Return the peer's certificate (DER), or None."""

    def read(self, size: int, /) -> bytes:
        """Return the content of one record; empty at the end. May raise `ssl.SSLEOFError` without close_notify."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Write; return how many bytes were accepted."""

    def version(self) -> str | None:
        """Return the protocol version."""


def open_tls(context: ssl.SSLContext, accepted: socket.socket) -> tuple[socket.socket, TlsSession]:
    """Return the socket to keep, and the server's side of a TLS session on it, before its handshake.

    *accepted* is non-blocking, and must not be used by the caller any more. Raises `OSError` if the peer has gone.
    """
    if _WRAP is None:
        return open_public_tls(context, accepted)
    return accepted, _WRAP(context, accepted, server_side=True)


def open_public_tls(context: ssl.SSLContext, accepted: socket.socket) -> tuple[socket.socket, TlsSession]:
    """Do the same using only documented functions."""
    wrapped = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
    return wrapped, cast("TlsSession", wrapped)


def accept(listening: socket.socket) -> tuple[socket.socket, Any]:
    """Return what ``listening.accept()`` does, a non-blocking socket and its peer's address, with the same errors.

    `socket.socket.accept` looks up the family and the type of each socket in their enumerations. An `AcceptedSocket` is
    no context manager, and has no files.
    """
    if _ACCEPT is None:
        accepted, address = listening.accept()
    else:
        descriptor, address = _ACCEPT(listening)
        accepted = cast("socket.socket", AcceptedSocket(_FAMILY_OF[len(address)], _STREAM, 0, descriptor))
    accepted.setblocking(False)
    return accepted, address


def shake_hands(session: TlsSession, inside: int, connected: socket.socket) -> int:
    """Continue the handshake of *session*; OpenSSL's session is at address *inside*, 0 if that is unknown.

    If it is known, this handles a portion of what *connected* holds, for which `handshake_bounds.begin` was called.

    Returns `openssl.COMPLETE`, `openssl.WANTS_READ` or `openssl.WANTS_WRITE`. Raises `ssl.SSLError` or `OSError`.
    """
    if inside:
        return handshake_bounds.shake_hands(inside, connected)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        return openssl.WANTS_READ
    except ssl.SSLWantWriteError:
        return openssl.WANTS_WRITE
    openssl.forget_errors()
    return openssl.COMPLETE


def _inner_wrap() -> Any:
    """Return `SSLContext._wrap_socket` if it is as expected, else None."""
    wrap = getattr(ssl.SSLContext, "_wrap_socket", None)
    if wrap is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with socket.socket() as unconnected:
        try:
            session = wrap(context, unconnected, server_side=True)
        except TypeError:
            return None
    expected = ("do_handshake", "getpeercert", "read", "session_reused", "shutdown", "version", "write")
    return wrap if all(hasattr(session, name) for name in expected) else None


_WRAP: Final = _inner_wrap()
_ACCEPT: Final[Callable[[socket.socket], tuple[int, Any]] | None] = getattr(socket.socket, "_accept", None)
_STREAM: Final = int(socket.SOCK_STREAM)
_FAMILY_OF: Final = {2: int(socket.AF_INET), 4: int(socket.AF_INET6)}
"""By the length of an address."""
