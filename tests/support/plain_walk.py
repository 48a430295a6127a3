"""The walk of `broker.admission.walked_path` as it would be written for the reader alone: its slow twin.

Each certificate is read wherever it is looked at, and looked for in lists. Handles what decides which way the walk
takes; critical extensions and uses of a CA's key decide only whether it ends there.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from broker.admission.named_cas import extension_of
from broker.admission.refusal import RefusalCode
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.issued_by import as_compared, is_issued_by, is_self_issued


def plain_walk(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: datetime
) -> tuple[str, list[x509.Certificate]]:
    """Walk from the first of *chain* to an anchor; return the code, empty if all is well, and how far it came."""
    path, late = [chain[0]], ""
    while True:
        current = path[-1]
        if current in anchors and len(path) > 1:
            return late, path
        candidates = [each for each in (*anchors, *chain[1:]) if each not in path]
        if len(path) > 1 and _is_meant(current, current):
            candidates = []
        issuer = _taken([each for each in candidates if _is_meant(current, each)], anchors, now)
        if issuer is None or not is_issued_by(current, issuer):
            return RefusalCode.UNTRUSTED_ISSUER, path
        constraints = extension_of(issuer, x509.BasicConstraints)
        below = sum(not is_self_issued(each) for each in path[1:])
        if (
            constraints is None
            or not constraints.ca
            or (constraints.path_length is not None and below > constraints.path_length)
        ):
            return RefusalCode.UNTRUSTED_ISSUER, path
        if issuer.not_valid_after_utc < now:
            late = RefusalCode.EXPIRED
        elif issuer.not_valid_before_utc > now:
            late = RefusalCode.NOT_YET_VALID
        path.append(issuer)


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
    if parameters is not None:
        return isinstance(key, rsa.RSAPublicKey)
    return isinstance(key, ed25519.Ed25519PublicKey)  # The property test draws no others.


def _taken(
    issuers: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: datetime
) -> x509.Certificate | None:
    """Return the one of *issuers* that OpenSSL takes: of several that are not in date, the one that ends last."""
    these = [each for each in issuers if each in anchors] or issuers
    in_date = (each for each in these if each.not_valid_before_utc <= now <= each.not_valid_after_utc)
    return next(in_date, None) or max(these, key=lambda each: each.not_valid_after_utc, default=None)
