"""Whether one certificate was issued by the holder of another.

Theory
------
Names are compared as OpenSSL, and so TLS, compares them (`as_compared`): PrintableString and UTF8String may be equal,
and so are names that differ in upper and lower case, or in the number of spaces (RFC 5280 §7.1), both of ASCII alone.
The library compares bit by bit. So if two names are equal in different encodings, the library is given a stand-in for
the issuer: its key, under the name as the certificate encodes it. The stand-in's own signature, made with a throw-away
key, is never verified.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from provisioning.pki.keys import generate_key

_WRONG = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm)
_throw_away_key: Final = functools.cache(generate_key)
_LONG_AGO, _FAR_AHEAD = datetime(1990, 1, 1, tzinfo=UTC), datetime(2049, 1, 1, tzinfo=UTC)


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether *issuer* is named in *certificate*, and its key has signed it; names are compared first.

    Also False if the library does not know the signature algorithm: OpenSSL, and so TLS, knows more of them.
    """
    try:
        certificate.verify_directly_issued_by(issuer)
    except ValueError:  # For instance, the names differ.
        return _in_other_strings(certificate, issuer)
    except _WRONG:
        return False
    return True


@functools.lru_cache(512)
def as_compared(name: x509.Name) -> Hashable:
    """Return what is the same for all names that OpenSSL takes for equal, and differs for others.

    Except that strings of one text are equal here whatever their types: OpenSSL tells a NumericString from others.
    """
    return _compared(name)


@functools.lru_cache(512)
def compared_digest(name: x509.Name) -> bytes:
    """Return a digest of the same, which may be stored."""
    said = [sorted((each.dotted_string, value) for each, value in part) for part in _compared(name)]
    return hashlib.sha256(repr(said).encode()).digest()


def _compared(name: x509.Name) -> tuple[frozenset[tuple[x509.ObjectIdentifier, tuple[bool, bytes]]], ...]:
    return tuple(frozenset((each.oid, _folded(each.value)) for each in part) for part in name.rdns)


def is_self_issued(certificate: x509.Certificate) -> bool:
    """Whether *certificate* has its issuer's name, as a root has, and a CA's certificate for another key of its own."""
    return as_compared(certificate.subject) == as_compared(certificate.issuer)


def _folded(value: str | bytes) -> tuple[bool, bytes]:
    if isinstance(value, bytes):
        return False, value
    return True, b" ".join(value.encode().lower().split())  # As bytes: only letters and spaces of ASCII are folded.


def _in_other_strings(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        name = certificate.issuer
        if as_compared(name) != as_compared(issuer.subject):
            return False
        stand_in = x509.CertificateBuilder(name, name, issuer.public_key(), 1, _LONG_AGO, _FAR_AHEAD)
        certificate.verify_directly_issued_by(stand_in.sign(_throw_away_key(), hashes.SHA256()))
    except _WRONG:
        return False
    return True
