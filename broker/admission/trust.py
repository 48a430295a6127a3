"""One generation of trust: every bundle, and what has been learned of the CAs under them.

Theory
------
OpenSSL verifies a client's path against the anchors of all bundles together; which bundle it belongs to is found here,
from that very path. CAs are few and clients are many, so what is found for a path is kept: after the first client that
has come by it the answer is one dict access. There are several paths above one issuing CA while a CA above it is
renewed; each ends with its own certificates, and who comes by the new one is not judged by what has ended.

Rules
-----
1. The first bundle, in the order of the configuration, that vouches for the path judges, and its word is final.
2. Only CA certificates from a path that OpenSSL has verified are learned, and of each bundle at most `_MOST_PATHS`
   paths, and `_MOST_NAMESAKES` CAs of one name: whoever comes by one more is refused (`TRUST_FULL`), and that is said
   in the log, once a bundle. Who has a CA of one bundle cannot use up what is another's.
3. A resumed session brings no path: the issuer is then the CA, learned or an anchor, whose key has signed the
   certificate. Any CA can certify another's key. So bundles of the broker's own trust domain are asked first, then the
   others in their order: what a foreign CA says of a key of ours counts for nobody who is ours. Of several paths in one
   bundle that counts which was learned first, or another one that lasts longer or has no fault. Right below an anchor
   that several bundles share rule 1 says whose it is, as in a full handshake.
4. Immutable but for what it learns; another configuration is another generation. No I/O but the log, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.bundle import TrustBundle
from broker.admission.issuers import Issuer
from broker.admission.refusal import RefusalCode, Refused
from broker.mqtt.codes import ReasonCode
from provisioning.pki.issued_by import is_issued_by

log = structlog.get_logger("broker")

_MOST_PATHS = 1024
_MOST_NAMESAKES = 32
"""CAs of one name in one bundle: whoever comes back is looked for among them by their signatures, 0.1 ms each."""
_SHOWN = 200


class Trust:
    """Who is believed."""

    def __init__(self, bundles: Sequence[TrustBundle], generation: int = 1) -> None:
        self.bundles = tuple(bundles)
        self.generation = generation
        self.domains = frozenset(bundle.terms.trust_domain for bundle in self.bundles)
        """The trust domains that bundles vouch for; None: the broker's own."""
        self._full: set[str] = set()
        """The bundles of which it was said that they are."""
        self._paths: dict[tuple[bytes, ...], Issuer] = {}
        """What each path begins with, by its CA certificates."""
        self._issuers: dict[tuple[bytes, str], Issuer] = {}
        """Of those, one for each CA that issues to clients, and bundle: what counts where there is no path."""
        anchors = (anchor for bundle in self.bundles for anchor in bundle.anchors)
        self.revoked_as = {key for anchor in anchors for each in anchor.path() for key in each.revoked_as}
        """How the index of revocations names every CA that is known."""

    @property
    def learned(self) -> int:
        """How many paths are known; it grows, and a list that found no issuer may find one then."""
        return len(self._paths)

    def paths_of(self, bundle: TrustBundle) -> int:
        """Return how many of them are of *bundle*."""
        return sum(each.bundle is bundle for each in self._paths.values())

    @property
    def anchors_pem(self) -> str:
        """Every bundle's anchors, as OpenSSL reads them."""
        ders = {
            issuer.certificate.public_bytes(Encoding.PEM): None for bundle in self.bundles for issuer in bundle.anchors
        }
        return b"".join(ders).decode()

    @property
    def fingerprints(self) -> dict[str, list[str]]:
        """The SHA-256 of every bundle's anchors: who is trusted, for the record."""
        return {
            bundle.name: [anchor.certificate.fingerprint(SHA256()).hex() for anchor in bundle.anchors]
            for bundle in self.bundles
        }

    def issuer_of(self, certificate: x509.Certificate, path: Sequence[bytes], own: str | None = None) -> Issuer | None:
        """Return who issued *certificate*, from the verified *path* (DER, the client's own first; empty if resumed).

        *own* is the broker's trust domain, if it has one.
        """
        if len(path) > 1:
            above = tuple(path[1:])
            known = self._paths.get(above)
            return known if known is not None else self._learn(above)
        if path:
            return None  # The client's own certificate is an anchor; nobody has issued it.
        for bundle in self._in_order(own):
            for each in self._issuers.values():
                if each.bundle is bundle and _has_issued(each, certificate):
                    return each
            for anchor in bundle.anchors:
                if _has_issued(anchor, certificate):
                    return self._first_at([anchor.certificate])
        return None

    def _first_at(self, path: Sequence[x509.Certificate]) -> Issuer | None:
        """Return what *path* begins with, of the first bundle that vouches for it (rule 1)."""
        return next(filter(None, (bundle.issuer_at(path) for bundle in self.bundles)), None)

    def _in_order(self, own: str | None) -> list[TrustBundle]:
        """Return the bundles as they are asked about a certificate whose path is not known (rule 3)."""
        return sorted(self.bundles, key=lambda bundle: bundle.terms.trust_domain not in {None, own})

    def issuing(self, bundle: TrustBundle) -> list[Issuer]:
        """Return the CAs of *bundle* that issue to clients: those of whom one has come, else its anchors."""
        seen = [each for each in self._issuers.values() if each.bundle is bundle]
        known = {each.key_id for each in seen}
        above = {each.key_id for issuer in [*seen, *bundle.anchors] for each in issuer.path() if each is not issuer}
        return seen + [anchor for anchor in bundle.anchors if anchor.key_id not in above | known]

    def issuers_with(self, key_id: bytes, own: str | None = None) -> list[Issuer]:
        """Return the CAs with a key of that identifier which may issue to clients, anchors, and those learned.

        They are those of the first bundle that knows one, in the order of rule 3; *own* as there.
        """
        for bundle in self._in_order(own):
            learned = (each for each in self._issuers.values() if each.bundle is bundle)
            anchors = [self._first_at([each.certificate]) or each for each in bundle.anchors if each.key_id == key_id]
            if found := [*(each for each in learned if each.key_id == key_id), *anchors]:
                return found
        return []

    def authorities(self, name: x509.Name) -> list[Issuer]:
        """Return every CA of that name: anchors, and those that were learned."""
        found = {
            each.certificate.public_bytes(Encoding.DER): each
            for issuer in [*self._paths.values(), *(anchor for bundle in self.bundles for anchor in bundle.anchors)]
            for each in issuer.path()
            if each.certificate.subject == name
        }
        return list(found.values())

    def _learn(self, ders: tuple[bytes, ...]) -> Issuer | None:
        issuer = self._first_at([x509.load_der_x509_certificate(der) for der in ders])
        if issuer is None:
            return None
        key = ders[0], issuer.bundle.name
        known = self._issuers.get(key)
        if self.paths_of(issuer.bundle) >= _MOST_PATHS:
            return self._one_too_many(issuer, f"{_MOST_PATHS} paths of CAs")
        if known is None and self._namesakes_of(issuer) >= _MOST_NAMESAKES:
            return self._one_too_many(issuer, f"{_MOST_NAMESAKES} CAs called {issuer.subject[:_SHOWN]!r}")
        self._paths[ders] = issuer
        self.revoked_as.update(key for each in issuer.path() for key in each.revoked_as)
        if known is None or _counts_before(issuer, known):
            self._issuers[key] = issuer
        return issuer

    def _namesakes_of(self, issuer: Issuer) -> int:
        subject = issuer.certificate.subject
        return sum(
            each.bundle is issuer.bundle and each.certificate.subject == subject for each in self._issuers.values()
        )

    def _one_too_many(self, issuer: Issuer, met: str) -> Issuer:
        """Return the like of *issuer*, which is not learned, whose clients are refused; it is said once a bundle.

        *met*: how many there are already.
        """
        name = issuer.bundle.name
        if name not in self._full:
            self._full.add(name)
            log.error(
                "a trust bundle is full",
                code=RefusalCode.TRUST_FULL,
                bundle=name,
                detail=f"its clients have come by {met}; clients with another are refused",
            )
        detail = f"the trust bundle {name} has met {met}, and learns no more"
        # One of its own: an anchor is that of other paths too, which are known.
        refused = Issuer(issuer.certificate, issuer.bundle, issuer.above, is_anchor=issuer.is_anchor)
        refused.fault = Refused(RefusalCode.TRUST_FULL, ReasonCode.QUOTA_EXCEEDED, detail)
        return refused


def _has_issued(issuer: Issuer, certificate: x509.Certificate) -> bool:
    return issuer.certificate.subject == certificate.issuer and is_issued_by(certificate, issuer.certificate)


def _counts_before(issuer: Issuer, other: Issuer) -> bool:
    """Whether the path of *issuer* is the better one of two above one CA."""
    return (issuer.fault is None, issuer.not_after) > (other.fault is None, other.not_after)
