"""Reads a request whose signature algorithm has the NULL that keys in a TPM bring along; names it in what CAs sign.

tpm2-openssl up to 1.3.0, which is the OpenSSL provider of Debian 13 for keys in a TPM, says *ecdsa-with-SHA256, NULL*
in each request, where RFC 5758 §3.2 forbids parameters. OpenSSL does not mind; the library refuses to read it. A device
whose key is in a TPM could not enrol at all. Only the request itself is meant: what it signs does not contain the
algorithm, so that without the NULL it is the same request with the same proof of possession.

A certificate or a CRL contains the algorithm under its signature: it can only be issued anew, and `null_in` says so.
"""

from __future__ import annotations

import binascii
import contextlib
from typing import Final

from cryptography import x509

_ECDSA: Final = bytes.fromhex("06082a8648ce3d0403")
"""The identifiers of ecdsa-with-SHA256, SHA384 and SHA512 (2, 3, 4), up to the last octet."""
_PARAMETERS: Final = {
    b"\x30\x0c" + _ECDSA + last + b"\x05\x00": b"\x30\x0a" + _ECDSA + last for last in (b"\x02", b"\x03", b"\x04")
}
_LONG: Final = 0x80
_NULL_FOUND: Final = (
    "its signature algorithm has a NULL parameter, as tpm2-openssl up to 1.3 writes, which RFC 5758 forbids: "
    "the CA must issue it anew without"
)


def load_request(der: bytes) -> x509.CertificateSigningRequest:
    """Return the PKCS #10 request in *der*, as the library reads it, or as it does without the NULL."""
    try:
        return x509.load_der_x509_csr(der)
    except ValueError:
        without = _without_null(der)
        if without is None:
            raise
        return x509.load_der_x509_csr(without)


def null_in(content: bytes) -> str | None:
    """Return what is to be said of the certificates or the CRL in *content*, PEM or DER, if one has the NULL.

    For what the library has refused: that may be read without a word of it one day.
    """
    return _NULL_FOUND if any(null in der for der in _ders(content) for null in _PARAMETERS) else None


def _ders(content: bytes) -> list[bytes]:
    if content[:1] == b"\x30":
        return [content]
    found = []
    for between in content.split(b"-----"):
        with contextlib.suppress(binascii.Error):  # What is no base64 has been said to be unusable already.
            found.append(binascii.a2b_base64(between))
    return found


def _without_null(der: bytes) -> bytes | None:
    """Return *der* without the NULL; None if there is none. What else is wrong with it, the library tells."""
    for found, right in _PARAMETERS.items():
        before, meant, signature = der.rpartition(found)
        if meant:
            begin = 2 + (der[1] & ~_LONG if der[1] & _LONG else 0)
            inside = before[begin:] + right + signature
            size = len(inside)
            octets = size.to_bytes((size.bit_length() + 7) // 8)
            length = bytes((size,)) if size < _LONG else bytes((_LONG | len(octets),)) + octets
            return der[:1] + length + inside
    return None
