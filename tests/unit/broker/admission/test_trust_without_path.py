"""Whose CA it is where no path says so: a resumed session, and a client that is away."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.peer import Peer
from broker.admission.trust import Trust
from broker.admission.walked_path import walk
from provisioning.pki.identity import Identity
from provisioning.pki.issued_by import as_compared
from provisioning.pki.issued_by import is_issued_by as genuine
from provisioning.pki.keys import key_identifier
from provisioning.pki.role import Role
from tests.support.bundles import PLANT_DOMAIN, admission, bundle, examine, settings
from tests.support.pki import DOMAIN
from tests.unit.broker.admission.test_trust import HOUR, OTHER, PKI, PLANT, namesake, partner, seen, verified


def test_of_the_certificates_of_a_ca_one_that_is_in_date_counts_for_who_resumes() -> None:
    """It was refused as expired until it made a full handshake: the first that matched was taken."""
    ended = PKI.authority("Test Issuing CA", PKI.root, key=PKI.issuing.key, not_after=PKI.now - HOUR)
    begins = PKI.authority("Test Issuing CA", PKI.root, key=PKI.issuing.key, not_before=PKI.now + HOUR)
    device = PKI.device("meter-1")
    for anchors in permutations(each.certificate for each in (ended, begins, PKI.issuing)):
        issuer = Trust([TrustBundle("ours", anchors)]).issuer_of(device.certificate, (), PKI.now, DOMAIN)
        assert issuer is not None
        assert issuer.certificate == PKI.issuing.certificate
    neither = Trust([TrustBundle("ours", [ended.certificate, begins.certificate])])
    assert seen(neither, device) == "ours: CN=Test Issuing CA", "so that it is refused for the date"


def test_who_resumes_is_found_by_a_name_that_openssl_takes_for_that_of_its_ca() -> None:
    """A CA was renewed in other letters: each second connection was refused (`UNTRUSTED_ISSUER`)."""
    device = PKI.device("meter-1", issuer=PLANT, issuer_name=x509.Name.from_rfc4514_string("CN=PLANT  ca"))
    for anchors in ([PKI.root.certificate], [PKI.root.certificate, PLANT.certificate]):
        judge = Trust([TrustBundle("ours", anchors)])
        path = [device.der, *(each.der for each in (PLANT, PKI.root)[: 3 - len(anchors)])]
        assert verified(judge.anchors_pem(DOMAIN), device) == path
        assert judge.issuer_of(device.certificate, path, PKI.now, DOMAIN) is not None
        assert seen(judge, device) == "ours: CN=Plant CA"
    assert [each.certificate for each in judge.authorities(device.certificate.issuer)] == [PLANT.certificate]
    walked, _ = walk([device.certificate], [PLANT.certificate], PKI.now)
    assert walked.passed, "and so fleet-broker check says"


def test_letters_and_spaces_beyond_ascii_are_as_different_as_for_openssl() -> None:
    """fleet-broker check said "admitted" of a device that the handshake refuses."""
    authority = PKI.authority("W\u00e4rme CA")
    for stated, meant in (("W\u00c4RME CA", False), ("W\u00e4rme\u00a0CA", False), (" w\u00e4RME ca", True)):
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, stated)])
        device = PKI.device("meter-1", issuer=authority, issuer_name=name)
        judge = Trust([TrustBundle("ours", [authority.certificate])])
        assert isinstance(verified(judge.anchors_pem(DOMAIN), device), list) is meant
        assert walk([device.certificate], [authority.certificate], PKI.now)[0].passed is meant
        assert (seen(judge, device) is not None) is meant


def test_who_resumes_below_an_anchor_is_judged_as_in_the_full_handshake() -> None:
    """Each second connection was refused: our table names another certificate of that CA, or is for other issuers."""
    device, ends = PKI.device("meter-1", issuer=PLANT), PKI.now + timedelta(days=9)
    renewed = PKI.authority("Plant CA", PKI.root, key=PLANT.key, not_after=ends).certificate
    judge = Trust([TrustBundle("theirs", [PLANT.certificate], terms=partner().terms), TrustBundle("ours", [renewed])])
    assert verified(judge.anchors_pem(DOMAIN), device) == [device.der, PLANT.der]
    assert (seen(judge, device, PLANT), seen(judge, device)) == ("theirs: CN=Plant CA",) * 2
    closed = TrustBundle("closed", [renewed], terms=BundleTerms.of(settings(issuers=["CN=Nobody"])))
    judge = Trust([closed, TrustBundle("ours", [PLANT.certificate])])
    assert (seen(judge, device, PLANT), seen(judge, device)) == ("ours: CN=Plant CA",) * 2, "it states that one"
    alone = PKI.authority("Plant CA", key=PLANT.key)
    above = TrustBundle("above", [PKI.root.certificate], terms=partner().terms)
    judge = Trust([above, TrustBundle("ours", [alone.certificate]), TrustBundle("last", [PLANT.certificate])])
    assert seen(judge, device, PLANT) == "above: CN=Plant CA", "of who states that one"
    assert verified(judge.anchors_pem(DOMAIN), device) == [device.der, alone.der]
    assert (seen(judge, device, alone), seen(judge, device)) == ("ours: CN=Plant CA",) * 2, "what was learned is behind"


def test_who_resumes_below_constrained_names_is_not_taken_by_a_partner_s_url() -> None:
    """A bundle of a third party is no more our own than the partner's is, and searched in the order of the tables."""
    constrained = x509.NameConstraints([x509.UniformResourceIdentifier(DOMAIN)], None)
    theirs = PKI.authority("Third CA", PKI.root, extensions=[constrained])
    listed = PKI.authority("Third CA", OTHER.root, key=theirs.key)
    third = TrustBundle("third", [theirs.certificate], terms=BundleTerms.of(settings(trust_domain="third.example")))
    judge = Trust([partner(listed), third])
    device = PKI.device("meter-1", issuer=theirs)
    assert verified(judge.anchors_pem(DOMAIN), device) == [device.der, theirs.der]
    assert seen(judge, device) == "third: CN=Third CA"
    found = judge.issuers_with(key_identifier(theirs.certificate.public_key()), DOMAIN)
    assert [each.bundle.name for each in found] == ["third"]
    judge = Trust([partner(OTHER.root), third])
    theirs_too = OTHER.device("meter-1", issuer=listed)
    assert seen(judge, theirs_too, listed, OTHER.root) == "partner: CN=Third CA"
    found = judge.issuers_with(key_identifier(theirs.certificate.public_key()), DOMAIN)
    assert [each.bundle.name for each in found] == ["third"], "what was learned of the partner's comes behind it"


