"""Whether one certificate was issued by the holder of another."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether *issuer* is named in *certificate*, and its key has signed it; names are compared before.

    False, too, where the signature is of a kind that the library does not know: OpenSSL, and so TLS, knows more.
    """
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
