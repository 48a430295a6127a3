"""What a ClientHello says of a device: which TLS version it offers, and whether it asks for an OCSP staple.

A device that offers less after a broken connection can be made to speak what an attacker prefers (RFC 8446 §4.1.2,
§4.2.1). One that asks for a staple (RFC 6066 §8) says that it will check it.

Rules
-----
1. Bytes that are no whole ClientHello say nothing: the answer is None.
2. It may be in several records (RFC 8446 §5.1): OpenSSL cuts a long one where the program wants small fragments.
3. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 0x01
_STATUS_REQUEST: Final = 5
_SUPPORTED_VERSIONS: Final = 43
_OCSP: Final = b"\x01"
"""The type of status that is asked for: there is no other."""
_NAMES: Final = {0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
_HEADER: Final = 5
"""Bytes of a record before its content."""
_PREFIX: Final = 4
"""Bytes of a handshake message before its content."""
_SHORTEST: Final = _PREFIX + 2 + 32 + 1
"""Bytes of a ClientHello up to the length of its session ID."""
_CONTENT_TYPES: Final = range(20, 25)
"""What the first byte of a TLS record is (RFC 8446 §5.1, RFC 6520)."""
_SSL2: Final = 0x80
"""The first bit of the oldest ClientHello, which some stacks still send (RFC 5246 appendix E.2)."""
LONGEST: Final = 65_536
"""Bytes that are looked at, at most: no ClientHello is longer in practice."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a device offers and asks for."""

    version: int
    """The highest TLS version, as on the wire."""
    asks_for_staple: bool


def in_clear(data: bytes) -> bool:
    """Whether *data*, the first that came, is not TLS: anybody on the way could read it."""
    return bool(data) and data[0] not in _CONTENT_TYPES and not data[0] & _SSL2


def settled(data: bytes) -> bool:
    """Whether more bytes than *data* would tell nothing more: a ClientHello is whole, or there is none."""
    _, over = _message(data)
    return over or len(data) >= LONGEST


def client_hello(data: bytes) -> ClientHello | None:
    """Return what the ClientHello in *data* says; None if there is none, or not all of it."""
    message, _ = _message(data)
    return None if message is None else _told(message)


def _message(data: bytes) -> tuple[bytes | None, bool]:
    """Return the ClientHello in the records of *data*, if it is whole, and whether nothing more would make it so."""
    message, at = b"", 0
    while len(data) > at:
        if data[at] != _HANDSHAKE:
            return None, True
        length = int.from_bytes(data[at + 3 : at + _HEADER], "big")
        message += data[at + _HEADER : at + _HEADER + length]
        if message and message[0] != _CLIENT_HELLO:
            return None, True
        whole = _PREFIX + int.from_bytes(message[1:_PREFIX], "big")
        if len(message) >= max(whole, _SHORTEST):
            return message[:whole], True
        at += _HEADER + length
    return None, False


def _told(data: bytes) -> ClientHello | None:
    version, asks, position = int.from_bytes(data[4:6], "big"), False, _SHORTEST - 1
    try:
        position += 1 + data[position]  # Session ID
        position += 2 + int.from_bytes(data[position : position + 2], "big")  # cipher suites
        position += 1 + data[position]  # compression methods
        end = min(len(data), position + 2 + int.from_bytes(data[position : position + 2], "big"))
        position += 2
        while position + 4 <= end:
            kind = int.from_bytes(data[position : position + 2], "big")
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            body = data[position + 4 : position + 4 + length]
            position += 4 + length
            if kind == _STATUS_REQUEST:
                asks = body[:1] == _OCSP
            elif kind == _SUPPORTED_VERSIONS:
                versions = [int.from_bytes(body[at : at + 2], "big") for at in range(1, len(body) - 1, 2)]
                version = max((each for each in versions if each in _NAMES), default=version)  # Others are GREASE.
    except IndexError:
        return None
    return ClientHello(version, asks)


def name_of(version: int) -> str:
    """Return what *version* is called."""
    return _NAMES.get(version, f"0x{version:04x}")
