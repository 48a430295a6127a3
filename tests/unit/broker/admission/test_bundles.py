"""Trust bundles: which one judges, and on which terms."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import ValidationError

from broker.admission.admission import Admission, Admitted
from broker.admission.bundle import TrustBundle
from broker.admission.freshness import FeedTerms, Freshness
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.status import RevocationStatus
from broker.admission.trust import Trust
from broker.mqtt.connect import Connect
from device_sim.attack.der import with_sha1
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import Revocation, RevocationIndex, pack
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.bundles import (
    CN,
    NOW,
    PKI,
    PLANT,
    admission,
    bundle,
    code,
    examine,
    foreign,
    path,
    settings,
)
from tests.support.pki import DOMAIN, Held, Pki
from tests.support.policies import DEFAULT_POLICY
from tests.support.slow_keys import dsa_key, rsa_key

OTHER = Pki()


WEAK, ALMOST = 1024, 2047


def test_the_bundle_that_vouches_judges_and_the_peer_knows_it() -> None:
    judge = admission(bundle(OTHER.root, name="other"), bundle(PKI.root, name="ours"))
    assert code(judge, PKI.device("meter-1"), PKI.issuing, PKI.root) == "ours"
    assert code(judge, OTHER.device("meter-1"), OTHER.issuing, OTHER.root) == "other"
    stranger = Pki()
    assert code(judge, stranger.device("meter-1"), stranger.issuing, stranger.root) is RefusalCode.UNTRUSTED_ISSUER


SERVERS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
CLIENTS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
NAMES = x509.NameConstraints([x509.UniformResourceIdentifier("other.example")], None)


@pytest.mark.parametrize(
    ("path_length", "has", "stays"),
    [(1, [], True), (1, [CLIENTS], True), (0, [], False), (1, [SERVERS], False), (1, [NAMES], False)],
)
def test_an_anchor_that_has_replaced_another_is_at_the_end_of_a_path_only_if_it_allows_that(
    path_length: int, has: Sequence[x509.ExtensionType], stays: bool
) -> None:
    """OpenSSL has verified the path of who is connected with the earlier one; whoever came again was refused by it."""
    root, later = PKI.root, PKI.now + timedelta(days=9)
    renewed = PKI._ca("Test Root CA", None, path_length, key=root.key, not_after=later, extensions=has)
    expected = "plant" if stays else RefusalCode.UNTRUSTED_ISSUER
    assert code(admission(bundle(renewed)), PKI.device("meter-1"), PKI.issuing, root) == expected
    if NAMES not in has:  # It ended at the issuing CA, which was an anchor, too.
        assert code(admission(bundle(renewed)), PKI.device("meter-1"), PKI.issuing) == expected
    same = [PKI._ca("Test Root CA", None, 1, key=root.key, not_after=end, extensions=[NAMES]) for end in (None, later)]
    assert code(admission(bundle(same[1])), PKI.device("meter-1"), PKI.issuing, same[0]) == "plant"


def test_an_intermediate_may_be_the_anchor_and_its_sisters_stay_out() -> None:
    judge = admission(bundle(PLANT))
    assert code(judge, PKI.device("meter-1", issuer=PLANT), PLANT) == "plant"
    assert code(judge, PKI.device("meter-1"), PKI.issuing, PKI.root) is RefusalCode.UNTRUSTED_ISSUER


def test_a_path_that_ended_at_another_bundles_anchor_is_followed_to_ours() -> None:
    judge = admission(bundle(PLANT, name="first", issuers=["CN=Nobody"]), bundle(PKI.root, name="second"))
    assert code(judge, PKI.device("meter-1", issuer=PLANT), PLANT) == "second"


@pytest.mark.parametrize(
    "named",
    ["CN=Plant CA", PLANT.certificate.fingerprint(hashes.SHA256()).hex(":").upper()],
    ids=["name", "fingerprint"],
)
def test_only_the_issuers_that_are_named_may_have_issued_a_client(named: str) -> None:
    judge = admission(bundle(PKI.root, issuers=["CN=Nobody", named]))
    assert code(judge, PKI.device("meter-1", issuer=PLANT), PLANT, PKI.root) == "plant"
    assert code(judge, PKI.device("meter-1"), PKI.issuing, PKI.root) is RefusalCode.UNTRUSTED_ISSUER
    below = PKI.authority("Below CA", PLANT)
    assert code(judge, PKI.device("meter-1", issuer=below), below, PLANT, PKI.root) is RefusalCode.UNTRUSTED_ISSUER


def test_the_first_bundles_word_is_final() -> None:
    judge = admission(bundle(PKI.root, name="strict", groups=["gas"]), bundle(PKI.root, name="lax"))
    assert code(judge, PKI.device("meter-1"), PKI.issuing, PKI.root) is RefusalCode.WRONG_GROUP
    assert code(judge, PKI.device("meter-1", "gas"), PKI.issuing, PKI.root) == "strict"


@pytest.mark.parametrize(("depth", "answer"), [(1, "plant"), (0, RefusalCode.PATH_TOO_LONG)])
def test_a_path_may_be_so_deep(depth: int, answer: RefusalCode | str) -> None:
    judge = admission(bundle(PKI.root, max_depth=depth))
    assert code(judge, PKI.device("meter-1"), PKI.issuing, PKI.root) == answer


def test_a_bundle_vouches_for_devices_unless_it_says_so() -> None:
    assert code(admission(bundle(PKI.root)), PKI.service("backend"), PKI.issuing, PKI.root) is RefusalCode.WRONG_ROLE
    judge = admission(bundle(PKI.root, roles=["service"]))
    assert code(judge, PKI.service("backend"), PKI.issuing, PKI.root) == "plant"


@pytest.mark.parametrize(
    ("purposes", "required", "answer"),
    [
        (None, ["clientAuth"], RefusalCode.WRONG_PURPOSE),
        (None, [], "plant"),
        ([ExtendedKeyUsageOID.CLIENT_AUTH], ["clientAuth", "1.3.6.1.4.1.311.20.2.2"], RefusalCode.WRONG_PURPOSE),
        ([ExtendedKeyUsageOID.CLIENT_AUTH], ["clientAuth"], "plant"),
        ([ExtendedKeyUsageOID.CLIENT_AUTH], ["serverAuth"], RefusalCode.WRONG_PURPOSE),
        ([ExtendedKeyUsageOID.SERVER_AUTH], ["serverAuth"], "plant"),
    ],
)
def test_the_purpose_must_be_written_down(purposes: Any, required: list[str], answer: RefusalCode | str) -> None:
    judge = admission(bundle(PKI.root, required_eku=required))
    assert code(judge, PKI.device("meter-1", purposes=purposes), PKI.issuing, PKI.root) == answer


def weak(key: Any, hash_: Any) -> Held:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weak")])
    uri = x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/device/meters/weak")
    builder = (
        x509.CertificateBuilder(PKI.issuing.certificate.subject, subject, key.public_key(), 1)
        .not_valid_before(NOW - timedelta(1))
        .not_valid_after(NOW + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    return Held(builder.sign(PKI.issuing.key, hash_), key)


def test_who_has_issued_a_certificate_is_not_what_it_says_itself() -> None:
    held = weak(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())  # It has no authority key identifier.
    judge = admission(bundle(PKI.root))
    peer = examine(judge, held, PKI.issuing, PKI.root)
    assert isinstance(peer, Peer)
    assert peer.certificate == (key_identifier(PKI.issuing.key.public_key()), 1)
    judge.status.index.add(Revocation(*peer.certificate, RevocationReason.KEY_COMPROMISE, NOW))
    assert code(judge, held, PKI.issuing, PKI.root) is RefusalCode.REVOKED
    assert code(judge, held) is RefusalCode.REVOKED


def over_sha1(held: Held, issuer: Held) -> Held:
    """Return *held* signed again by *issuer* over SHA-1, which the library signs nothing with any more."""
    return Held(x509.load_der_x509_certificate(with_sha1(held.certificate, issuer.key)), held.key)


ECDSA_WITH_SHA256, P256 = bytes.fromhex("2a8648ce3d040302"), bytes.fromhex("2a8648ce3d030107")


def patched(held: Held, old: bytes, new: bytes) -> Held:
    """Return *held* with other octets in its certificate, which OpenSSL would not let through."""
    return Held(x509.load_der_x509_certificate(held.der.replace(old, new)), held.key)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (
            patched(PKI.device("meter-1"), ECDSA_WITH_SHA256, ECDSA_WITH_SHA256[:-1] + b"\x7f"),
            "signature algorithm is unknown",
        ),
        (patched(PKI.device("meter-1"), P256, P256[:-1] + b"\x7f"), "key cannot be read"),
        (patched(PKI.device("meter-1"), P256 + b"\x03\x42\x00\x04", P256 + b"\x03\x42\x00\x05"), "key cannot be read"),
        (weak(rsa_key(WEAK), hashes.SHA256()), "1024 bits"),
        (weak(rsa_key(ALMOST), hashes.SHA256()), "2047 bits"),
        (weak(ec.generate_private_key(ec.SECP192R1()), hashes.SHA256()), "192 bits"),
        (weak(dsa_key(2048), hashes.SHA256()), "key is neither RSA, EC nor Ed25519"),
        (over_sha1(PKI.device("meter-1"), PKI.issuing), "signature uses sha1"),
    ],
)
def test_weak_keys_and_signatures_stay_out(held: Held, words: str) -> None:
    outcome = examine(admission(bundle(PKI.root)), held, PKI.issuing, PKI.root)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.WEAK_CERTIFICATE
    assert outcome.detail.startswith("the certificate's ")
    assert words in outcome.detail


@pytest.mark.parametrize(
    "key",
    [
        rsa_key(),
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
        ed448.Ed448PrivateKey.generate(),
    ],
    ids=["RSA", "EC", "Ed25519", "Ed448"],
)
def test_the_least_that_is_strong_enough_comes_in(key: Any) -> None:
    assert code(admission(bundle(PKI.root)), weak(key, hashes.SHA256()), PKI.issuing, PKI.root) == "plant"


def test_a_weak_ca_shuts_out_whom_it_certified_and_of_an_anchor_only_the_key_counts() -> None:
    between = over_sha1(PKI.issuing, PKI.root)
    outcome = examine(admission(bundle(PKI.root)), PKI.device("meter-1"), between, PKI.root)
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.detail) == (RefusalCode.WEAK_CERTIFICATE, "a CA's signature uses sha1")
    assert code(admission(bundle(between)), PKI.device("meter-1"), between) == "plant"
    feeble = PKI.authority("Feeble CA", key=ec.generate_private_key(ec.SECP192R1()))
    outcome = examine(admission(bundle(feeble)), PKI.device("meter-1", issuer=feeble), feeble)
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.detail) == (RefusalCode.WEAK_CERTIFICATE, "a CA's key has 192 bits")


def test_a_resumed_session_is_judged_by_whoever_has_signed_its_certificate() -> None:
    judge = admission(bundle(PKI.issuing, name="ours"), bundle(PKI.root, name="root"))
    device = PKI.device("meter-1", issuer=PLANT)
    assert code(judge, PKI.device("meter-1")) == "ours", "an anchor has signed it"
    unseen = examine(judge, device)
    assert isinstance(unseen, Refused)
    assert unseen.code is RefusalCode.UNTRUSTED_ISSUER, "of its issuer nothing has been seen"
    assert unseen.serial == device.revocation.key[1].to_bytes(20, "big").hex().lstrip("0"), "by which it is found"
    assert code(judge, device, PLANT, PKI.root) == "root"
    assert code(judge, device) == "root"
    # Another CA of the same name has signed this one.
    impostor = PKI.authority("Plant CA", PKI.root)
    assert code(judge, PKI.device("meter-1", issuer=impostor)) is RefusalCode.UNTRUSTED_ISSUER


def test_a_renewed_anchor_stands_for_the_ca_in_the_path_and_the_terms_judge_the_renewed_one() -> None:
    ends = [NOW + timedelta(days=days) for days in (5, 6, 7)]
    shorter, shown, longer = (PKI.authority("Renewed CA", PKI.root, key=PLANT.key, not_after=each) for each in ends)
    namesake = PKI.authority("Renewed CA", PKI.root, not_after=ends[2])
    path = [shown.certificate, PKI.root.certificate]
    assert bundle(longer, PKI.root).issuer_at(path).certificate == longer.certificate  # type: ignore[union-attr]
    same_key = PKI.authority("Another CA", PKI.root, key=PLANT.key, not_after=ends[2])
    as_long = PKI.authority("Renewed CA", PKI.root, key=PLANT.key, not_after=ends[1])
    assert bundle(shorter, as_long, namesake, same_key).issuer_at(path) is None
    longest = PKI.authority("Renewed CA", PKI.root, key=PLANT.key, not_after=NOW + timedelta(days=8))
    for anchors in ([longer, longest], [longest, longer]):
        assert bundle(*anchors).issuer_at(path).certificate == longest.certificate  # type: ignore[union-attr]
    fingerprints = [each.certificate.fingerprint(hashes.SHA256()).hex() for each in (shown, longer)]
    assert bundle(longer, issuers=(fingerprints[0],)).issuer_at(path) is None
    assert bundle(longer, issuers=(fingerprints[1],)).issuer_at(path) is not None


def test_nobody_stands_above_a_root_though_it_was_renewed_with_its_key() -> None:
    renewed = PKI.authority("Test Root CA", key=PKI.root.key, not_after=NOW + timedelta(days=9))
    for anchors in ([PKI.root, renewed], [renewed, PKI.root]):
        assert [each.above for each in bundle(*anchors).anchors] == [None, None]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_below_a_revoked_anchor_nobody_is_let_in_whatever_order_the_anchors_are_listed_in(order: Sequence[int]) -> None:
    """The lower CA is an anchor too: the path that OpenSSL verifies may end there, and shows nothing above it."""
    middle = PKI.authority("Middle CA", PKI.root)
    lower = PKI.authority("Lower CA", middle)
    chain = [PKI.root, middle, lower]
    judge = admission(bundle(*(chain[each] for each in order)))
    device = PKI.device("meter-1", issuer=lower)
    assert code(judge, device, lower) == "plant"
    judge.status.index.add(middle.revocation)
    assert code(judge, device, lower) is RefusalCode.ISSUER_REVOKED
    assert code(judge, device) is RefusalCode.ISSUER_REVOKED, "nor by a resumed session"


def test_anchors_that_certify_each_other_are_anchors_both() -> None:
    one, other = PKI.authority("One CA"), PKI.authority("Other CA")
    crossed = [PKI.authority("One CA", other, key=one.key), PKI.authority("Other CA", one, key=other.key)]
    for anchors in (crossed, crossed[::-1]):
        judge = admission(bundle(*anchors))
        assert [code(judge, PKI.device("meter-1", issuer=each), each) for each in anchors] == ["plant"] * 2


def test_the_path_ends_when_the_first_of_its_authorities_does() -> None:
    long = PKI.device("meter-1", not_after=NOW + timedelta(days=30))
    peer = examine(admission(bundle(PKI.root)), long, PKI.issuing, PKI.root)
    assert isinstance(peer, Peer)
    assert peer.seconds_left == timedelta(days=2).total_seconds()


@pytest.mark.parametrize(("root_days", "below_days"), [(1, 2), (2, 1)])
def test_whichever_ca_ends_first_ends_the_path_unless_an_anchor_stands_below_it(
    root_days: int, below_days: int
) -> None:
    root = PKI.authority("Short Root CA", not_after=NOW + timedelta(days=root_days))
    below = PKI.authority("Below CA", root, not_after=NOW + timedelta(days=below_days))
    held = PKI.device("meter-1", issuer=below, not_after=NOW + timedelta(days=30))
    for anchors, days in (([root], 1), ([below], below_days), ([below, root], below_days)):
        judge = admission(bundle(*anchors))
        for above in ((below, root), ()):  # At a full handshake, and when it comes back.
            peer = examine(judge, held, *above)
            assert isinstance(peer, Peer)
            assert peer.seconds_left == timedelta(days=days).total_seconds()


def test_who_comes_by_a_renewed_ca_is_not_judged_by_the_one_that_has_ended() -> None:
    old = PKI.authority("Rolled Root CA", not_after=NOW + timedelta(days=1))
    new = PKI.authority("Rolled Root CA", key=old.key, not_after=NOW + timedelta(days=5))
    below = PKI.authority("Below CA", old, not_after=NOW + timedelta(days=9))
    held = PKI.device("meter-1", issuer=below, not_after=NOW + timedelta(days=9))
    for first, then in ((old, new), (new, old)):
        judge = admission(bundle(old, new))
        ends = {}
        for above in ((below, first), (below, then), ()):
            peer = examine(judge, held, *above)
            assert isinstance(peer, Peer)
            ends[above] = peer.seconds_left / timedelta(days=1).total_seconds()
        assert ends == {(below, old): 1, (below, new): 5, (): 5}
        later = judge.examine(held.der, NOW + timedelta(days=2), lambda: path(held, below, new))
        assert isinstance(later, Peer)
        ended = judge.examine(held.der, NOW + timedelta(days=2), lambda: path(held, below, old))
        assert isinstance(ended, Refused)
        assert ended.code is RefusalCode.EXPIRED


def test_who_comes_back_is_judged_by_a_path_without_fault_and_by_the_first_bundle() -> None:
    own, other = PKI.authority("Own Root CA"), PKI.authority("Other Root CA", not_after=NOW + timedelta(days=9))
    crossed = PKI.authority("Own Root CA", other, key=own.key, not_after=NOW + timedelta(days=9))
    below = PKI.authority("Below CA", own, not_after=NOW + timedelta(days=9))
    held = PKI.device("meter-1", issuer=below)
    paths = [(below, own), (below, crossed, other)]
    for order in (paths, paths[::-1]):
        judge = admission(bundle(own, other, max_depth=1))
        assert {code(judge, held, *above) for above in order} == {"plant", RefusalCode.PATH_TOO_LONG}
        assert code(judge, held) == "plant"
        judge = admission(bundle(own, name="own"), bundle(other, name="other"))
        assert [code(judge, held, *above) for above in (*order, ())] == ["own"] * 3, "which names that CA, by any path"


def crossed_first(domain: str | None) -> tuple[Admission, Held]:
    """Return an admission where somebody has come by a path to the plant's anchor that the plant's CA has made of ours.

    It has certified our issuing CA's key, which is no secret. Then a device of ours came, by our own path.
    """
    plant_root = PKI.authority("Plant Root CA")
    crossed = PKI.authority("Test Issuing CA", plant_root, key=PKI.issuing.key)
    plant = bundle(plant_root, identity=[CN], name="plant")
    judge = admission(plant, bundle(PKI.root, name="ours", trust_domain=domain))
    assert code(judge, PKI.device("taken"), crossed, plant_root) == "plant"
    ours = PKI.device("meter-1")
    assert code(judge, ours, PKI.issuing, PKI.root) == "ours"
    revoked = {crossed.certificate.serial_number: pack(RevocationReason.KEY_COMPROMISE, NOW)}
    judge.status.index.publish(key_identifier(plant_root.certificate.public_key()), "crl", revoked)
    return judge, ours


@pytest.mark.parametrize("domain", [None, DOMAIN])
def test_a_foreign_ca_that_certifies_the_key_of_ours_judges_none_of_our_devices_that_come_back(
    domain: str | None,
) -> None:
    judge, ours = crossed_first(domain)
    assert code(judge, ours) == "ours"
    assert not judge.is_revoked((key_identifier(PKI.issuing.certificate.public_key()), ours.certificate.serial_number))


@pytest.mark.parametrize("known", [True, False])
def test_below_an_anchor_of_two_bundles_who_comes_back_is_judged_by_the_first_of_them_as_before(known: bool) -> None:
    trust = [bundle(PLANT, identity=[CN], name="plant"), bundle(PLANT, name="ours", trust_domain=None)]
    judge, held = admission(*trust), foreign("meter-7")
    if known:
        assert code(judge, held, PLANT) == "plant"
    assert code(judge, held) == "plant"
    assert judge.trust is not None
    (issuer,) = judge.trust.issuers_with(key_identifier(PLANT.certificate.public_key()), DOMAIN)
    assert issuer.bundle.name == "plant"


def test_of_cas_of_one_name_a_bundle_learns_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes back is looked for among them, by their signatures."""
    monkeypatch.setattr("broker.admission.trust._MOST_NAMESAKES", 2)
    judge = admission(bundle(PKI.root), bundle(OTHER.root, name="other"))
    came: list[tuple[Held, Held]] = []
    for expected in ("plant", "plant", RefusalCode.TRUST_FULL):
        namesake = PKI.authority("Test Issuing CA", PKI.root)
        held = PKI.device("meter-1", issuer=namesake)
        assert code(judge, held, namesake, PKI.root) == expected
        came.append((held, namesake))
    other = PKI.authority("Another CA", PKI.root)
    assert code(judge, PKI.device("meter-1", issuer=other), other, PKI.root) == "plant"
    assert code(judge, OTHER.device("meter-1"), OTHER.issuing, OTHER.root) == "other", "it has room of its own"
    assert code(judge, *came[0], PKI.root, OTHER.root) == "plant", "one that is known, by another path"


