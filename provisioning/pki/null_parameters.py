"""Reads a request whose signature algorithm has the NULL that keys in a TPM bring along.

tpm2-openssl up to 1.3.0, which is the OpenSSL provider of Debian 13 for keys in a TPM, says *ecdsa-with-SHA256, NULL*
in each request, where RFC 5758 §3.2 forbids parameters. OpenSSL does not mind; the library refuses to read it. A device
whose key is in a TPM could not enrol at all. Only the request itself is meant: what it signs does not contain the
algorithm, so that without the NULL it is the same request with the same proof of possession.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509

_ECDSA: Final = bytes.fromhex("06082a8648ce3d0403")
"""The identifiers of ecdsa-with-SHA256, SHA384 and SHA512 (2, 3, 4), up to the last octet."""
_PARAMETERS: Final = {
    b"\x30\x0c" + _ECDSA + last + b"\x05\x00": b"\x30\x0a" + _ECDSA + last for last in (b"\x02", b"\x03", b"\x04")
}
_LONG: Final = 0x80


def load_request(der: bytes) -> x509.CertificateSigningRequest:
    """Return the PKCS #10 request in *der*, as the library reads it, or as it does without the NULL."""
    try:
        return x509.load_der_x509_csr(der)
    except ValueError:
        without = _without_null(der)
        if without is None:
            raise
        return x509.load_der_x509_csr(without)


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
