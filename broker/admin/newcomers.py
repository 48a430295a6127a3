"""What happens to newcomers at present, by trust bundle: the state of each source of revocations, and its policy.

One line per source of a bundle; for CRLs, one per CA that issues to clients: those of clients seen here, and anchors
below which none has been seen yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from broker.admission.admission import Admission
from broker.admission.bundle import OcspTerms, TrustBundle
from broker.admission.freshness import FeedTerms
from broker.admission.issuers import Issuer
from broker.admission.peer import DEFAULT_BUNDLE


@dataclass(frozen=True, slots=True)
class Prospect:
    """What one source means for the newcomers of one bundle."""

    bundle: str
    source: str
    """feed, CRL, OCSP; audit log: nobody is admitted while it cannot be written."""
    issuer: str | None
    policy: str
    admitted: bool | None
    """Whether they are admitted as far as this source is concerned; None: decided per certificate."""
    detail: str


def prospects(admission: Admission, wall: datetime, now: float) -> list[Prospect]:
    """Return what each source means for the newcomers of each bundle; *now* is monotonic."""
    found = []
    if admission.trust is None:
        found += list(_by_feed(DEFAULT_BUNDLE, None, admission, now))
    else:
        for bundle in admission.trust.bundles:
            if bundle.feed:
                found += list(_by_feed(bundle.name, bundle.feed_terms, admission, now))
            found += list(_by_lists(bundle, admission, wall))
            if bundle.ocsp is not None:
                found.append(_by_ocsp(bundle.name, bundle.ocsp, admission))
    if admission.shut is not None:
        found.append(Prospect("(all)", "audit log", None, "require", admitted=False, detail=admission.shut.detail))
    return found


def admits(admission: Admission, now: float) -> dict[str, bool]:
    """Return whether newcomers of each bundle are admitted, as far as the feed and the audit log are concerned."""
    if admission.trust is None:
        fresh = {DEFAULT_BUNDLE: admission.status.freshness.acceptable(now)}
    else:
        fresh = {
            bundle.name: not bundle.feed or admission.status.freshness.acceptable(now, bundle.feed_terms)
            for bundle in admission.trust.bundles
        }
    return {bundle: admitted and admission.shut is None for bundle, admitted in fresh.items()}


def newcomers_facts(admission: Admission, wall: datetime, now: float) -> dict[str, Any]:
    """Return the same as `prospects` as data, and whether any newcomer may be admitted."""
    found = prospects(admission, wall, now)
    shut = {each.bundle for each in found if each.admitted is False and each.issuer is None}
    bundles = {DEFAULT_BUNDLE} if admission.trust is None else {each.name for each in admission.trust.bundles}
    depends_on_nothing = bundles - {each.bundle for each in found}
    admitted = any(each.bundle not in shut and each.admitted is not False for each in found) or bool(depends_on_nothing)
    return {
        "newcomers": [asdict(each) for each in found],
        "newcomers_admitted": admitted and admission.shut is None,
    }


def _by_feed(bundle: str, terms: FeedTerms | None, admission: Admission, now: float) -> Iterator[Prospect]:
    freshness = admission.status.freshness
    if not freshness.has_source:
        return
    age = freshness.age(now)
    detail = "never read" if age is None else f"complete {age:.1f} s ago"
    if freshness.is_lost:
        detail += ", and lost"
    admitted = freshness.acceptable(now, terms)
    yield Prospect(bundle, "feed", None, (terms or freshness.terms).policy, admitted=admitted, detail=detail)


def _by_lists(bundle: TrustBundle, admission: Admission, wall: datetime) -> Iterator[Prospect]:
    terms, trust = bundle.lists, admission.trust
    # If certificates name their CRL, it is fetched when the first one arrives.
    at_the_door = terms is not None and terms.from_certificates
    if terms is None or trust is None:
        return
    for issuer in trust.issuing(bundle):
        lists = admission.status.lists.overdue_by_list(issuer.key_id, wall)
        lapsed = [overdue for overdue in lists if overdue > 0]
        allowed = [terms.policy.allows(overdue) for overdue in lists] or [terms.policy.allows(None)]
        admitted = all(allowed) if all(allowed) or not any(allowed) else None
        if not lists and at_the_door:
            admitted, detail = None, "none yet; fetched from the URL in a client's certificate when one connects"
        elif not lists:
            detail = "none is here"
        elif not lapsed:
            detail = "current" if len(lists) == 1 else f"{len(lists)} lists, all current"
        else:
            which = "" if len(lists) == 1 else f"{len(lapsed)} of {len(lists)} "
            detail = f"{which}expired, {max(lapsed):.0f} s ago at most" if which else f"expired {lapsed[0]:.0f} s ago"
        late = _above(issuer, admission, wall)
        if late is not None and not terms.policy.allows(late[1]):
            admitted, detail = (
                False,
                f"of the CA above, {late[0]}: " + ("none is here" if late[1] is None else "expired"),
            )
        yield Prospect(bundle.name, "CRL", issuer.subject, str(terms.policy), admitted=admitted, detail=detail)


def _above(issuer: Issuer, admission: Admission, wall: datetime) -> tuple[str, float | None] | None:
    """Return the CA whose CRL does not cover a CA in the path of *issuer*, and since when."""
    for authority in issuer.path():
        if authority.above is not None and not authority.is_anchor:
            above = authority.above
            overdue = admission.status.lists.overdue(above.key_id, wall, is_authority=True, names=authority.names)
            if overdue is None or overdue > 0:
                return above.subject, overdue
    return None


def _by_ocsp(bundle: str, terms: OcspTerms, admission: Admission) -> Prospect:
    where = terms.responder or "the responder that the certificate names"
    failing = () if admission.asker is None else admission.asker.failing(bundle)
    if terms.responder is not None and terms.responder in failing:
        # A client with a cached answer is admitted until that expires, under every policy.
        admitted = True if terms.policy.grace is None else None
        return Prospect(bundle, "OCSP", None, str(terms.policy), admitted, f"{where} gives no valid answer")
    return Prospect(bundle, "OCSP", None, str(terms.policy), None, f"each is asked about: {where}")
