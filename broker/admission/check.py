"""What admission would say about a certificate now, step by step: for a person who has the file but not the key.

Theory
------
Two gates stand between a certificate and its session: OpenSSL's check of the path, which ends in a TLS alert, and
`Admission`, which ends in a reason code. The second is called directly. The first cannot be run without the private
key, so the path is walked as OpenSSL walks it (`broker.admission.walked_path`).

Rules
-----
1. Every step is taken, whatever the previous one found: a certificate may be wrong in several ways, and its owner wants
   to know all of them. The verdict is that of the first gate that refuses. For a CA's certificate, which no client may
   use, that fact is the verdict, whichever gate refuses first.
2. No I/O and no clock. Nothing is remembered, and nobody is admitted by being checked.

Does not handle: client identifier, session owner, limits: they are decided when a client connects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.admission.admission import Admission, Asker
from broker.admission.named_cas import extension_of
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.remedy import REMEDIES
from broker.admission.status import revoked
from broker.admission.trust import Trust
from broker.admission.walked_path import Step, walk
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import Identity, InvalidIdentity, identity_of, parse_uri
from provisioning.pki.revocation import certificate_key
from provisioning.program.counted import counted
from provisioning.program.moments import shown_time

_ABOUT_REVOCATION = frozenset(
    {
        RefusalCode.REVOKED,
        RefusalCode.SUSPENDED,
        RefusalCode.ISSUER_REVOKED,
        RefusalCode.CRL_MISSING,
        RefusalCode.CRL_EXPIRED,
        RefusalCode.OCSP_UNAVAILABLE,
        RefusalCode.OCSP_UNKNOWN,
        RefusalCode.REVOCATION_STATUS_UNKNOWN,
    }
)
_TERMS_OF_A_BUNDLE = frozenset(
    {
        RefusalCode.UNTRUSTED_ISSUER,
        RefusalCode.TRUST_FULL,
        RefusalCode.PATH_TOO_LONG,
        RefusalCode.WEAK_CERTIFICATE,
        RefusalCode.WRONG_PURPOSE,
        RefusalCode.WRONG_GROUP,
    }
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What would happen to a client that connects with this certificate and its key."""

    admitted: bool
    code: str
    detail: str
    steps: tuple[Step, ...]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES.get(self.code, "")


def check(
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    admission: Admission,
    now: float,
    wall_now: datetime,
    outcome: Peer | Refused | None = None,
) -> Verdict:
    """Return the verdict on the first certificate of *chain*, presented together with the others.

    *anchors* are those of the listener; *now* is the engine's time, *wall_now* the same in UTC. *outcome* is the result
    of `ask`, where something had to be asked elsewhere.
    """
    certificate = chain[0]
    walked, path = walk(chain, anchors, wall_now)
    outcome = outcome or _ask(admission, certificate, path, wall_now)
    identity = _identity(certificate, outcome)
    end_entity, by_clock, purpose = _end_entity(chain, anchors), _validity(certificate, wall_now), _purpose(certificate)
    steps = [
        walked,
        _proven_validity(by_clock, outcome),
        purpose,
        end_entity,
        _named(identity, admission, outcome),
        _policy(identity, admission),
        _bundle(outcome, path),
        _revocation(certificate, admission, outcome),
        _freshness(admission, now, outcome),
    ]
    if end_entity.passed is False:
        return Verdict(False, end_entity.code, end_entity.detail, tuple(steps))
    in_handshake = next((step for step in (walked, by_clock, purpose) if step.passed is False), None)
    if in_handshake is not None:
        return Verdict(False, in_handshake.code, f"TLS alert: {in_handshake.detail}", tuple(steps))
    if isinstance(outcome, Refused):
        return Verdict(False, outcome.code, outcome.recorded, tuple(steps))
    failed = next((step for step in steps if step.passed is False), None)
    if failed is not None:
        return Verdict(False, failed.code, failed.detail, tuple(steps))
    return Verdict(True, "", f"admitted as {outcome.identity.uri}", tuple(steps))


