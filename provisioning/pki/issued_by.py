"""Whether one certificate was issued by the holder of another.

Theory
------
Names are compared as OpenSSL compares them, and so TLS, as far as it concerns the kinds of strings: what one writes as
PrintableString is another's UTF8String (RFC 5280 §7.1). The library compares to the bit. So where the two say the same
in other strings, it is asked about a stand-in for the issuer: its key, under the name as the certificate writes it. The
stand-in's own signature, by a key that is thrown away, is looked at by nobody.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

_WRONG = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm)
_LONG_AGO, _FAR_AHEAD = datetime(1990, 1, 1, tzinfo=UTC), datetime(2049, 1, 1, tzinfo=UTC)


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether *issuer* is named in *certificate*, and its key has signed it; names are compared before.

    False, too, where the signature is of a kind that the library does not know: OpenSSL, and so TLS, knows more.
    """
    try:
        certificate.verify_directly_issued_by(issuer)
    except ValueError:  # For one thing, the names differ.
        return _in_other_strings(certificate, issuer)
    except _WRONG:
        return False
    return True


def _in_other_strings(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        name = certificate.issuer
        if name != issuer.subject:
            return False
        stand_in = x509.CertificateBuilder(name, name, issuer.public_key(), 1, _LONG_AGO, _FAR_AHEAD)
        certificate.verify_directly_issued_by(stand_in.sign(_throw_away_key(), hashes.SHA256()))
    except _WRONG:
        return False
    return True


@functools.cache
def _throw_away_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
