"""The certification path above a client's certificate: which CA issued it, and which CAs vouch for that one.

Theory
------
In a full handshake OpenSSL has verified a path and returns it; in a resumed one it returns nothing. What depends on the
issuer (which bundle judges, whose list contains the serial number, whether a CA in between was revoked) needs the CA
certificate itself, not what the client's certificate says about it: an authority key identifier is whatever the issuer
wrote. So an `Issuer` is built once from the CA certificates of a verified path and shared by all clients that it
certified. Its key identifier is computed from its key, so no other CA can have the same.

Rules
-----
1. An `Issuer` is immutable, and belongs to one generation of trust.
2. No I/O, no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from cryptography import x509

from broker.admission.refusal import Refused
from provisioning.pki.crl import distribution_points
from provisioning.pki.extension import extension
from provisioning.pki.issued_by import as_compared, compared_digest
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import CertificateKey, Revocation, RevocationIndex, certificate_key, whole_key

if TYPE_CHECKING:
    from broker.admission.bundle import TrustBundle

_SHOWN: Final = 200
_CA_BYTES: Final = 16


class UnreadableAuthority(Exception):
    """OpenSSL has verified a path through a CA whose certificate cannot be read here; the text says why."""


class Issuer:
    """A CA that certifies clients here, or certifies a CA that does."""

    __slots__ = (
        "_cas",
        "above",
        "authorities",
        "begins",
        "bundle",
        "called",
        "certificate",
        "fault",
        "identifier",
        "is_anchor",
        "key_id",
        "names",
        "not_after",
        "revoked_as",
        "stood_below",
    )

    def __init__(
        self, certificate: x509.Certificate, bundle: TrustBundle, above: Issuer | None, *, is_anchor: bool
    ) -> None:
        """Take the CA *certificate*, vouched for by *above*; an anchor needs no such CA, but may have one."""
        self._cas: Sequence[bytes] = ()
        self.certificate = certificate
        self.bundle = bundle
        self.above = above
        self.is_anchor = is_anchor
        self.called = as_compared(certificate.subject)
        """Its name, as others state it as their issuer's."""
        self.key_id = key_identifier(certificate.public_key())
        stated = extension(certificate, x509.SubjectKeyIdentifier)
        self.identifier = None if stated is None else stated.digest
        """The key identifier that its certificate says, which others state as their issuer's; it may be anything."""
        self.fault: Refused | None = None
        """Why all clients that it has certified are refused: what the bundle's terms say about the path."""
        self.stood_below: tuple[x509.Certificate, ...] | None = None
        """Of one that is confined by its key: the CAs above it in the path, in which `above` was not."""
        self.names = frozenset(distribution_points(certificate))
        self.authorities = authorities_of([each.certificate for each in self.path()])
        """The CAs above its clients, for callers that know nothing else of them later."""
        self.revoked_as = revoked_as(certificate, None if above is None else above.key_id)
        """How the revocation index identifies it."""
        self.begins: datetime = certificate.not_valid_before_utc
        self.not_after: datetime = certificate.not_valid_after_utc
        """When it expires, or earlier, when a CA above it does that no anchor replaces."""
        if above is not None and not is_anchor:
            self.not_after = min(self.not_after, above.not_after)

    @property
    def subject(self) -> str:
        """Its name, for display."""
        return self.certificate.subject.rfc4514_string()

    def is_in_date(self, now: datetime) -> bool:
        """Whether it has begun, and its path has not expired."""
        return self.begins <= now <= self.not_after

    @property
    def ends_with(self) -> str:
        """Whose certificate it is that ends by `not_after`, for display: perhaps one that the client has never had."""
        first = next(each for each in self.path() if each.certificate.not_valid_after_utc == self.not_after)
        whose = f"the certificate of the CA {first.subject[:_SHOWN]}"
        return f"{whose}, an anchor of {first.bundle.name}," if first in self.bundle.anchors else whose

    def path(self) -> Iterator[Issuer]:
        """Yield this issuer, and every CA above it."""
        issuer: Issuer | None = self
        while issuer is not None:
            yield issuer
            issuer = issuer.above

    def verified(self) -> Iterator[x509.Certificate]:
        """Yield the certificates of the path as a handshake has verified it, its own first."""
        for each in self.path():
            yield each.certificate
            if each.stood_below is not None:
                yield from each.stood_below
                return

    @property
    def cas(self) -> Sequence[bytes]:
        """The CAs of the path by their names and keys, and who has certified the last one, if that is known."""
        if not self._cas:  # Not when it is made: only wills need it, and `stood_below` is not there yet.
            self._cas = cas_of(list(self.verified()))
        return self._cas

    @property
    def issuing(self) -> x509.Certificate:
        """Its certificate: of a client's path it is the issuing CA."""
        return self.certificate

    @property
    def path_revoked_as(self) -> list[CertificateKey]:
        """How the revocation index identifies it, and every CA above it."""
        return [key for each in self.path() for key in each.revoked_as]

    def find_revoked(self, index: RevocationIndex) -> tuple[str, Revocation] | None:
        """Return the name of the first CA of the path that is revoked, with its revocation."""
        for each in self.path():
            for key in each.revoked_as:
                if (revocation := index.find(key)) is not None:
                    return each.subject, revocation
        return None


