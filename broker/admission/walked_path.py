"""A certification path walked as OpenSSL walks it before admission sees it: for `check`, and for who is connected.

Rules
-----
1. What OpenSSL would refuse is refused, with the code that the log would have. A test compares the two, in handshakes
   with certificates that are odd in these respects.
2. An issuer is found by name, and by what the certificate says about its issuer's key. Of several, the first that is
   in date is taken, and one among the anchors before what came with the client's; its key must have signed, and no
   other is tried. Each CA in the path may certify, is in date, is for clients, and has so many CAs below it as it
   allows. No certificate in the path has a critical extension that OpenSSL does not know.
3. No I/O and no clock.

Does not handle: name constraints: only that there are some is said. Policies, and Netscape's types of certificates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from broker.admission.refusal import RefusalCode
from provisioning.pki.extension import UNREADABLE, extension
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

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


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
    path = [chain[0]]
    while True:
        current = path[-1]
        if (unknown := _unknown_critical(current)) is not None:
            detail = f"{shown_subject(current)} has the critical extension {unknown}, which OpenSSL does not know"
            return Step("chain", False, detail, RefusalCode.TLS_HANDSHAKE_FAILED), []
        if current in anchors and len(path) > 1:
            return Step("chain", True, " <- ".join(map(shown_subject, path)) + _constrained(path)), path
        # A certificate already in the path leads nowhere: a root issues itself, and two CAs may certify each other.
        candidates = [each for each in (*anchors, *chain[1:]) if each not in path]
        if len(path) > 1 and _is_meant(current, current):
            candidates = []  # A root that is no anchor, whichever other one of its name and key may be.
        issuer = _taken([each for each in candidates if _is_meant(current, each)], anchors, now)
        if issuer is None or not is_issued_by(current, issuer):
            why = _without_issuer(current, candidates, anchors, issuer)
            return Step("chain", False, f"{shown_subject(current)} {why}", RefusalCode.UNTRUSTED_ISSUER), []
        flaw = _flaw(issuer, sum(not _is_its_own(each) for each in path[1:]), now)
        if flaw:
            return Step("chain", False, f"{shown_subject(issuer)} {flaw[1]}", flaw[0]), []
        path.append(issuer)


def extension_of(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    """Return the extension of *kind*; None: there is none, or it cannot be read."""
    try:
        return extension(certificate, kind)
    except UNREADABLE:
        return None


def _unknown_critical(certificate: x509.Certificate) -> str | None:
    """Return the number of a critical extension of *certificate* that OpenSSL refuses, None if there is none."""
    try:
        found = (each.oid for each in certificate.extensions if each.critical and each.oid not in _KNOWN)
        return next((each.dotted_string for each in found), None)
    except UNREADABLE:  # What OpenSSL makes of it is not known; admission refuses it.
        return None


def _is_meant(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether *issuer* has the name, the kind of key, and whatever else *certificate* says about its issuer."""
    try:
        is_named = as_compared(certificate.issuer) == as_compared(issuer.subject)
        if not is_named or not _could_have_signed(issuer, certificate):
            return False
    except UNREADABLE:
        return False
    stated, own = (
        extension_of(certificate, x509.AuthorityKeyIdentifier),
        extension_of(issuer, x509.SubjectKeyIdentifier),
    )
    if stated is None:
        return True
    if stated.key_identifier is not None and own is not None and stated.key_identifier != own.digest:
        return False
    if stated.authority_cert_serial_number not in {None, issuer.serial_number}:
        return False
    names = (each.value for each in stated.authority_cert_issuer or () if isinstance(each, x509.DirectoryName))
    by = next(names, None)  # As OpenSSL: the first of several.
    try:
        return by is None or as_compared(by) == as_compared(issuer.issuer)
    except UNREADABLE:
        return False


def _could_have_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether the key of *issuer* is of the kind that the signature of *certificate* is made with."""
    try:
        parameters, key = certificate.signature_algorithm_parameters, issuer.public_key()
    except UnsupportedAlgorithm:
        return False
    if isinstance(parameters, ec.ECDSA):
        return isinstance(key, ec.EllipticCurvePublicKey)
    return isinstance(key, rsa.RSAPublicKey) is (parameters is not None)


def _is_its_own(certificate: x509.Certificate) -> bool:
    """Whether *certificate* is a CA's for itself, of another key: such ones do not count (RFC 5280 §4.2.1.9)."""
    try:
        return is_self_issued(certificate)
    except UNREADABLE:
        return False


def _taken(
    issuers: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: datetime
) -> x509.Certificate | None:
    """Return the one of *issuers* that OpenSSL takes: of several that are not in date, the one that ends last."""
    these = [each for each in issuers if each in anchors] or issuers
    in_date = (each for each in these if each.not_valid_before_utc <= now <= each.not_valid_after_utc)
    return next(in_date, None) or max(these, key=lambda each: each.not_valid_after_utc, default=None)


def _constrained(path: Sequence[x509.Certificate]) -> str:
    """Return what to say about name constraints in *path*; empty if there are none."""
    constraining = [each for each in path if extension_of(each, x509.NameConstraints) is not None]
    if not constraining:
        return ""
    return f"; {shown_subject(constraining[0])} constrains names, and only a handshake tells whether it allows these"


def _without_issuer(
    certificate: x509.Certificate,
    candidates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    taken: x509.Certificate | None,
) -> str:
    """Explain why none of *candidates* has issued *certificate*, or another than the one *taken* has."""
    if any(is_issued_by(certificate, each) for each in candidates):
        if taken is None:
            return "names another key, or another certificate, of its issuer than that CA's"
        return "is not signed by the key of the first CA here of its issuer's name, and OpenSSL tries no other"
    if is_issued_by(certificate, certificate):
        if certificate in anchors:
            return "is itself a trust anchor: a client needs a certificate that one has issued"
        return "is self-signed: no trust anchor vouches for it"
    try:
        named = any(as_compared(each.subject) == as_compared(certificate.issuer) for each in candidates)
        issuer = certificate.issuer.rfc4514_string()
    except UNREADABLE as error:
        return f"is issued by nobody here: its issuer's name, or that of another in the file, cannot be read: {error}"
    why = "its signature is not by that CA's key" if named else "which is neither a trust anchor nor in the file"
    return f"is issued by {issuer}, {why}"


def _flaw(issuer: x509.Certificate, below: int, now: datetime) -> tuple[RefusalCode, str] | None:
    """Return why *issuer* cannot have issued a path with *below* CAs under it, or None."""
    if issuer.not_valid_after_utc < now:
        return RefusalCode.EXPIRED, f"expired on {shown_time(issuer.not_valid_after_utc)}"
    if issuer.not_valid_before_utc > now:
        return RefusalCode.NOT_YET_VALID, f"is valid from {shown_time(issuer.not_valid_before_utc)}"
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
