"""Which anchors the broker trusts at present: those that its listeners really use, not the present file contents."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from broker.admin.crls import list_facts
from broker.admin.newcomers import admits
from broker.admission.admission import Admission
from broker.admission.peer import DEFAULT_BUNDLE
from broker.admission.trust import Trust
from provisioning.pki.serial_number import serial_text
from provisioning.program.moments import rfc3339


def anchors_of(contexts: Iterable[ssl.SSLContext]) -> list[x509.Certificate]:
    """Return the trust anchors of *contexts*, each once."""
    ders = dict.fromkeys(der for context in contexts for der in context.get_ca_certs(binary_form=True))
    return [x509.load_der_x509_certificate(der) for der in ders]


def trust_document(contexts: Iterable[ssl.SSLContext], admission: Admission, now: float) -> dict[str, Any]:
    """Return the trust anchors of *contexts*, and the state of the revocation data."""
    age = admission.status.freshness.age(now)
    trust = admission.trust
    return {
        "trust_domain": admission.trust_domain,
        "generation": admission.trust_generation,
        "bundles": [bundle.name for bundle in trust.bundles] if trust is not None else [DEFAULT_BUNDLE],
        "lists": [list_facts(each, datetime.now(UTC)) for each in admission.status.lists.held],
        "anchors": [_anchor(each, trust) for each in anchors_of(contexts)],
        "revocation": {
            "revoked_certificates": len(admission.status.index),
            "seconds_since_current": None if age is None else round(age, 1),
            "newcomers_admitted": any(admits(admission, now).values()),
        },
    }


def _anchor(certificate: x509.Certificate, trust: Trust | None) -> dict[str, Any]:
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    sha256 = certificate.fingerprint(SHA256()).hex()
    of = {DEFAULT_BUNDLE: [sha256]} if trust is None else trust.fingerprints
    return {
        "bundles": [name for name, anchors in of.items() if sha256 in anchors],
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "self_signed": certificate.subject == certificate.issuer,
        "serial": serial_text(certificate.serial_number),
        "key": _key(certificate),
        "sha256": sha256,
        "not_after": rfc3339(certificate.not_valid_after_utc),
        "days_left": left.days,
    }


def _key(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return type(key).__name__.removeprefix("_").removesuffix("PublicKey")
