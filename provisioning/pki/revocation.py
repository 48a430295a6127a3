"""What is revoked: the one index that every check of a certificate asks.

Theory
------
A certificate is named by its issuer's key identifier and its serial number. The issuer belongs to the name: two CAs
may use the same serial, and a CA keeps its key when it is renamed. A look-up is one dict access whatever the size, so
it is made after *every* TLS handshake: a resumed TLS session skips OpenSSL's own checks.

Rules
-----
1. The first revocation of a certificate stands; revocation is final (RFC 5280 §5.3.1; certificateHold, the one
   reversible reason, is taken back by `RevocationIndex.release` or gives way to a final one).
2. No I/O and no clock: whoever feeds the index reads files and time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cryptography import x509

CertificateKey = tuple[bytes, int]
"""Issuer's key identifier, serial number."""


class RevocationReason(StrEnum):
    """Why a certificate is revoked, spelled as RFC 5280 §5.3.1 does."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    CA_COMPROMISE = "cACompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    CERTIFICATE_HOLD = "certificateHold"
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"
    AA_COMPROMISE = "aACompromise"

    @property
    def final(self) -> bool:
        """Whether it is for ever."""
        return self is not RevocationReason.CERTIFICATE_HOLD

    @property
    def flag(self) -> x509.ReasonFlags:
        """The same reason as `cryptography` names it."""
        return x509.ReasonFlags(self.value)


@dataclass(frozen=True, slots=True)
class Revocation:
    """One certificate's revocation: which, why, and since when (UTC)."""

    issuer_key_id: bytes
    serial: int
    reason: RevocationReason
    revoked_at: datetime

    @property
    def key(self) -> CertificateKey:
        """What the index files it under."""
        return self.issuer_key_id, self.serial


def certificate_key(certificate: x509.Certificate) -> CertificateKey:
    """Return how *certificate* is named in the index.

    Without an Authority Key Identifier, which RFC 5280 §4.2.1.1 requires and foreign CAs forget, the hash of the
    issuer's name takes its place.
    """
    try:
        authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        issuer_key_id = None
    else:
        issuer_key_id = authority.key_identifier
    if issuer_key_id is None:
        issuer_key_id = hashlib.sha256(certificate.issuer.public_bytes()).digest()
    return issuer_key_id, certificate.serial_number


class RevocationIndex:
    """Every revoked certificate known here, by issuer's key identifier and serial number."""

    __slots__ = ("_revocations",)

    def __init__(self) -> None:
        self._revocations: dict[CertificateKey, Revocation] = {}

    def __len__(self) -> int:
        return len(self._revocations)

    def add(self, revocation: Revocation) -> bool:
        """Record *revocation*; return whether the certificate was not revoked before."""
        known = self._revocations.setdefault(revocation.key, revocation)
        if known is not revocation and known.reason is RevocationReason.CERTIFICATE_HOLD:
            self._revocations[revocation.key] = revocation
        return known is revocation

    def release(self, key: CertificateKey) -> bool:
        """Forget a certificateHold; return whether there was one. Any other reason is final and stays."""
        revocation = self._revocations.get(key)
        if revocation is None or revocation.reason is not RevocationReason.CERTIFICATE_HOLD:
            return False
        del self._revocations[key]
        return True

    def find(self, key: CertificateKey) -> Revocation | None:
        """Return the revocation of the certificate named *key*, or None if it is not revoked."""
        return self._revocations.get(key)
