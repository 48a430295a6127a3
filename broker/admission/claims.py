"""Whose a path is to judge, by rule 1 of `broker.admission.trust`: what counts as named by whom, and what keys tell.

Rules
-----
1. After a restart the certificates of the CAs above a client that is away are not known, except for the anchor at which
   the path ends now. Of the CAs below it only the keys are known, and that they are no anchors by name and key.
2. What is not known counts against nobody: every bundle that may be the one that judges is among those returned, if it
   may accept the path.
3. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.bundle import TrustBundle, allows
from broker.admission.issuers import Issuer
from provisioning.pki.keys import key_identifier


def firm_keys(bundle: TrustBundle, own: str | None) -> frozenset[bytes]:
    """Return the key identifiers of the anchors of *bundle* that are not from outside."""
    return bundle.anchor_keys if bundle.terms.trust_domain in {None, own} else bundle.named_keys


def is_from_outside(issuer: Issuer, own: str | None) -> bool:
    """Whether a bundle of another trust domain than *own* vouches for *issuer* by an anchor that only its URL names."""
    bundle = issuer.bundle
    if not bundle.fetched or bundle.terms.trust_domain in {None, own}:
        return False
    return end_of(issuer).certificate.public_bytes(Encoding.DER) in bundle.fetched


def end_of(issuer: Issuer) -> Issuer:
    """Return the anchor of the path above *issuer*, or itself if it is that."""
    return next(each for each in issuer.path() if each.is_anchor)


def may_judge(
    bundles: Sequence[TrustBundle], below: Sequence[bytes], end: x509.Certificate, own: str | None
) -> list[TrustBundle]:
    """Return those of *bundles* that may judge and accept a path that ends at *end*, over CAs with the keys *below*.

    *below* are not empty. *own* is the broker's trust domain, if it has one.
    """
    ends = {each: anchor for each in bundles if (anchor := each.end_of(end)) is not None}
    judges, keys = list(ends), [*below, key_identifier(end.public_key())]
    if judges and is_from_outside(ends[judges[0]], own):
        firm = (each for each in judges if not firm_keys(each, own).isdisjoint(keys))
        judges = [*(each for each in firm if not is_from_outside(ends[each], own)), *judges]
    found: dict[TrustBundle, None] = {}
    for judge in judges:
        is_end = judge.ends_at(end)
        between = below if is_end else keys
        for each in bundles[: bundles.index(judge)]:
            place = next((place for place, key in enumerate(between) if key in firm_keys(each, own)), None)
            if place is None:
                continue
            named = each.anchors_with(below[0]) if place == 0 else [None]
            claims = [each.terms.accepts_issuer(issuing) for issuing in named]
            if (place or any(claims)) and each.terms.accepts_path(place, None):
                found[each] = None
            if all(claims):
                return list(found)
        if judge.terms.accepts_path(len(between), None):
            found[judge] = None
        if judge.terms.accepts_issuer(None) and (is_end or allows(ends[judge].certificate, [end] * len(between))):
            break
    return list(found)
