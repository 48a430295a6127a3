"""Bounds the time that a handshake may take of a server's event loop before the client is known.

Theory
------
OpenSSL continues a handshake for as long as bytes arrive. TLS lets a message be split into records of one byte (RFC
8446 §5.1), each with a header that is read separately: a ClientHello of 128 KB, or a certificate, is hundreds of
thousands of steps in one call, a quarter of a second in which no other client is served, and a stranger may send one
after the other. So a server that serves many clients on one thread passes a limited number of bytes from the socket to
OpenSSL per call, and continues when every other client has had a turn. What OpenSSL does not consume stays in the
kernel: the bytes are peeked first, and read once it is known how many were consumed. Nothing is kept per session in
between.

How much of its hello a session has had is counted, so that a small one need not be looked into
(`provisioning.pki.hello_bounds`).

A stranger may also send a long certification path, which is parsed and searched for a path to an anchor, each
certificate against all others.

Rules
-----
1. One buffer for all sessions: nothing else runs between filling it and emptying it, and whatever ends a step, a
   `MemoryError` in between included, the next one begins with an empty one. What OpenSSL was not given is not consumed.
2. When the handshake is complete, OpenSSL reads the socket itself, from the first byte that it has not had.
3. If OpenSSL cannot be called directly (`provisioning.pki.openssl`), nothing here has an effect, and no server starts
   (`provisioning.pki.guards`).
4. The session's context is one of `provisioning.pki.tls.server_context`. Whoever ends a session before its handshake is
   complete says so (`end`).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Final

from provisioning.pki import named_curves, openssl, resumed_exchange
from provisioning.pki.hello_bounds import SMALL, awaited, step
from provisioning.pki.openssl import AVAILABLE, address_of_context
from provisioning.pki.openssl_library import address_of_bytes, frequent, library

PORTION: Final = 16384
"""Most bytes that one step takes: some milliseconds if they are records of one byte."""
MOST_CHAIN: Final = 32768
"""Most bytes of certificates that a client may send (OpenSSL's limit is 100 KB): several of the largest in use."""
_SET_MAX_CERT_LIST: Final = 51
_RESET: Final = 1
_PENDING: Final = 10
_PEEK: Final = int(socket.MSG_PEEK)


class _Buffer:
    """What is known of the buffer."""

    __slots__ = ("filled",)

    def __init__(self) -> None:
        self.filled = False
        """Whether there may be something in it."""


_buffer: Final = _Buffer()


def bound_chain(context: ssl.SSLContext) -> None:
    """Bound the certification path that clients of a server's *context* may send."""
    if AVAILABLE:
        library.SSL_CTX_ctrl(address_of_context(context), _SET_MAX_CERT_LIST, MOST_CHAIN, None)


def begin(address: int) -> None:
    """Let the session at *address*, whose handshake has not begun, read only what `shake_hands` gives it."""
    resumed_exchange.begin(address)
    awaited[address] = 0
    frequent.BIO_up_ref(_portion)
    frequent.SSL_set0_rbio(address, _portion)


def end(address: int) -> None:
    """Take note that the session at *address* ends, whether or not its handshake is complete."""
    awaited.pop(address, None)


def shake_hands(address: int, connected: socket.socket) -> int:
    """Continue the handshake of the session at *address*, which has begun, with a portion of what *connected* holds.

    Returns and raises what `openssl.shake_hands` does.
    """
    size = _fill(address, connected)
    given = awaited.get(address)
    if given is not None:
        given = awaited[address] = given + size
    elif size:  # The hello has come whole, in an earlier step.
        named_curves.look_if_new(address)
    outcome = -1
    try:
        step.small = address if given is not None and given <= SMALL else 0
        outcome = openssl.shake_hands(address)
    finally:
        step.small = 0
        if size:
            _consume(connected, size, wants_more=outcome == openssl.WANTS_READ)
        if outcome == openssl.COMPLETE:
            _read_by_itself(address, connected)
            resumed_exchange.confirm(address)
    return outcome


def _fill(address: int, connected: socket.socket) -> int:
    """Put a portion of what *connected* holds into the buffer; return how many bytes."""
    if _buffer.filled:
        frequent.BIO_ctrl(_portion, _RESET, 0, 0)
        _buffer.filled = False
    try:
        size = _receive(connected, _place, PORTION, _PEEK)
    except BlockingIOError:  # It may only need to write.
        return 0
    if size:
        _buffer.filled = True
        if frequent.BIO_write(_portion, _content, size) != size:
            raise MemoryError
    else:  # End of file, which OpenSSL detects and reports itself.
        _read_by_itself(address, connected)
    return size


def _consume(connected: socket.socket, size: int, *, wants_more: bool) -> None:
    """Empty the buffer after a step, and take from *connected* what OpenSSL has had of its *size* bytes.

    That is all of them if it *wants_more*.
    """
    if not wants_more:
        left = frequent.BIO_ctrl(_portion, _PENDING, 0, 0)
        if left:
            frequent.BIO_ctrl(_portion, _RESET, 0, 0)
            size -= left
    _buffer.filled = False
    if size:
        _receive(connected, _place, size)


def _read_by_itself(address: int, connected: socket.socket) -> None:
    """Let the session at *address* read *connected* itself, as it writes to it, through the same object."""
    if not frequent.SSL_set_rfd(address, connected.fileno()):
        raise MemoryError


_receive: Final[Callable[..., int]] = socket.socket.recv_into
"""The plain socket's: that of an `ssl.SSLSocket` calls OpenSSL."""
_portion: Final[int] = library.BIO_new(library.BIO_s_mem()) if AVAILABLE else 0
_place: Final = bytearray(PORTION)
_content: Final = address_of_bytes(_place)
