"""Certificates whose key is on a curve of its own, described by parameters: an answer to one is dear (RFC 5480 §2.1.1).

The field is that of a prime which a power of two, less one, divides: the square root that the point needs then takes
OpenSSL a hundred thousand multiplications, and there are two points.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_sim.attack.der import content, element, elements

_PRIME: Final = 0x800000000000541 << 600 | 1
_SIZE: Final = (_PRIME.bit_length() + 7) // 8
_EC_KEY, _PRIME_FIELD = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0101")
_INTEGER, _BITS, _OCTETS, _SEQUENCE = 0x02, 0x03, 0x04, 0x30
_ONE, _FOURTEEN = (value.to_bytes(_SIZE) for value in (1, 14))


def on_own_curve(certificate: x509.Certificate) -> bytes:
    """Return *certificate* with a key on the curve y² = x³ + x + 14 of that field; its signature is wrong then."""
    point = b"\x02" + _ONE  # y is 4.
    field = element(_SEQUENCE, _PRIME_FIELD + _integer(_PRIME))
    curve = element(_SEQUENCE, element(_OCTETS, _ONE) + element(_OCTETS, _FOURTEEN))
    described = _integer(1) + field + curve + element(_OCTETS, point) + _integer(_PRIME - 2) + _integer(1)
    algorithm = element(_SEQUENCE, _EC_KEY + element(_SEQUENCE, described))
    key = element(_SEQUENCE, algorithm + element(_BITS, b"\0" + point))
    named = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signed, *signature = elements(content(certificate.public_bytes(Encoding.DER)))
    return element(_SEQUENCE, element(_SEQUENCE, content(signed).replace(named, key)) + b"".join(signature))


def _integer(value: int) -> bytes:
    return element(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1))
