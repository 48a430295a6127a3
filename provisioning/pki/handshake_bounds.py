"""What a handshake may take of a server's event loop before anything is known about the client.

Theory
------
OpenSSL goes on with a handshake for as long as bytes come. TLS lets a message be cut into records of one byte (RFC 8446
§5.1), each with a header that is read by itself: a ClientHello of 128 KB, or a certificate, is hundreds of thousands of
steps in one call, a quarter of a second in which nobody else is served, and a stranger may send one after the other. So
a server that serves many on one thread hands OpenSSL what the socket holds, so many bytes a call, and comes back for
more when everybody has had a turn. What OpenSSL does not take stays in the kernel: it is looked at first, and read when
it is known how much was taken. Nothing is kept for a session in between.

The other thing that a stranger may make long is its certification path: parsed, and searched for the way to an anchor,
each certificate among all others.

Rules
-----
1. One place for what is handed on, for all sessions: nothing else runs between filling it and emptying it.
2. When the handshake is complete, OpenSSL reads the socket itself, from the first byte that it has not had.
3. Where OpenSSL cannot be asked (`provisioning.pki.openssl`), nothing here has an effect.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Final

from provisioning.pki import openssl, resumed_exchange
from provisioning.pki.openssl import AVAILABLE, address_of_context, library

PORTION: Final = 16384
"""Bytes that one step takes at most: some milliseconds where they are records of one byte."""
MOST_CHAIN: Final = 32768
"""Bytes of the certificates that a client may send, where OpenSSL takes 100 KB: several of the largest there are."""
_SET_MAX_CERT_LIST: Final = 51
_RESET: Final = 1
_PENDING: Final = 10


def bound_chain(context: ssl.SSLContext) -> None:
    """Bound what clients of a server's *context* may send as their certification path."""
    if AVAILABLE:
        library.SSL_CTX_ctrl(address_of_context(context), _SET_MAX_CERT_LIST, MOST_CHAIN, None)


def begin(address: int) -> None:
    """Let the session at *address*, whose handshake has not begun, read only what `shake_hands` gives it."""
    resumed_exchange.begin(address)
    library.BIO_up_ref(_portion)
    library.SSL_set0_rbio(address, _portion)


def shake_hands(address: int, connected: socket.socket) -> int:
    """Go on with the handshake of the session at *address*, which has begun, by a portion of what *connected* holds.

    Returns and raises what `openssl.shake_hands` does.
    """
    size = 0
    try:
        size = _receive(connected, _place, PORTION, socket.MSG_PEEK)
    except BlockingIOError:  # It may be here to write on.
        pass
    else:
        if not size:  # The end, which OpenSSL finds out, and says as it does.
            _read_by_itself(address)
            return openssl.shake_hands(address)
        library.BIO_write(_portion, _buffer, size)
    outcome = -1
    try:
        outcome = openssl.shake_hands(address)
    finally:
        left = library.BIO_ctrl(_portion, _PENDING, 0, None) if size else 0
        if left:
            library.BIO_ctrl(_portion, _RESET, 0, None)
        if size > left:
            _receive(connected, _place, size - left)
        if outcome == openssl.COMPLETE:
            _read_by_itself(address)
            resumed_exchange.confirm(address)
    return outcome


def _read_by_itself(address: int) -> None:
    """Let the session at *address* read its socket, as it writes to it."""
    own = library.SSL_get_wbio(address)
    library.BIO_up_ref(own)
    library.SSL_set0_rbio(address, own)


_receive: Final[Callable[..., int]] = socket.socket.recv_into
"""Of the socket itself: an `ssl.SSLSocket` has another, which asks OpenSSL."""
_portion: Final[int] = library.BIO_new(library.BIO_s_mem()) if AVAILABLE else 0
_place: Final = bytearray(PORTION)
_buffer: Final = openssl.pointer_to(_place) if AVAILABLE else None
