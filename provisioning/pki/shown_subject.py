"""What to call a certificate, for people: OpenSSL accepts names that are no text here."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from provisioning.pki.extension import UNREADABLE


def shown_subject(certificate: x509.Certificate) -> str:
    """Return the subject of *certificate*, or its fingerprint if that is not text."""
    try:
        return certificate.subject.rfc4514_string()
    except UNREADABLE:
        return f"SHA-256 {certificate.fingerprint(SHA256()).hex()}"
