"""A trust bundle: the anchors for one kind of clients, and the terms on which they are trusted.

Rules
-----
1. A bundle trusts only what it was given: its anchors are the certificates in its files, none of the system's.
2. A path ends at the first anchor in it. If an anchor is a renewed certificate of a CA in the path (same name and key,
   later end), the path ends there with that anchor. An anchor whose own issuer is also an anchor, wherever that one is
   listed, is still looked up in that issuer's CRLs: it is trusted, and can be revoked, as can every CA above it.
3. An anchor that was not in the path when OpenSSL verified it, as one that has replaced another since, is at its end
   only if it allows what is below: so many CAs, clients, and no other names than the certificate that it has renewed.
   Where the question is to which bundle a CA is confined, only its key counts.
4. Immutable; no I/O, no clock.

Does not handle: name constraints of an anchor above the one at which a path has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.admission.bundle_terms import DEFAULT_TERMS, BundleTerms
from broker.admission.freshness import FeedTerms
from broker.admission.issuers import Issuer, revoked_as
from broker.settings.trust_settings import StatusPolicy
from provisioning.pki.extension import extension
from provisioning.pki.issued_by import as_compared, is_issued_by, is_self_issued
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import CasAbove


@dataclass(frozen=True, slots=True)
class ListTerms:
    """How a bundle uses CRLs."""

    policy: StatusPolicy
    from_certificates: bool = False
    """Whether CRLs are fetched from the distribution points in the clients' certificates."""


@dataclass(frozen=True, slots=True)
class OcspTerms:
    """How a bundle uses OCSP."""

    policy: StatusPolicy
    responder: str | None = None
    """The responder to ask, whatever a certificate says."""
    from_certificates: bool = False