def test_a_lost_feed_shuts_out_only_those_whom_it_speaks_of() -> None:
    status = RevocationStatus(RevocationIndex(), Freshness(1.0))
    judge = Admission(status, DEFAULT_POLICY, DOMAIN, (), Trust([bundle(PKI.root)]))
    fed = Admission(status, DEFAULT_POLICY, DOMAIN, (), Trust([bundle(PKI.root, feed=True)]))
    device = PKI.device("meter-1")
    peers = [examine(each, device, PKI.issuing, PKI.root) for each in (judge, fed)]
    assert isinstance(peers[0], Peer)
    assert isinstance(peers[1], Peer)
    assert isinstance(judge.admit(peers[0], Connect(), 0.0), Admitted)
    outcome = fed.admit(peers[1], Connect(), 0.0)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.REVOCATION_STATUS_UNKNOWN


def test_above_another_bundle_s_anchor_is_the_first_given_that_has_issued_it_whichever_ends_last() -> None:
    longer = PKI.authority("Test Root CA", key=PKI.root.key, not_after=NOW + timedelta(days=900))
    for anchors in permutations([PKI.root.certificate, longer.certificate]):
        issuer = TrustBundle("ours", anchors).issuer_at([PKI.issuing.certificate])
        assert issuer is not None
        assert issuer.above is not None
        assert issuer.above.certificate == anchors[0]


