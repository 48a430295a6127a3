"""ClientHellos of TLS 1.3 with anything in them (RFC 8446 §4.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

GROUPS, SHARES, AUTHORITIES = 10, 51, 47
"""Numbers of extensions: supported_groups, key_share, certificate_authorities."""
X25519: Final = 0x001D
RECORD: Final = 16384
_VERSIONS, _SCHEMES = 43, 13
_POINT: Final = bytes.fromhex("09") + bytes(31)
"""A share of X25519: that of its base point."""


def sized(content: bytes) -> bytes:
    """Return *content* behind its length in two bytes."""
    return len(content).to_bytes(2) + content


def numbers(*values: int) -> bytes:
    """Return *values* of two bytes each."""
    return b"".join(value.to_bytes(2) for value in values)


def hello(
    *more: bytes,
    groups: Sequence[int] = (X25519,),
    shares: Sequence[tuple[int, bytes]] = ((X25519, _POINT),),
    suites: Sequence[int] = (0x1301,),
) -> bytes:
    """Return the records of a ClientHello with these lists, and *more* extensions."""
    extensions = [
        numbers(_VERSIONS) + sized(b"\x02\x03\x04"),
        numbers(_SCHEMES) + sized(sized(numbers(0x0403))),
        numbers(GROUPS) + sized(sized(numbers(*groups))),
        numbers(SHARES) + sized(sized(b"".join(numbers(group) + sized(share) for group, share in shares))),
        *more,
    ]
    said = b"\x03\x03" + bytes(32) + b"\0" + sized(numbers(*suites)) + b"\x01\0" + sized(b"".join(extensions))
    message = b"\x01" + len(said).to_bytes(3) + said
    pieces = [message[start : start + RECORD] for start in range(0, len(message), RECORD)]
    return b"".join(b"\x16\x03\x01" + sized(piece) for piece in pieces)
