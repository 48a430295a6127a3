"""What is told of a bundle's terms is what they grant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.bundle_terms import BundleTerms
from broker.admission.refusal import RefusalCode
from broker.mqtt.connect import Connect
from broker.settings.trust_settings import TrustSettings
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, shared_pki

DEVICE = Identity(DOMAIN, Role.DEVICE, "meter-1", "meters")
SERVICE = Identity(DOMAIN, Role.SERVICE, "billing", None)
SEVERAL = ", or one that begins with "


@pytest.mark.parametrize(
    ("rule", "who", "told"),
    [
        ("cafile", DEVICE, "'meter-1'"),
        ("cafile", SERVICE, f"'billing'{SEVERAL}'billing-'"),
        ("equal", DEVICE, "'meter-1'"),
        ("equal", SERVICE, f"'billing'{SEVERAL}'billing-'"),
        ("prefix", DEVICE, f"'meter-1'{SEVERAL}'meter-1-'"),
        ("assigned", DEVICE, "none: one is assigned"),
        ("assigned", SERVICE, "none: one is assigned"),
    ],
)
def test_who_is_refused_is_told_which_client_identifiers_he_may_use(rule: Any, who: Identity, told: str) -> None:
    terms = BundleTerms()
    if rule != "cafile":
        terms = BundleTerms.of(TrustSettings(name="plant", anchors=(Path("x"),), feed=True, client_id=rule))
    assert terms.client_ids_of(who) == told
    assert terms.may_use(who, who.name) is (repr(who.name) in told)
    assert terms.may_use(who, f"{who.name}-2") is (SEVERAL in told)
    assert not terms.may_use(who, f"{who.name}2")
    assert terms.may_use(who, ""), "then the broker names it"


@pytest.mark.parametrize(("who", "wanted"), [(DEVICE, "meters/meter-1"), (SERVICE, "/billing")])
def test_who_has_no_group_leaves_it_out_of_his_user_name(who: Identity, wanted: str) -> None:
    terms = BundleTerms.of(TrustSettings(name="plant", anchors=(Path("x"),), feed=True, username="{group}/{device}"))
    assert terms.refuse_username(who, Connect(username=wanted)) is None
    assert terms.refuse_username(who, Connect(username=f"{wanted}2")) is not None


def test_a_signature_without_a_hash_is_not_weak() -> None:
    """Ed25519 has one of its own (RFC 8410)."""
    now, name, key = shared_pki().now, x509.Name([]), ed25519.Ed25519PrivateKey.generate()
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1).public_key(key.public_key())
    )
    authority = builder.not_valid_before(now).not_valid_after(now).sign(key, None)
    terms = BundleTerms.of(TrustSettings(name="plant", anchors=(Path("x"),), feed=True))
    assert terms.refuse_path([authority], authority) is None


_SHA256_WITH_RSA = bytes.fromhex("2a864886f70d01010b")
_MD5_WITH_RSA = bytes.fromhex("2a864886f70d010104")


def certified(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> x509.Certificate:
    now, name = shared_pki().now, x509.Name([])
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1).public_key(key.public_key())
    )
    return builder.not_valid_before(now).not_valid_after(now).sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (ec.generate_private_key(ec.SECP256R1()), None),
        (ec.generate_private_key(ec.SECP224R1()), "key has 224 bits"),
        (ec.generate_private_key(ec.SECP192R1()), "key has 192 bits"),
    ],
    ids=["P-256", "P-224", "P-192"],
)
def test_a_curve_of_fewer_than_256_bits_is_weak(key: ec.EllipticCurvePrivateKey, words: str | None) -> None:
    authority = certified(key)
    terms = BundleTerms.of(TrustSettings(name="plant", anchors=(Path("x"),), feed=True))
    refusal = terms.refuse_path([authority], authority)
    assert (None if refusal is None else refusal.code) == (words and RefusalCode.WEAK_CERTIFICATE)
    assert refusal is None or (words or "") in refusal.detail


def test_a_signature_of_md5_is_weak() -> None:
    """No library makes one any more: it is a good one that says so of itself."""
    good = certified(rsa.generate_private_key(65537, 2048))
    authority = x509.load_der_x509_certificate(good.public_bytes(Encoding.DER).replace(_SHA256_WITH_RSA, _MD5_WITH_RSA))
    terms = BundleTerms.of(TrustSettings(name="plant", anchors=(Path("x"),), feed=True))
    assert terms.refuse_path([good], good) is None
    refusal = terms.refuse_path([authority], authority)
    assert refusal is not None
    assert (refusal.code, "signature uses md5" in refusal.detail) == (RefusalCode.WEAK_CERTIFICATE, True)
