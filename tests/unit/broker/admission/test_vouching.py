"""Whether a bundle vouches for a path that was verified earlier, of which it is known how far up its CAs go."""

from __future__ import annotations

from typing import Any

import pytest

from broker.admission.path_ends import VerifiedPath
from broker.engine.stored_cas import StoredCas
from tests.support.bundles import PKI, bundle

ISSUING = VerifiedPath([PKI.issuing.der, PKI.root.der])
UNKNOWN = StoredCas("")


@pytest.mark.parametrize(
    ("anchor", "terms", "above", "vouches"),
    [
        (PKI.root, {}, ISSUING, True),
        (PKI.authority("Another Root"), {}, ISSUING, False),
        (PKI.root, {"max_depth": 1}, ISSUING, True),
        (PKI.root, {"max_depth": 0}, ISSUING, False),
        (PKI.root, {"max_depth": 0}, UNKNOWN, False),
        (PKI.issuing, {"max_depth": 0}, UNKNOWN, True),
        (PKI.root, {"issuers": ["CN=Test Issuing CA"]}, ISSUING, True),
        (PKI.root, {"issuers": ["CN=Somebody else"]}, ISSUING, False),
        (PKI.root, {"issuers": ["CN=Somebody else"]}, UNKNOWN, True),
        (PKI.root, {"issuers": ["CN=Somebody else"]}, None, True),
        (PKI.issuing, {"issuers": ["CN=Somebody else"]}, UNKNOWN, False),
        (PKI.issuing, {"issuers": ["CN=Test Issuing CA"]}, None, True),
    ],
)
def test_it_does_by_its_anchors_and_its_terms_as_far_as_the_path_is_known(
    anchor: Any, terms: dict[str, Any], above: Any, *, vouches: bool
) -> None:
    assert bundle(anchor, **terms).vouches_for(ISSUING.authorities, above) is vouches


def test_an_anchor_that_may_issue_lends_nothing_to_another_that_may_not() -> None:
    other = PKI.authority("Another CA")
    named = bundle(other, PKI.issuing, issuers=["CN=Another CA"])
    assert not named.vouches_for(ISSUING.authorities, None)
    assert named.vouches_for(VerifiedPath([other.der]).authorities, None)
