"""What is told of a bundle's terms is what they grant."""

from __future__ import annotations

from typing import Any

import pytest

from broker.admission.bundle_terms import BundleTerms
from broker.trust_settings import TrustSettings
from provisioning.pki.identity import Identity, Role
from tests.support.pki import DOMAIN

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