@pytest.mark.parametrize(("terms", "admitted"), [(FeedTerms(10.0), True), (FeedTerms(9.9), False), (None, False)])
def test_how_old_the_feed_may_be_is_the_bundles_to_say(terms: FeedTerms | None, admitted: bool) -> None:
    ours = TrustBundle("ours", [PKI.root.certificate], feed=True, feed_terms=terms)
    judge = Admission(RevocationStatus(RevocationIndex(), Freshness(1.0)), DEFAULT_POLICY, DOMAIN, (), Trust([ours]))
    judge.status.freshness.current(0.0)
    peer = examine(judge, PKI.device("meter-1"), PKI.issuing, PKI.root)
    assert isinstance(peer, Peer)
    assert isinstance(judge.admit(peer, Connect(), 10.0), Admitted if admitted else Refused)


@pytest.mark.parametrize(
    ("different", "words"),
    [
        ({"unsafe_no_revocation": False}, "no source of revocations"),
        ({"feed_policy": "require"}, "it is about the feed; give feed = true"),
        ({"identity": [{"source": "common-name"}]}, "a device belongs to one"),
        ({"identity": [CN | {"pattern": "("}]}, "not a regular expression"),
        ({"identity": [CN | {"pattern": ".*"}]}, "name the part that is the name"),
        ({"identity": [CN], "trust_domain": None}, "identities that are made of certificates need one"),
        ({"username": "whoever"}, "a text with {device}"),
        ({"crl_policy": "maybe"}, "none of: require, advisory, grace <time>"),
        ({"crl_urls": "https://pki.example/ca.crl"}, "plain http://"),
    ],
)
def test_settings_that_make_no_sense_are_refused(different: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(**different)
    assert words in str(caught.value)