def ask(
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    admission: Admission,
    now: datetime,
    *,
    status: bool = True,
) -> Peer | Refused:
    """Return *admission*'s result for the first of *chain*, perhaps with an inquiry under way, as for a client.

    Nothing is asked about a certificate that no anchor vouches for. Without *status*, an unknown revocation status is
    not refused.
    """
    walked, path = walk(chain, anchors, now)
    return _ask(admission, chain[0], path, now, admission.asker if walked.passed else None, status=status)


def _ask(
    admission: Admission,
    certificate: x509.Certificate,
    path: Sequence[x509.Certificate],
    now: datetime,
    asker: Asker | None = None,
    *,
    status: bool = True,
) -> Peer | Refused:
    """Ask a copy of *admission* that learns no CA from *path* and uses no asker but *asker*."""
    trust = admission.trust
    copied = admission.judging_by(None if trust is None else Trust(trust.bundles, trust.generation))
    copied.asker = asker
    ders = [each.public_bytes(Encoding.DER) for each in path]
    return copied.examine(certificate.public_bytes(Encoding.DER), now, lambda: ders, status=status)


def _validity(certificate: x509.Certificate, now: datetime) -> Step:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if ends < now:
        return Step("validity", False, f"expired on {shown_time(ends)}", RefusalCode.EXPIRED)
    if begins > now:
        detail = f"valid from {shown_time(begins)}; the clock says {shown_time(now)}"
        return Step("validity", False, detail, RefusalCode.NOT_YET_VALID)
    return Step("validity", True, f"until {shown_time(ends)}, {counted((ends - now).days, 'day')}")


def _proven_validity(by_clock: Step, outcome: Peer | Refused) -> Step:
    """Return *by_clock*, unless by the time that others have proven the certificate has expired."""
    if by_clock.passed and isinstance(outcome, Refused) and outcome.code is RefusalCode.EXPIRED:
        return Step("validity", False, outcome.recorded, RefusalCode.EXPIRED)
    return by_clock


def _purpose(certificate: x509.Certificate) -> Step:
    purposes = extension_of(certificate, x509.ExtendedKeyUsage)
    if purposes is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        return Step("purpose", False, "the extended key usage has no clientAuth", RefusalCode.WRONG_PURPOSE)
    usage = extension_of(certificate, x509.KeyUsage)
    if usage is not None and not (usage.digital_signature or usage.key_agreement):
        return Step("purpose", False, "the key usage has no digitalSignature", RefusalCode.WRONG_PURPOSE)
    return Step("purpose", True, "clientAuth" if purposes is not None else "any: there is no extended key usage")


def _end_entity(chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]) -> Step:
    if not _may_certify(chain[0]):
        return Step("end entity", True, "no CA's certificate")
    detail = "this is the certificate of a CA, not of a device"
    if chain[0] in anchors:
        detail += "; it is one of the broker's trust anchors"
    if not all(map(_may_certify, chain)):
        detail += "; after it the file has an end-entity certificate: the device's own has to be the first"
    return Step("end entity", False, detail, RefusalCode.CA_CERTIFICATE)


def _may_certify(certificate: x509.Certificate) -> bool:
    constraints = extension_of(certificate, x509.BasicConstraints)
    usage = extension_of(certificate, x509.KeyUsage)
    return (constraints is not None and constraints.ca) or (usage is not None and usage.key_cert_sign)


def _identity(certificate: x509.Certificate, outcome: Peer | Refused) -> Identity | str:
    """Return the identity that admission sees in the certificate, or why it sees none."""
    if isinstance(outcome, Peer):
        return outcome.identity
    if outcome.code is RefusalCode.INVALID_IDENTITY:  # As the bundle's own rules put it, perhaps a foreign one's.
        return outcome.recorded
    try:
        return parse_uri(outcome.identity) if outcome.identity else identity_of(certificate)
    except (InvalidIdentity, *UNREADABLE) as error:
        return str(error)


