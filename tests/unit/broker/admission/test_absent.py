"""Clients that are away: random tables, before and after a reload, and a device that connects again as the oracle.

A will is sent if its device would be admitted now, with what the broker has seen of its path, and dropped if it would
be refused. The oracle walks the path as OpenSSL does (`broker.admission.walked_path`), and judges the device by it.
"""

from __future__ import annotations

from functools import cache
from random import Random

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.admission import Admission
from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.walked_path import walk
from broker.engine.stored_cas import cas_of, cas_text
from broker.mqtt.codes import ReasonCode
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.bundles import NOW, PKI, PLANT_DOMAIN, admission, bundle, settings
from tests.support.pki import DOMAIN, Held, Pki

_WORLDS = 30


@cache
def authorities() -> tuple[list[Held], list[Held]]:
    """Return CAs, several of one key or of one name, and devices below them."""
    other, identity = Pki(), Identity(DOMAIN, Role.DEVICE, "x", "x")
    plant = PKI.certify(identity, common_name="Plant", uris=[], is_ca=True, purposes=None, issuer=PKI.root)
    named = [PKI.authority(name, PKI.root, key=plant.key) for name in ("Plant", "Renamed")]
    crossed = PKI.authority("Plant", other.root, key=plant.key)
    below = PKI.certify(identity, common_name="Below", uris=[], is_ca=True, purposes=None, issuer=plant)
    parties = [Identity(domain, Role.DEVICE, "meter-1", "meters") for domain in (DOMAIN, PLANT_DOMAIN)]
    issuing = [plant, *named, crossed, below, PKI.issuing]
    devices = [PKI.certify(party, issuer=each) for each in issuing for party in parties]
    return [PKI.root, other.root, *issuing], devices


def tables(draw: Random) -> Admission:
    """Return who judges by one to three tables."""
    cas, _ = authorities()
    bundles = []
    for number in range(draw.randint(1, 3)):
        anchors = [each.certificate for each in draw.sample(cas, draw.randint(1, 3))]
        terms = {"name": f"table-{number}", "groups": ["meters"], "max_depth": draw.choice([0, 1, 4])}
        domain = draw.choice([None, DOMAIN, PLANT_DOMAIN])
        issuers = {"issuers": ["CN=Plant", "CN=Below"]} if draw.random() < 0.2 else {}
        fetched = draw.sample(anchors, 1) if draw.random() < 0.25 else []
        made = settings(**terms, **issuers, **({} if domain is None else {"trust_domain": domain}))
        bundles.append(TrustBundle(made.name, anchors, terms=BundleTerms.of(made), fetched=fetched))
    judge = admission(*bundles)
    judge.believed = judge.trust
    return judge


def connects(judge: Admission, held: Held, *sends: bytes) -> Peer | Refused:
    """Return the outcome for a device that sends *sends* beside its certificate."""
    assert judge.trust is not None
    anchors = x509.load_pem_x509_certificates(judge.trust.anchors_pem(DOMAIN).encode())
    chain = [x509.load_der_x509_certificate(each) for each in sends]
    _, walked = walk([held.certificate, *chain], anchors, NOW)
    if not walked:
        return Refused(RefusalCode.TLS_HANDSHAKE_FAILED, ReasonCode.NOT_AUTHORIZED, "by OpenSSL")
    return judge.examine(held.der, NOW, lambda: [each.public_bytes(Encoding.DER) for each in walked])


def test_what_a_device_has_left_counts_as_long_as_it_would_be_admitted_itself() -> None:
    draw, met = Random(7), set()
    for _ in range(_WORLDS):
        before, after = tables(draw), tables(draw)
        for held in draw.sample(authorities()[1], 6):
            left = connects(before, held, *(each.public_bytes(Encoding.DER) for each in held.chain))
            if isinstance(left, Refused):
                continue
            above = left.above
            assert above is not None
            seen = [each.public_bytes(Encoding.DER) for each in above.verified()]
            is_admitted = isinstance(connects(after, held, *seen), Peer)
            assert after.vouches(left.authorities, left.identity, above) is is_admitted
            assert before.vouches(left.authorities, left.identity, above), "where nothing has changed"
            counts = after.vouches(left.authorities, left.identity, cas_of(cas_text(above) or ""))
            assert counts or not is_admitted, "after a restart less is known, which counts against nobody"
            met.add((is_admitted, counts))
    assert {(True, True), (False, False)} <= met


def test_a_ca_s_name_counts_as_it_does_in_a_handshake_also_after_a_restart() -> None:
    """The first will was sent for a device that is refused, the second dropped of one that is admitted."""
    other, confined = Pki(), {"trust_domain": PLANT_DOMAIN, "groups": ["meters"]}
    plant = PKI.authority("Plant", PKI.root)
    renamed, crossed = (
        PKI.authority("Renamed", PKI.root, key=plant.key),
        PKI.authority("Plant", other.root, key=plant.key),
    )

    def counts(issuer: Held, root: Held, *now: TrustBundle) -> list[bool]:
        held, after = PKI.device("meter-1", issuer=issuer), admission(*now)
        after.believed = after.trust
        left = connects(admission(bundle(root)), held, issuer.der)
        assert isinstance(left, Peer)
        stored = cas_of(cas_text(left.above) or "")
        is_admitted = isinstance(connects(after, held, issuer.der), Peer)
        return [is_admitted, *(after.vouches(left.authorities, left.identity, each) for each in (left.above, stored))]

    assert counts(plant, PKI.root, bundle(renamed), bundle(plant, name="theirs", **confined)) == [False] * 3
    assert counts(crossed, other.root, bundle(other.root, name="theirs", **confined), bundle(plant)) == [True] * 3


def test_a_will_is_dropped_where_an_anchor_constrains_names_now_as_nothing_did() -> None:
    """Only a handshake tells whether it allows those of the device, and this one's would fail."""
    elsewhere = x509.NameConstraints([x509.UniformResourceIdentifier("elsewhere.example")], None)
    plant = PKI.authority("Plant", PKI.root)
    narrowed = PKI.authority("Plant", PKI.root, key=plant.key, extensions=[elsewhere])
    after = admission(bundle(narrowed))
    after.believed = after.trust
    left = connects(admission(bundle(PKI.root)), PKI.device("meter-1", issuer=plant), plant.der)
    assert isinstance(left, Peer)
    assert not after.vouches(left.authorities, left.identity, left.above)
