"""Whom the anchors that count now still vouch for: of those that let him in, one has to be among them."""

from __future__ import annotations

import pytest

from broker.admission.admission import Admission
from broker.admission.bundle import TrustBundle
from broker.admission.freshness import Freshness
from broker.admission.peer import Peer
from broker.admission.status import RevocationStatus
from broker.admission.trust import Trust
from provisioning.pki.identity import Identity
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import RevocationIndex
from provisioning.pki.role import Role
from tests.support.bundles import PLANT_DOMAIN, bundle, path
from tests.support.pki import DOMAIN, Held, Pki, shared_pki
from tests.support.policies import DEFAULT_POLICY

PKI, OTHER = shared_pki(), Pki()
METER = PKI.device("meter-1")
RENEWED = PKI.authority("Test Root CA", key=PKI.root.key)
"""Our root with another certificate and the same key."""
PLANT = {"trust_domain": PLANT_DOMAIN}


def admission(trust: Trust | None = None, domain: str | None = DOMAIN) -> Admission:
    return Admission(RevocationStatus(RevocationIndex(), Freshness(1.0)), DEFAULT_POLICY, domain, (), trust)


def examined(judge: Admission, *above: Held) -> Peer:
    peer = judge.examine(METER.der, PKI.now, lambda: path(METER, *above) if above else ())
    assert isinstance(peer, Peer)
    return peer


@pytest.mark.parametrize("judged", ["by cafile", "by bundles"])
@pytest.mark.parametrize(
    ("bundles", "stays"),
    [
        ([bundle(PKI.root)], True),
        ([bundle(PKI.issuing)], True),
        ([bundle(RENEWED)], True),
        ([bundle(OTHER.root)], False),
        ([bundle(OTHER.root, OTHER.issuing)], False),
        ([], False),
        ([bundle(PKI.root, **PLANT)], False),
        ([bundle(PKI.root, trust_domain=DOMAIN)], True),
        ([bundle(OTHER.root), bundle(PKI.root)], True),
        ([bundle(PKI.root, **PLANT), bundle(OTHER.root)], False),
        ([bundle(PKI.root, **PLANT), bundle(PKI.root)], True),
        ([bundle(PKI.root, roles=(Role.SERVICE,))], False),
        ([bundle(PKI.root, groups=("south",))], False),
        ([bundle(PKI.root, groups=("south", "meters"))], True),
        ([bundle(PKI.root, groups=("south",)), bundle(PKI.root, name="others")], True),
    ],
    ids=[
        "the same", "a CA below it", "its renewal", "another root", "others of those names", "nobody",
        "for another domain", "for his domain", "one of two", "each for half", "for both domains",
        "for services", "for another group", "for his group", "each for a group",
    ],
)  # fmt: skip
def test_who_was_let_in_stays_while_an_anchor_above_him_counts_for_his_domain(
    judged: str, bundles: list[TrustBundle], stays: bool
) -> None:
    judge = admission(None if judged == "by cafile" else Trust([bundle(PKI.root)]))
    peer = examined(judge, PKI.issuing, PKI.root)
    assert set(peer.authorities) == {key_identifier(held.key.public_key()) for held in (PKI.issuing, PKI.root)}
    assert judge.vouches(peer.authorities, peer.identity) is True, "nobody has said yet whose anchors count"
    judge.believed = Trust(bundles)
    assert judge.vouches(peer.authorities, peer.identity) is stays


def test_of_whom_nobody_knows_who_vouched_for_him_nobody_is_put_out() -> None:
    """One of before the broker remembered it; with him out, an update would end every session."""
    judge = admission()
    judge.believed = Trust([bundle(OTHER.root)])
    peer = examined(judge)
    assert peer.authorities == ()
    assert judge.vouches(peer.authorities, peer.identity) is True
    assert judge.vouches((key_identifier(PKI.root.key.public_key()),), peer.identity) is False


def test_a_broker_without_a_trust_domain_takes_for_ours_whom_no_bundle_has_for_its_own() -> None:
    trust = Trust([bundle(PKI.root), bundle(OTHER.root, name="theirs", groups=("meters",), **PLANT)])
    judge = admission(trust, domain=None)
    judge.believed = trust
    ours, theirs = (tuple(each.anchor_keys) for each in trust.bundles)
    here, there = (Identity(domain, Role.DEVICE, "meter-1", "meters") for domain in (DOMAIN, PLANT_DOMAIN))
    found = [judge.vouches(keys, whose) for keys in (ours, theirs) for whose in (here, there)]
    assert found == [True, False, False, True]
