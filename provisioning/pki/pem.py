"""Certificates, and whatever else is in DER, as PEM text (RFC 7468)."""

from __future__ import annotations

import base64

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding


def pem_of(*certificates: x509.Certificate) -> bytes:
    """Return *certificates* as one PEM text."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def armoured(label: str, der: bytes) -> bytes:
    """Return *der* as PEM, under the *label* that says what it is."""
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label.encode(), base64.encodebytes(der), label.encode())
