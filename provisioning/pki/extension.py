"""One extension of a certificate: `cryptography`'s own look-up, without its exception and its abstract base classes.

Three extensions are read at every admission; ``isinstance`` on those classes costs more than parsing the certificate.
"""

from __future__ import annotations

from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from provisioning.pki.panic import GaveUp

UNREADABLE: Final = (
    ValueError,
    TypeError,  # For a BIT STRING in a name.
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    GaveUp,  # Where it is read in a `provisioning.pki.panic.NoPanic`.
)
"""What `cryptography` raises for a certificate or list that it cannot parse, even if only one extension or name."""
UNUSABLE: Final = (*UNREADABLE, UnsupportedAlgorithm)
"""The same, and what it raises for an unknown kind of key, and for PKCS #7 with other content."""

E = TypeVar("E", bound=x509.ExtensionType)


def check_readable(certificate: x509.Certificate) -> None:
    """Raise one of `UNUSABLE` if a part of *certificate* cannot be read that is parsed only when it is asked for.

    OpenSSL accepts more than the library does: a time of the year 0, for instance, for which there is no `datetime`.
    """
    _ = certificate.subject.rfc4514_string(), certificate.issuer, certificate.extensions, certificate.public_key()
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc


def extension(
    certificate: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList, kind: type[E]
) -> E | None:
    """Return the value of the extension of *kind*, or None if *certificate*, a request or a list, has none.

    Raises what parsing the extensions raises, see `UNREADABLE`.
    """
    for each in certificate.extensions:
        value = each.value
        if type(value) is kind:
            return value
    return None
