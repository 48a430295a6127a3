"""PEM of a certificate, or a request, of a version that nobody has defined: well-formed, and what no library parses."""

from __future__ import annotations

import base64

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

_VERSION_3, _VERSION_8 = bytes.fromhex("a003020102"), bytes.fromhex("a003020107")
_REQUEST, _REQUEST_8 = bytes.fromhex("020100"), bytes.fromhex("020107")


def unknown_version(of: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """Return it with another version and its former signature."""
    der = of.public_bytes(Encoding.DER)
    if isinstance(of, x509.Certificate):
        kind, changed = "CERTIFICATE", der.replace(_VERSION_3, _VERSION_8, 1)
    else:
        kind, changed = "CERTIFICATE REQUEST", der.replace(_REQUEST, _REQUEST_8, 1)
    assert changed != der
    return f"-----BEGIN {kind}-----\n{base64.encodebytes(changed).decode()}-----END {kind}-----\n".encode()