def test_who_resumes_is_tried_against_the_key_that_is_meant_and_against_so_many_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 200 namesakes of our CA in its list a partner's URL took the time of everybody."""
    tried: list[x509.Certificate] = []

    def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        tried.append(issuer)
        return genuine(certificate, issuer)

    monkeypatch.setattr("broker.admission.trust.is_issued_by", is_issued_by)
    monkeypatch.setattr("broker.admission.trust._MOST_TRIED", 3)
    cas = [PKI.authority("Theirs", OTHER.root) for _ in range(5)]
    again = PKI.authority("Theirs", OTHER.root, key=cas[0].key)
    judge = Trust([partner(*cas, again)])
    stated, unstated = (PKI.device("meter-1", issuer=cas[4], authority_key_id=each) for each in (None, b"x"))
    assert seen(judge, stated) == "partner: CN=Theirs"
    assert tried == [cas[4].certificate]
    tried.clear()
    assert seen(judge, unstated) is None
    assert tried == [each.certificate for each in cas[:3]]
    tried.clear()
    assert seen(Trust([partner(cas[0], again)]), unstated) is None
    assert len(tried) == 1, "each key once"


def test_the_key_identifier_that_a_partner_s_twin_says_puts_it_before_nobody_with_that_key() -> None:
    ours = namesake(b"x")
    twin = PKI.authority("Test Issuing CA", OTHER.root, key=ours.key)
    judge = Trust([partner(twin), TrustBundle("ours", [ours.certificate])])
    assert seen(judge, PKI.device("meter-1", issuer=ours)) == "ours: CN=Test Issuing CA"


