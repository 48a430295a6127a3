"""A certification path walked as OpenSSL walks it before admission sees it: for `check`, and for who is connected.

Rules
-----
1. What OpenSSL would refuse is refused, with the code that the log would have. A test compares the two, in handshakes
   with certificates that are odd in these respects.
2. An issuer is found by name, and by what the certificate says about its issuer's key. Of several, the first that is
   in date is taken, and one among the anchors before what came with the client's; its key must have signed, and no
   other is tried. Each CA in the path may certify, is in date, is for clients, and has so many CAs below it as it
   allows. No certificate in the path has a critical extension that OpenSSL does not know.
3. Dates are looked at last, from above: below no anchor a CA that has expired is not trusted, as any other is not. Nor
   is what its issuer's key has not signed, where OpenSSL, which goes from above, names an expired CA above it first.
4. The slow form of the walk is `tests.support.plain_walk`, and a property test compares the two: here each issuer is
   found by its name (`broker.admission.named_cas`).
5. No I/O and no clock.

Does not handle: name constraints: only that there are some is said. Policies, and Netscape's types of certificates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from broker.admission.named_cas import NamedCas, Sought, extension_of
from broker.admission.refusal import RefusalCode
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.issued_by import as_compared, is_issued_by, is_self_issued
from provisioning.pki.shown_subject import shown_subject
from provisioning.program.moments import shown_time

_KNOWN: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.INHIBIT_ANY_POLICY,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.OCSP_NO_CHECK,
        ExtensionOID.POLICY_CONSTRAINTS,
        ExtensionOID.POLICY_MAPPINGS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        x509.ObjectIdentifier("1.3.6.1.5.5.7.1.7"),  # IP addresses and AS numbers (RFC 3779).
        x509.ObjectIdentifier("1.3.6.1.5.5.7.1.8"),
        x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"),  # Proxy certificates (RFC 3820).
        x509.ObjectIdentifier("2.16.840.1.113730.1.1"),  # Netscape's type of a certificate.
    }
)
"""What OpenSSL knows, so that it may be critical (`X509_supported_extension`)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One check; *passed* is None where it cannot be known."""

    name: str
    passed: bool | None
    detail: str
    code: str = ""


def walk(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: datetime
) -> tuple[Step, list[x509.Certificate]]:
    """Walk from the first of *chain* to an anchor; return the step, and the path if it is valid."""
    step, path = walk_below(NamedCas(anchors), chain, now)
    return step, path if step.passed else []


def walk_below(
    anchors: NamedCas, chain: Sequence[x509.Certificate], now: datetime, *, explained: bool = True
) -> tuple[Step, list[x509.Certificate]]:
    """Do the same; return the path in any case, as far as it came.

    Where no issuer is found, why not is to be *explained*, at the cost of a signature for each that has the name.
    """
    path, shown, late = [chain[0]], NamedCas(chain[1:]), None
    while True:
        current = path[-1]
        if (unknown := _unknown_critical(current)) is not None:
            detail = f"{shown_subject(current)} has the critical extension {unknown}, which OpenSSL does not know"
            return Step("chain", False, detail, RefusalCode.TLS_HANDSHAKE_FAILED), path
        if current in anchors and len(path) > 1:
            return late or Step("chain", True, " <- ".join(map(shown_subject, path)) + _constrained(path)), path
        sought = Sought(current)
        if len(path) > 1 and sought.means_itself(current):
            # A root that is no anchor, whichever other one of its name and key may be.
            among: list[Sequence[x509.Certificate]] = [(), ()]
        else:
            # A certificate already in the path leads nowhere: a root issues itself, and two CAs may certify each other.
            among = [_meant(sought, each, path) for each in (anchors, shown)]
        issuer = _taken(among[0] or among[1], now)
        if issuer is None or not is_issued_by(current, issuer):
            why = _without_issuer(current, anchors, shown, path, issuer) if explained else "has no issuer here"
            return Step("chain", False, f"{shown_subject(current)} {why}", RefusalCode.UNTRUSTED_ISSUER), path
        flaw = _flaw(issuer, sum(not _is_its_own(each) for each in path[1:]))
        if flaw:
            return Step("chain", False, f"{shown_subject(issuer)} {flaw[1]}", flaw[0]), path
        if untimely := _untimely(issuer, now):  # Of several the topmost counts, and before all that there is an anchor.
            late = Step("chain", False, f"{shown_subject(issuer)} {untimely[1]}", untimely[0])
        path.append(issuer)


def _unknown_critical(certificate: x509.Certificate) -> str | None:
    """Return the number of a critical extension of *certificate* that OpenSSL refuses, None if there is none."""
    try:
        found = (each.oid for each in certificate.extensions if each.critical and each.oid not in _KNOWN)
        return next((each.dotted_string for each in found), None)
    except UNREADABLE:  # What OpenSSL makes of it is not known; admission refuses it.
        return None


def _meant(sought: Sought, cas: NamedCas, path: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Return those of *cas* that may be the issuer *sought*, but for what is in the *path* already."""
    called = cas.called(sought.name)
    return [each.certificate for each in called if sought.means(each) and each.certificate not in path]


