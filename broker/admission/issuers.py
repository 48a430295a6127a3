"""The certification path above a client's certificate: which CA issued it, who vouches for that CA, up to an anchor.

Theory
------
OpenSSL has verified a path in a full handshake, and tells which; in a resumed one it tells nothing. What depends on the
issuer (which bundle judges, whose list the serial number is in, whether a CA between was revoked) needs the CA
certificate itself, not what the client's certificate says of it: an authority key identifier is whatever the issuer
wrote. So an `Issuer` is made of the CA certificates of a verified path, once, and shared by all that it certified; its
key identifier is computed from its key, so that no other CA can have the same.

Rules
-----
1. An `Issuer` is immutable, and belongs to one generation of trust.
2. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from cryptography import x509

from broker.admission.refusal import Refused
from provisioning.pki.crl import distribution_points
from provisioning.pki.extension import extension
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import CertificateKey, Revocation, RevocationIndex, certificate_key

if TYPE_CHECKING:
    from broker.admission.bundle import TrustBundle


class Issuer:
    """A CA that certifies clients here, or certifies one that does."""

    __slots__ = (
        "above",
        "authorities",
        "bundle",
        "certificate",
        "fault",
        "is_anchor",
        "key_id",
        "names",
        "not_after",
        "revoked_as",
    )

    def __init__(
        self, certificate: x509.Certificate, bundle: TrustBundle, above: Issuer | None, *, is_anchor: bool
    ) -> None:
        """Take the CA *certificate*, vouched for by *above*; an anchor needs nobody, and may have somebody."""
        self.certificate = certificate
        self.bundle = bundle
        self.above = above
        self.is_anchor = is_anchor
        self.key_id = key_identifier(certificate.public_key())
        self.fault: Refused | None = None
        """Why nobody whom it has certified is let in: what the bundle's terms say of the path."""
        self.names = frozenset(distribution_points(certificate))
        self.authorities = authorities_of([each.certificate for each in self.path()])
        """Which CAs stand above its clients, for who knows nothing else of them later."""
        self.revoked_as = revoked_as(certificate, None if above is None else above.key_id)
        """How the index of revocations names it."""
        self.not_after: datetime = certificate.not_valid_after_utc
        """When it ends, or before it a CA above it that no anchor stands for."""
        if above is not None and not is_anchor:
            self.not_after = min(self.not_after, above.not_after)

    @property
    def subject(self) -> str:
        """Its name, for people."""
        return self.certificate.subject.rfc4514_string()

    def path(self) -> Iterator[Issuer]:
        """Yield itself, and who stands above it."""
        issuer: Issuer | None = self
        while issuer is not None:
            yield issuer
            issuer = issuer.above

    def find_revoked(self, index: RevocationIndex) -> tuple[str, Revocation] | None:
        """Return the name of the first CA of the path that is revoked, with its revocation."""
        for each in self.path():
            for key in each.revoked_as:
                if (revocation := index.find(key)) is not None:
                    return each.subject, revocation
        return None


def revoked_as(certificate: x509.Certificate, above: bytes | None) -> tuple[CertificateKey, ...]:
    """Return how the index of revocations names a CA's *certificate*, issued by the key with the identifier *above*.

    By that key, if it is known, as lists do, and by what the certificate says of its issuer, as the feed does: a root
    that was imported may name its key otherwise. A root has been certified by nobody.
    """
    keys = [] if above is None else [(above, certificate.serial_number)]
    if certificate.issuer != certificate.subject:
        keys.append(certificate_key(certificate))
    return tuple(dict.fromkeys(keys))


def authorities_of(path: Sequence[x509.Certificate]) -> tuple[bytes, ...]:
    """Return the key identifiers of the CAs in *path*, upwards, and of whoever has certified the last of them.

    Empty if there is such a one and the certificate does not say who: then nobody can tell whether he is an anchor.
    """
    keys = [key_identifier(each.public_key()) for each in path]
    if path[-1].issuer != path[-1].subject:
        above = extension(path[-1], x509.AuthorityKeyIdentifier)
        if above is None or above.key_identifier is None:
            return ()
        keys.append(above.key_identifier)
    return tuple(keys)
