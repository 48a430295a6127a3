"""A list of keys whose private half is public: Debian's weak keys of 2008, firmware and sample keys.

The format is that of the badkeys project (``badkeys --update-bl`` fetches its list, some millions of keys): sorted
records of 16 bytes, 15 of the SHA-256 of an RSA key's modulus, an EC key's x coordinate, or an Ed25519 key, then the
number of the collection that the key was found in. Looking one up is a binary search, whatever the length.

Handles: looking up. Does not handle: reading the file, fetching the list.
"""

from __future__ import annotations

import bisect
import hashlib
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

RECORD: Final = 16
_DIGEST: Final = 15


class InvalidBlocklist(ValueError):
    """The bytes are not a list in this format; the text says why."""


class KeyBlocklist:
    """Answers whether a key is in the list."""

    def __init__(self, records: bytes) -> None:
        """Raise `InvalidBlocklist` unless *records* are whole and sorted: otherwise the search would miss keys."""
        self._records = records
        if len(records) % RECORD:
            raise InvalidBlocklist(f"its {len(records)} bytes are not whole records of {RECORD}")
        previous = b""
        for begin in range(0, len(records), RECORD):
            record = records[begin : begin + _DIGEST]
            if record < previous:
                raise InvalidBlocklist(f"record {begin // RECORD} is out of order")
            previous = record

    def __len__(self) -> int:
        return len(self._records) // RECORD

    def __getitem__(self, place: int) -> bytes:
        """Return the digest in the record at *place*."""
        return self._records[place * RECORD : place * RECORD + _DIGEST]

    def __contains__(self, key: object) -> bool:
        wanted = digest_of(key)
        place = bisect.bisect_left(self, wanted)
        return place < len(self) and self[place] == wanted


def digest_of(key: object) -> bytes:
    """Return the digest by which the list identifies a public key."""
    match key:
        case rsa.RSAPublicKey():
            named = _magnitude(key.public_numbers().n)
        case ec.EllipticCurvePublicKey():
            named = _magnitude(key.public_numbers().x)
        case ed25519.Ed25519PublicKey():
            named = _magnitude(int.from_bytes(key.public_bytes_raw()))
        case _:
            raise TypeError(f"{type(key).__name__} has no place in the list")
    return hashlib.sha256(named).digest()[:_DIGEST]


def _magnitude(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)