def _named(identity: Identity | str, admission: Admission, outcome: Peer | Refused) -> Step:
    if isinstance(identity, str):
        return Step("identity", False, identity, RefusalCode.INVALID_IDENTITY)
    if isinstance(outcome, Refused) and outcome.code in {RefusalCode.INVALID_IDENTITY, RefusalCode.WRONG_TRUST_DOMAIN}:
        return Step("identity", False, outcome.recorded, outcome.code)
    domain = admission.trust_domain
    if admission.trust is None and domain is not None and identity.trust_domain != domain:
        detail = f"{identity.uri} is not of the trust domain {domain}"
        return Step("identity", False, detail, RefusalCode.WRONG_TRUST_DOMAIN)
    return Step("identity", True, identity.uri)


def _policy(identity: Identity | str, admission: Admission) -> Step:
    if isinstance(identity, str):
        return Step("policy", None, "nobody is named")
    ours = admission.is_ours(identity)
    sections = admission.policy.sections_about(identity)
    named = ", ".join(map(str, sections))
    if not admission.knows(identity):
        detail = f"no topic rules for role {identity.role}"
        if any(section.has_bare_name for section in sections):
            detail += f"; {named} allows only those of our own trust domain: name others by their URI"
        return Step("policy", False, detail, RefusalCode.WRONG_ROLE)
    allowing = [section for section in sections if ours or not section.has_bare_name]
    publish = [each for section in allowing for each in section.rules.publish_allow]
    subscribe = [each for section in allowing for each in section.rules.subscribe_allow]
    return Step(
        "policy",
        True,
        f"{named}: publishes {', '.join(publish) or 'nothing'}; subscribes to {', '.join(subscribe) or 'nothing'}",
    )


def _bundle(outcome: Peer | Refused, path: Sequence[x509.Certificate]) -> Step:
    """Return the step that names the judging trust bundle, and whether its own terms are met."""
    if isinstance(outcome, Peer):
        return Step("bundle", True, outcome.bundle)
    if path and outcome.code in _TERMS_OF_A_BUNDLE:
        return Step("bundle", False, outcome.recorded, outcome.code)
    return Step("bundle", None, "not checked: another step refuses")


def _revocation(certificate: x509.Certificate, admission: Admission, outcome: Peer | Refused) -> Step:
    try:
        key = outcome.certificate if isinstance(outcome, Peer) else certificate_key(certificate)
    except UNREADABLE as error:
        return Step("revocation", None, f"the issuer's key identifier cannot be read: {error}")
    revocation = admission.status.index.find(key)
    if revocation is not None:
        detail = f"revoked on {shown_time(revocation.revoked_at)} ({revocation.reason})"
        return Step("revocation", False, detail, revoked(revocation).code)
    if isinstance(outcome, Refused) and outcome.code in _ABOUT_REVOCATION:
        return Step("revocation", False, outcome.recorded, outcome.code)
    return Step("revocation", True, f"not among {len(admission.status.index)} revoked certificates")


def _freshness(admission: Admission, now: float, outcome: Peer | Refused) -> Step:
    issuer = outcome.issuer if isinstance(outcome, Peer) else None
    if issuer is not None and not issuer.bundle.feed:
        return Step("freshness", None, "the feed does not cover this bundle; its own sources are checked")
    age = admission.status.freshness.age(now)
    terms = None if issuer is None else issuer.bundle.feed_terms
    if not admission.status.freshness.acceptable(now, terms):
        how = "never read" if age is None else f"{age:.0f} s old"
        return Step("freshness", False, f"revocation data: {how}", RefusalCode.REVOCATION_STATUS_UNKNOWN)
    if age is None and admission.status.freshness.policy:
        return Step("freshness", None, "the feed was never read; admitted nevertheless (feed_policy is advisory)")
    if age is None:
        bundles = [] if admission.trust is None else admission.trust.bundles
        others = any(each.lists is not None or each.ocsp is not None for each in bundles)
        no_feed = "there is no feed; CRLs and OCSP are checked as each bundle says"
        return Step("freshness", None, no_feed if others else "there is no source of revocations")
    return Step("freshness", True, f"revocation data is {age:.0f} s old")
