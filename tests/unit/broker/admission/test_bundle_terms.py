"""What is told of a bundle's terms is what they grant."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from broker.admission.bundle_terms import BundleTerms
from broker.mqtt.connect import Connect
from broker.trust_settings import TrustSettings
from provisioning.pki.identity import Identity, Role
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
        terms = BundleTerms.of(TrustSettings(name="plant", anchors=("x",), feed=True, client_id=rule))
    assert terms.client_ids_of(who) == told
    assert terms.may_use(who, who.name) is (repr(who.name) in told)
    assert terms.may_use(who, f"{who.name}-2") is (SEVERAL in told)
    assert not terms.may_use(who, f"{who.name}2")
    assert terms.may_use(who, ""), "then the broker names it"


@pytest.mark.parametrize(("who", "wanted"), [(DEVICE, "meters/meter-1"), (SERVICE, "/billing")])
def test_who_has_no_group_leaves_it_out_of_his_user_name(who: Identity, wanted: str) -> None:
    terms = BundleTerms.of(TrustSettings(name="plant", anchors=("x",), feed=True, username="{group}/{device}"))
    assert terms.refuse_username(who, Connect(username=wanted)) is None
    assert terms.refuse_username(who, Connect(username=f"{wanted}2")) is not None


def test_a_signature_without_a_hash_is_not_weak() -> None:
    """Ed25519 has one of its own (RFC 8410)."""
    now, name, key = shared_pki().now, x509.Name([]), ed25519.Ed25519PrivateKey.generate()
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1).public_key(key.public_key())
    )
    authority = builder.not_valid_before(now).not_valid_after(now).sign(key, None)
    terms = BundleTerms.of(TrustSettings(name="plant", anchors=("x",), feed=True))
    assert terms.refuse_path([authority], authority) is None