def revoked_as(certificate: x509.Certificate, above: bytes | None) -> tuple[CertificateKey, ...]:
    """Return how the revocation index identifies a CA's *certificate*, issued by the key with the identifier *above*.

    By that key, if it is known, as CRLs do; and by what the certificate says about its issuer, as the feed does: an
    imported root may identify its key differently. And by its own key, for which there may be another certificate. A
    root has no issuer; a certificate between roots of one name has, also where it is an anchor.
    """
    keys = [] if above is None else [(above, certificate.serial_number)]
    if certificate.issuer != certificate.subject:
        keys += [certificate_key(certificate), whole_key(key_identifier(certificate.public_key()))]
    elif not _names_its_own_key(certificate):
        keys.append(certificate_key(certificate))
    return tuple(dict.fromkeys(keys))


def _names_its_own_key(certificate: x509.Certificate) -> bool:
    """Whether a certificate that has its issuer's name says that its own key has signed it, or says nothing."""
    by, own = extension(certificate, x509.AuthorityKeyIdentifier), extension(certificate, x509.SubjectKeyIdentifier)
    said = None if by is None else by.key_identifier
    return said is None or said == key_identifier(certificate.public_key()) or (own is not None and said == own.digest)


def authorities_of(path: Sequence[x509.Certificate]) -> tuple[bytes, ...]:
    """Return the key identifiers of the CAs in *path*, upwards, and of the CA that certified the last one, if any.

    Empty if there is such a CA and the certificate does not identify it: whether it is an anchor cannot be known then.
    """
    keys = [key_identifier(each.public_key()) for each in path]
    if path[-1].issuer != path[-1].subject:
        above = extension(path[-1], x509.AuthorityKeyIdentifier)
        if above is None or above.key_identifier is None:
            return ()
        keys.append(above.key_identifier)
    return tuple(keys)


def cas_of(path: Sequence[x509.Certificate]) -> Sequence[bytes]:
    """Return the CAs in *path*, upwards, by their names and keys, and who has certified the last one, if it says so."""
    cas = [_ca(each.subject, key_identifier(each.public_key())) for each in path]
    if path[-1].issuer != path[-1].subject:
        above = extension(path[-1], x509.AuthorityKeyIdentifier)
        if above is not None and above.key_identifier is not None:
            cas.append(_ca(path[-1].issuer, above.key_identifier))
    return cas


def _ca(name: x509.Name, key_id: bytes) -> bytes:
    return hashlib.sha256(compared_digest(name) + key_id).digest()[:_CA_BYTES]
