"""What is known about revocation here: the index, how far it can be relied on, and what time it is at least.

Theory
------
There are three sources of revocations, and each may fail to answer: the provisioning service's feed, CRLs, and OCSP
responders. What a source has said is in the index; each bundle's terms decide, source by source, whether it has said
enough recently. A certificate in the index is refused for good. One whose status is unknown is refused as
*unavailable*, so that its client tries again.

Rules
-----
1. No I/O; the time is passed in. An unknown status is looked up by `broker.admission.admission.Asker`.
2. Several admissions may share one of these: it does not know who is trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from cryptography import x509

from broker.admission.crl_shelf import CrlShelf
from broker.admission.freshness import Freshness
from broker.admission.issuers import Issuer
from broker.admission.peer import Peer
from broker.admission.proven_time import ProvenTime
from broker.admission.refusal import RefusalCode, Refused, unauthorised, unavailable
from broker.mqtt.codes import ReasonCode
from provisioning.pki.crl import distribution_points
from provisioning.pki.ocsp import Answer
from provisioning.pki.revocation import CertificateKey, Revocation, RevocationIndex
from provisioning.pki.revocation_reason import RevocationReason

_MAY_COME_BACK = frozenset({RevocationReason.CERTIFICATE_HOLD, RevocationReason.SUPERSEDED})


class RevocationStatus:
    """The revoked certificates, the CRLs they come from, how fresh the feed is, and the time that they prove."""

    __slots__ = ("freshness", "index", "lists", "on_release", "proven")

    def __init__(self, index: RevocationIndex, freshness: Freshness) -> None:
        """Take the *index* that every source writes to, and the feed's freshness."""
        self.index = index
        self.proven = ProvenTime()
        self.lists = CrlShelf(index, self.proven)
        self.freshness = freshness
        self.on_release: Callable[[CertificateKey], None] = _nobody
        """Called when the feed has ended a suspension: another source may have heard of it, and not of its end."""

    def release(self, certificate: CertificateKey) -> bool:
        """Forget that the feed has suspended *certificate*; return whether it had."""
        if not self.index.release(certificate):
            return False
        self.on_release(certificate)
        return True

    def refuse_revoked(self, peer: Peer) -> Refused | None:
        """Return the refusal if the certificate of *peer*, or a CA's above it, is revoked by now."""
        revocation = self.index.find(peer.certificate)
        if revocation is not None:
            return revoked(revocation)
        above = peer.above
        found = None if above is None else above.find_revoked(self.index)
        if found is None:
            return None
        name, revocation = found
        return unauthorised(RefusalCode.ISSUER_REVOKED, f"the CA {name} is revoked ({revocation.reason})")

    def time_for(self, issuer: Issuer | None, clock: datetime) -> datetime:
        """Return the time by which certificates of *issuer* expire: *clock*, or what is proven to be later."""
        return self.proven.at(clock, () if issuer is None else [each.key_id for each in issuer.path()])

    def is_ended(self, certificate: CertificateKey) -> bool:
        """Whether *certificate* is revoked for good; a suspended or superseded one, or one whose CA is, may return."""
        reason = self.index.reason(certificate)
        return reason is not None and reason not in _MAY_COME_BACK

    def refuse_by_feed(self, issuer: Issuer | None, now: float) -> Refused | None:
        """Return the refusal if the feed decides about certificates of *issuer*, and is too old to.

        *now* is monotonic. None for *issuer*: `cafile` alone judges.
        """
        bundle = None if issuer is None else issuer.bundle
        terms = None if bundle is None else bundle.feed_terms
        if self.freshness.acceptable(now, terms) or not (bundle is None or bundle.feed):
            return None
        return unavailable(
            RefusalCode.REVOCATION_STATUS_UNKNOWN,
            "the broker's revocation data is too old to admit clients; try again later",
        )

    def refuse_by_lists(self, certificate: x509.Certificate, issuer: Issuer, now: datetime) -> Refused | None:
        """Return the refusal if CRLs decide whether *certificate* is revoked, and none is fresh enough."""
        terms = issuer.bundle.lists
        if terms is None or terms.policy.grace is None:
            return None
        names = frozenset(distribution_points(certificate))
        overdue = self.lists.overdue(issuer.key_id, now, is_authority=False, names=names)
        if not terms.policy.allows(overdue):
            return _no_list(issuer, overdue)
        for authority in issuer.path():
            if authority.above is not None and not authority.is_anchor:
                overdue = self.lists.overdue(authority.above.key_id, now, is_authority=True, names=authority.names)
                if not terms.policy.allows(overdue):
                    return _no_list(authority.above, overdue)
        return None

    def refuse_by_ocsp(self, issuer: Issuer, answer: Answer | None, now: datetime) -> Refused | None:
        """Return the refusal if a responder decides about certificates of *issuer*, and does not answer."""
        terms = issuer.bundle.ocsp
        if terms is None or terms.policy.grace is None:
            return None
        if answer is not None and not answer.known:
            return unavailable(RefusalCode.OCSP_UNKNOWN, "the OCSP responder does not know the certificate")
        now = self.time_for(issuer, now)
        overdue = None if answer is None else max(0.0, (now - answer.fresh_until).total_seconds())
        if terms.policy.allows(overdue):
            return None
        return unavailable(RefusalCode.OCSP_UNAVAILABLE, "no OCSP responder has answered; try again later")


def _nobody(_certificate: CertificateKey) -> None:
    pass


def revoked(revocation: Revocation) -> Refused:
    """Return the refusal of a certificate that is revoked, or on hold."""
    return _REFUSED[revocation.reason]


_REFUSED = {
    reason: unauthorised(RefusalCode.REVOKED, f"certificate revoked ({reason})") for reason in RevocationReason
} | {
    RevocationReason.CERTIFICATE_HOLD: Refused(
        RefusalCode.SUSPENDED, ReasonCode.BANNED, "the certificate is suspended (certificateHold)"
    )
}


def _no_list(issuer: Issuer, overdue: float | None) -> Refused:
    if overdue is None:
        return unavailable(RefusalCode.CRL_MISSING, f"the broker has no CRL of {issuer.subject}; try again later")
    return unavailable(
        RefusalCode.CRL_EXPIRED, f"the CRL of {issuer.subject} is {overdue:.0f} s past its nextUpdate; try again later"
    )
