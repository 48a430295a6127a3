"""A hostile ClientHello, long and in one-byte records; and how much of it has not been read yet."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import ssl
import termios

_HEADER = 5
_UNKNOWN = b"\xfa\xfa"


def long_hello(client: ssl.SSLContext, size: int) -> bytes:
    """Return the record of a ClientHello of *size* bytes, as *client* would send it, plus an extension of zeros."""
    outgoing = ssl.MemoryBIO()
    session = client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    hello = bytearray(outgoing.read()[_HEADER:])
    at = 4 + 2 + 32  # Its own header, version and random; what follows has a length each.
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2])
    at += 1 + hello[at]
    padding = size - len(hello)
    hello += _UNKNOWN + (padding - 4).to_bytes(2) + bytes(padding - 4)
    hello[at : at + 2] = (int.from_bytes(hello[at : at + 2]) + padding).to_bytes(2)
    hello[1:4] = (size - 4).to_bytes(3)
    return b"\x16\x03\x01" + size.to_bytes(2) + bytes(hello)


def cut(record: bytes) -> bytes:
    """Return the content of *record* in one-byte records."""
    return b"".join(record[:3] + b"\0\1" + bytes((each,)) for each in record[_HEADER:])


def unread(connected: socket.socket) -> int:
    """Return how many bytes the kernel holds for the reader of *connected*."""
    size = array.array("i", [0])
    fcntl.ioctl(connected, termios.FIONREAD, size)
    return size[0]