class TrustBundle:
    """One bundle; *lists* is None if no CRLs are used, *feed* says whether the feed covers its revocations."""

    def __init__(
        self,
        name: str,
        anchors: Sequence[x509.Certificate],
        *,
        terms: BundleTerms = DEFAULT_TERMS,
        lists: ListTerms | None = None,
        ocsp: OcspTerms | None = None,
        feed: bool = True,
        feed_terms: FeedTerms | None = None,
        fetched: Collection[x509.Certificate] = (),
    ) -> None:
        """Trust *anchors*; of these, *fetched* are named by a URL alone, and not by the settings."""
        self.name = name
        self.terms = terms
        self.lists = lists
        self.ocsp = ocsp
        self.feed = feed
        self.feed_terms = feed_terms
        """How closely the feed must be followed; None: as in the broker's own setting."""
        self._anchors: dict[bytes, Issuer] = {}
        roots_first = sorted(anchors, key=is_self_issued, reverse=True)
        for certificate in roots_first:
            self._anchor(certificate, roots_first)
        self._called: dict[Hashable, list[Issuer]] = {}
        """They by their names."""
        for each in self._anchors.values():
            self._called.setdefault(each.called, []).append(each)
        self.anchor_keys = frozenset(each.key_id for each in self._anchors.values())
        """The key identifiers of the anchors."""
        self.fetched = frozenset(map(_der, fetched))
        """The anchors, in DER, that whoever answers at a URL has named."""
        self.named_keys = frozenset(each.key_id for der, each in self._anchors.items() if der not in self.fetched)
        """The key identifiers of those that the settings have named."""

    @property
    def anchors(self) -> list[Issuer]:
        """Every anchor."""
        return list(self._anchors.values())

    def issuer_at(self, path: Sequence[x509.Certificate]) -> Issuer | None:
        """Return the issuer at the start of *path*, the CA certificates of a verified path upwards; None: not ours."""
        below, end = self._ended(path)
        return None if end is None else self._issuer(below, end, end.certificate)

    def takes(self, path: Sequence[x509.Certificate]) -> bool:
        """Whether *path* is one that leads to an anchor of this bundle, whatever its terms."""
        return self._ended(path)[1] is not None

    def _ended(self, path: Sequence[x509.Certificate]) -> tuple[list[x509.Certificate], Issuer | None]:
        """Return the anchor at which *path* ends, if there is one, and the CAs below it."""
        below: list[x509.Certificate] = []
        for certificate in path:
            end = self._anchors.get(_der(certificate)) or self._renewed(certificate, below)
            if end is not None:
                return below, end
            below.append(certificate)
        # It ended at another bundle's anchor, which one of ours may have cross-certified.
        return below, self._anchor_above(below) if below else None

    def issuer_by_key(self, path: Sequence[x509.Certificate], keys: Collection[bytes]) -> Issuer | None:
        """Return the issuer at the start of *path* as if its first CA with one of *keys*, of anchors, were an anchor.

        It is confined to this bundle whatever that certificate is called, and whatever the anchor allows itself; and
        ends, or is revoked, with either.
        """
        place = next(place for place, each in enumerate(path) if key_identifier(each.public_key()) in keys)
        end = Issuer(path[place], self, None, is_anchor=True)
        anchors = (each for each in self._anchors.values() if each.key_id == end.key_id)
        anchor = max(anchors, key=lambda each: each.not_after)
        end.above, end.not_after = anchor, min(end.not_after, anchor.not_after)
        end.stood_below = tuple(path[place + 1 :])
        if place + 1 < len(path):  # By the key that has signed it, too: it need not say which that is.
            end.revoked_as = revoked_as(end.certificate, key_identifier(path[place + 1].public_key()))
        return self._issuer(path[:place], end, anchor.certificate)

    def _issuer(self, below: Sequence[x509.Certificate], issuer: Issuer, named: x509.Certificate) -> Issuer | None:
        """Return the first of *below*, the CAs below the anchor *issuer*, as an issuer; or the anchor, if none is.

        *named* is the anchor's certificate in the settings.
        """
        if not self.terms.accepts_issuer(below[0] if below else named):
            return None
        fault = self.terms.refuse_path(below, issuer.certificate)
        for certificate in reversed(below):
            issuer = Issuer(certificate, self, issuer, is_anchor=False)
        issuer.fault = fault
        return issuer

    def vouches_for(self, authorities: Sequence[bytes], above: CasAbove | None) -> bool:
        """Whether a path through CAs with the keys *authorities*, upwards, leads to an anchor, on the bundle's terms.

        *above* are these CAs, None if no more is known of them: what is not known counts against nobody.
        """
        between = self.place_in(authorities)
        if between is None:
            return False
        return any(self.terms.accepts_path(between, each) for each in self._issuing(between, authorities[0], above))

    def claims(self, authorities: Sequence[bytes], above: CasAbove | None) -> bool:
        """Whether such a path is this bundle's to judge, on whatever terms; false where that is not known."""
        between = self.place_in(authorities)
        if between is None:
            return False
        return any(map(self.terms.accepts_issuer, self._issuing(between, authorities[0], above)))

    def place_in(self, authorities: Sequence[bytes]) -> int | None:
        """Return the place of the first of the keys *authorities* that is an anchor's."""
        return next((place for place, key in enumerate(authorities) if key in self.anchor_keys), None)

    def ends_at(self, certificate: x509.Certificate) -> bool:
        """Whether a path that has *certificate* ends there for this bundle: an anchor, or one that has renewed it."""
        return _der(certificate) in self._anchors or self._renewed(certificate, ()) is not None

    def anchors_with(self, key: bytes) -> Sequence[x509.Certificate]:
        """Return the certificates of the anchors that have this *key*."""
        return [each.certificate for each in self._anchors.values() if each.key_id == key]

    def _issuing(self, between: int, key: bytes, above: CasAbove | None) -> Sequence[x509.Certificate | None]:
        """Return the certificates that the issuing CA, with *key* and *between* CAs below an anchor, may have."""
        if between:
            return [None if above is None else above.issuing]
        return self.anchors_with(key)

    def _anchor(
        self, certificate: x509.Certificate, given: Sequence[x509.Certificate], below: tuple[x509.Certificate, ...] = ()
    ) -> Issuer:
        """Return *certificate* as an anchor; the one of *given* that issued it comes first, wherever it is listed.

        *below* are the anchors that wait for this one. CAs may have certified each other: one of those has none above.
        """
        known = self._anchors.get(_der(certificate))
        if known is not None:
            return known
        below = (*below, certificate)
        above = _issuer_in([each for each in given if each not in below], certificate)
        anchor = Issuer(certificate, self, None if above is None else self._anchor(above, given, below), is_anchor=True)
        self._anchors[_der(certificate)] = anchor
        return anchor

    def _renewed(self, authority: x509.Certificate, below: Sequence[x509.Certificate]) -> Issuer | None:
        """Return the anchor that has renewed *authority*, which is above *below*.

        It has the same key, so signatures of one are the other's.
        """
        called = self._called.get(as_compared(authority.subject))
        if called is None:
            return None
        key, ends = key_identifier(authority.public_key()), authority.not_valid_after_utc
        renewals = [
            each
            for each in called
            if each.key_id == key
            and each.not_after > ends
            and allows(each.certificate, below)
            and constrains_no_more(each.certificate, [authority])
        ]
        return max(renewals, key=lambda each: each.not_after, default=None)

    def _anchor_above(self, below: Sequence[x509.Certificate]) -> Issuer | None:
        called = self._called.get(as_compared(below[-1].issuer), ())
        above = _issuer_in([each.certificate for each in called], below[-1])
        return self._anchors[_der(above)] if above is not None and allows(above, below) else None


def allows(anchor: x509.Certificate, below: Sequence[x509.Certificate]) -> bool:
    """Whether *anchor* may be above the CAs *below*, and above clients."""
    constraints, usage = extension(anchor, x509.BasicConstraints), extension(anchor, x509.KeyUsage)
    purposes = extension(anchor, x509.ExtendedKeyUsage)
    if constraints is not None and constraints.path_length is not None:
        number = sum(not is_self_issued(each) for each in below)  # RFC 5280 §4.2.1.9
        if number > constraints.path_length:
            return False
    if usage is not None and not usage.key_cert_sign:
        return False
    return purposes is None or ExtendedKeyUsageOID.CLIENT_AUTH in purposes


def constrains_no_more(anchor: x509.Certificate, before: Iterable[x509.Certificate]) -> bool:
    """Whether *anchor* surely allows all names that one of *before* did: it has no other constraints."""
    constraints = extension(anchor, x509.NameConstraints)
    return constraints is None or any(constraints == extension(each, x509.NameConstraints) for each in before)


def _issuer_in(authorities: Sequence[x509.Certificate], certificate: x509.Certificate) -> x509.Certificate | None:
    """Return the first of *authorities* that has issued *certificate*; None: it is a root, or none has."""
    if is_self_issued(certificate):
        return None
    return next((each for each in authorities if is_issued_by(certificate, each)), None)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
