"""An EC key as GnuTLS writes it, which `cryptography` does not read: every second one, if certtool has made it.

The private number has as many octets as the curve's order, exactly (RFC 5915 §3). GnuTLS encodes it as an ASN.1
integer: with a zero octet in front where the first bit is set, and shorter where it begins with zeros. openssl reads
both.
"""

from __future__ import annotations

import base64
import re

from cryptography.hazmat.primitives.asymmetric import ec

_PRIVATE_NUMBER = re.compile(rb"\x30(?:[\x00-\x7f]|\x81.|\x82..)\x02\x01\x01\x04([\x01-\x7f])", re.DOTALL)
"""The beginning of an ECPrivateKey in DER, to the length of its private number."""
_BLOCK = re.compile(rb"-----BEGIN (?:EC )?PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END ")
_CURVES: dict[bytes, ec.EllipticCurve] = {
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
    bytes.fromhex("06052b81040023"): ec.SECP521R1(),
}


def padded_ec_key_in(pem: bytes) -> ec.EllipticCurvePrivateKey | None:
    """Return the key in *pem*, which may have text around it; None: it has none that is written so, or is encrypted."""
    block = _BLOCK.search(pem)
    if block is None:
        return None
    try:
        return padded_ec_key(base64.b64decode(block[1]))
    except ValueError:
        return None


def padded_ec_key(der: bytes) -> ec.EllipticCurvePrivateKey | None:
    """Return the key in *der*, an ECPrivateKey or a PrivateKeyInfo around one; None: it is something else."""
    found = _PRIVATE_NUMBER.search(der)
    if found is None:
        return None
    length = found[1][0]
    number = int.from_bytes(der[found.end() : found.end() + length])
    for encoded, curve in _CURVES.items():
        if encoded in der and number.bit_length() <= curve.key_size:
            try:
                return ec.derive_private_key(number, curve)
            except ValueError:
                return None
    return None
