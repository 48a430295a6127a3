"""What a ClientHello says of a device: which TLS version it offers, and whether it asks for an OCSP staple.

A device that offers less after a broken connection can be made to speak what an attacker prefers (RFC 8446 §4.1.2,
§4.2.1). One that asks for a staple (RFC 6066 §8) says that it will check it.

Rules
-----
1. Bytes that are no whole ClientHello say nothing: the answer is None.
2. No I/O.
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
LONGEST: Final = 16_384 + 5
"""Bytes of one TLS record: a ClientHello is in the first."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a device offers and asks for."""

    version: int
    """The highest TLS version, as on the wire."""
    asks_for_staple: bool


def record_length(data: bytes) -> int | None:
    """Return how long the first record in *data* is, with its header; None if that is not known yet."""
    return None if len(data) < 5 else 5 + int.from_bytes(data[3:5], "big")  # noqa: PLR2004 - a record's header


def client_hello(data: bytes) -> ClientHello | None:
    """Return what the ClientHello in *data* says; None if there is none."""
    if len(data) < 44 or data[0] != _HANDSHAKE or data[5] != _CLIENT_HELLO:  # noqa: PLR2004 - up to the session ID
        return None
    version, asks, position = int.from_bytes(data[9:11], "big"), False, 43
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