def _is_its_own(certificate: x509.Certificate) -> bool:
    """Whether *certificate* is a CA's for itself, of another key: such ones do not count (RFC 5280 §4.2.1.9)."""
    try:
        return is_self_issued(certificate)
    except UNREADABLE:
        return False


def _taken(issuers: Sequence[x509.Certificate], now: datetime) -> x509.Certificate | None:
    """Return the one of *issuers* that OpenSSL takes: of several that are not in date, the one that ends last."""
    in_date = (each for each in issuers if each.not_valid_before_utc <= now <= each.not_valid_after_utc)
    return next(in_date, None) or max(issuers, key=lambda each: each.not_valid_after_utc, default=None)


def _constrained(path: Sequence[x509.Certificate]) -> str:
    """Return what to say about name constraints in *path*; empty if there are none."""
    constraining = [each for each in path if extension_of(each, x509.NameConstraints) is not None]
    if not constraining:
        return ""
    return f"; {shown_subject(constraining[0])} constrains names, and only a handshake tells whether it allows these"


def _without_issuer(
    certificate: x509.Certificate,
    anchors: NamedCas,
    shown: NamedCas,
    path: Sequence[x509.Certificate],
    taken: x509.Certificate | None,
) -> str:
    """Explain why nobody here has issued *certificate*, or another than the one *taken* has."""
    try:
        name = as_compared(certificate.issuer)
        issuer = certificate.issuer.rfc4514_string()
    except UNREADABLE as error:
        return f"is issued by nobody here: its issuer's name cannot be read: {error}"
    namesakes = [each.certificate for cas in (anchors, shown) for each in cas.called(name)]
    is_root = is_issued_by(certificate, certificate)
    others = [] if is_root and len(path) > 1 else [each for each in namesakes if each not in path]
    if any(is_issued_by(certificate, each) for each in others):
        if taken is None:
            return "names another key, or another certificate, of its issuer than that CA's"
        return "is not signed by the key of the first CA here of its issuer's name, and OpenSSL tries no other"
    if is_root:
        if certificate in anchors:
            return "is itself a trust anchor: a client needs a certificate that one has issued"
        return "is self-signed: no trust anchor vouches for it"
    why = "its signature is not by that CA's key" if others else "which is neither a trust anchor nor in the file"
    return f"is issued by {issuer}, {why}"


def _untimely(issuer: x509.Certificate, now: datetime) -> tuple[RefusalCode, str] | None:
    """Return why *issuer* is not in date, or None."""
    if issuer.not_valid_after_utc < now:
        return RefusalCode.EXPIRED, f"expired on {shown_time(issuer.not_valid_after_utc)}"
    if issuer.not_valid_before_utc > now:
        return RefusalCode.NOT_YET_VALID, f"is valid from {shown_time(issuer.not_valid_before_utc)}"
    return None


def _flaw(issuer: x509.Certificate, below: int) -> tuple[RefusalCode, str] | None:
    """Return why *issuer* cannot have issued a path with *below* CAs under it, or None."""
    constraints = extension_of(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return RefusalCode.UNTRUSTED_ISSUER, "is not a CA"
    if constraints.path_length is not None and below > constraints.path_length:
        return RefusalCode.UNTRUSTED_ISSUER, f"allows {constraints.path_length} CAs below it"
    usage = extension_of(issuer, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return RefusalCode.UNTRUSTED_ISSUER, "may not sign certificates"
    purposes = extension_of(issuer, x509.ExtendedKeyUsage)
    if purposes is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        return RefusalCode.WRONG_PURPOSE, "is a CA for other purposes: its extended key usage has no clientAuth"
    return None
