"""What TLS version a ClientHello offers (RFC 8446 §4.1.2, §4.2.1).

A device that offers less after a broken connection can be made to speak what an attacker prefers.

Rules
-----
1. Bytes that are no whole ClientHello say nothing: the answer is None.
2. No I/O.
"""

from __future__ import annotations

from typing import Final

_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 0x01
_SUPPORTED_VERSIONS: Final = 43
_NAMES: Final = {0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
LONGEST: Final = 16_384 + 5
"""Bytes of one TLS record: a ClientHello is in the first."""


def record_length(data: bytes) -> int | None:
    """Return how long the first record in *data* is, with its header; None if that is not known yet."""
    return None if len(data) < 5 else 5 + int.from_bytes(data[3:5], "big")  # noqa: PLR2004 - a record's header


def offered(data: bytes) -> int | None:
    """Return the highest version that the ClientHello in *data* offers, as on the wire; None if there is none."""
    if len(data) < 44 or data[0] != _HANDSHAKE or data[5] != _CLIENT_HELLO:  # noqa: PLR2004 - up to the session ID
        return None
    version, position = int.from_bytes(data[9:11], "big"), 43
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
            if kind == _SUPPORTED_VERSIONS:
                versions = [int.from_bytes(body[at : at + 2], "big") for at in range(1, len(body) - 1, 2)]
                return max((each for each in versions if each in _NAMES), default=version)  # Others are GREASE.
    except IndexError:
        return None
    return version


def name_of(version: int) -> str:
    """Return what *version* is called."""
    return _NAMES.get(version, f"0x{version:04x}")