def test_what_was_found_of_a_name_or_a_key_is_found_anew_when_a_ca_is_learned_or_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.admission.trust._MOST_PATHS", 1)
    ends = PKI.now + timedelta(days=3)
    renewed, device = PKI.authority("Plant CA", PKI.root, key=PLANT.key, not_after=ends), PKI.device("m", issuer=PLANT)
    judge = Trust([partner(PLANT), TrustBundle("ours", [PKI.root.certificate])])

    def known() -> list[str | None]:
        found = judge.issuers_with(key_identifier(PLANT.certificate.public_key()), DOMAIN)
        return [seen(judge, device), *(each.bundle.name for each in found)]

    assert known() == ["partner: CN=Plant CA", "partner"]
    assert seen(judge, device, renewed, PKI.root) == "ours: CN=Plant CA"
    assert known() == ["ours: CN=Plant CA", "ours"]
    names = set(judge._called)
    short = PKI.device("meter-1", issuer=PKI.issuing)
    path = [each.certificate.public_bytes(Encoding.DER) for each in (short, PKI.issuing, PKI.root)]
    assert judge.issuer_of(short.certificate, path, ends + HOUR, DOMAIN) is not None
    assert known() == ["partner: CN=Plant CA", "partner"]
    assert set(judge._called) == names | {as_compared(PKI.issuing.certificate.subject)}
    long = [PKI.authority(name, PKI.root, not_after=ends + days * 24 * HOUR) for name, days in (("A", 1), ("B", 2))]
    for days, ca in enumerate(long):
        held = PKI.device("meter-1", issuer=ca)
        path = [each.certificate.public_bytes(Encoding.DER) for each in (held, ca, PKI.root)]
        assert judge.issuer_of(held.certificate, path, ends + (days * 24 + 1) * HOUR, DOMAIN) is not None
    assert set(judge._called) == names | {as_compared(long[1].certificate.subject)}, (
        "of whom it has forgotten no name is kept"
    )


def test_a_will_counts_no_more_where_its_author_s_ca_has_been_confined_to_another_bundle_since() -> None:
    """It was published for a device that was refused by then, since our root's table vouched for the CA as well."""
    root = bundle(PKI.root, name="ours")
    held = PKI.device("meter-1", issuer=PLANT)
    left = examine(admission(root), held, PLANT, PKI.root)
    assert isinstance(left, Peer)
    confined = {"trust_domain": PLANT_DOMAIN, "groups": ["meters"]}
    theirs = Identity(PLANT_DOMAIN, Role.DEVICE, "meter-1", "meters")

    def counts(*bundles: TrustBundle) -> list[list[bool]]:
        """Whether what ours, and what theirs left, counts: while their CAs are known, and after a restart."""
        judge = admission(*bundles)
        judge.believed = judge.trust
        parties = (left.identity, theirs)
        return [[judge.vouches(left.authorities, each, above) for each in parties] for above in (left.above, None)]

    plant = bundle(PLANT, **confined)
    assert counts(root) == [[True, False]] * 2
    assert counts(plant, root) == [[False, True]] * 2
    assert counts(root, plant) == [[True, False]] * 2, "the settings' order counts"
    made = plant.terms
    url = TrustBundle("plant", [PLANT.certificate], terms=made, fetched=[PLANT.certificate])
    assert counts(url, root) == [[False, True], [True, True]], "as in a handshake, which ends at what the URL names"
    assert counts(root, url) == [[True, False]] * 2
    others = bundle(PKI.root, issuers=["CN=Another CA"], **confined)
    assert counts(others, root) == [[True, False], [True, True]], "nor who does not accept its issuer, or may not"


def test_a_will_counts_where_two_bundles_name_its_author_s_ca_by_different_certificates() -> None:
    """A device of the second, which names the newer one, was admitted, and its will was dropped."""
    renewed = PKI.authority("Plant CA", PKI.root, key=PLANT.key, not_after=PKI.now + timedelta(days=800))
    held = PKI.device("meter-1", issuer=PLANT)
    older, newer = bundle(PLANT, trust_domain=PLANT_DOMAIN, groups=["meters"]), bundle(renewed, name="ours")

    def counts(*bundles: TrustBundle) -> list[bool]:
        judge = admission(*bundles)
        judge.believed = judge.trust
        left = examine(judge, held, renewed)
        assert isinstance(left, Peer)
        assert left.bundle == "ours"
        before = examine(admission(bundle(PLANT)), held, PLANT)
        assert isinstance(before, Peer)
        cas = (left.above, None, before.above)
        return [judge.vouches(left.authorities, left.identity, above) for above in cas]

    assert counts(older, newer) == [True, True, False], "with the older one it is the first one's to judge"
