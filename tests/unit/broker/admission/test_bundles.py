"""Trust bundles: which one judges, on which terms, and what a foreign CA's certificate is taken for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import ValidationError

from broker.admission.admission import Admission, Admitted, Peer
from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.check import check
from broker.admission.freshness import FeedTerms, Freshness
from broker.admission.policy import TopicPolicy
from broker.admission.policy_file import DEFAULT_POLICY, parse_policy
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connect
from broker.mqtt.properties import Properties
from broker.trust_settings import TrustSettings
from device_sim.attack.der import with_sha1
from provisioning.pki.identity import Identity, Role
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import Revocation, RevocationIndex, RevocationReason, pack
from tests.support.pki import DOMAIN, Held, Pki, shared_pki
from tests.support.wire import will

PKI = shared_pki()
OTHER = Pki()
PLANT = PKI.authority("Plant CA", PKI.root)
NOW = PKI.now
PLANT_DOMAIN = "plant.example"
WEAK, ALMOST = 1024, 2047
CN = {"source": "common-name", "group": "plant"}


def settings(**different: Any) -> TrustSettings:
    values: dict[str, Any] = {"name": "plant", "anchors": "-", "unsafe_no_revocation": True} | different
    if "identity" in values:
        values.setdefault("trust_domain", PLANT_DOMAIN)
    return TrustSettings(**values)


def bundle(*anchors: Held, **different: Any) -> TrustBundle:
    made = settings(**different)
    return TrustBundle(made.name, [each.certificate for each in anchors], terms=BundleTerms.of(made), feed=made.feed)


def admission(
    *bundles: TrustBundle,
    any_client_id: Sequence[str] = (),
    policy: TopicPolicy = DEFAULT_POLICY,
    domain: str | None = DOMAIN,
) -> Admission:
    judge = Admission(RevocationIndex(), Freshness(1.0), policy, domain, any_client_id, Trust(bundles))
    judge.freshness.current(0.0)
    return judge


def path(held: Held, *above: Held) -> Sequence[bytes]:
    return [each.public_bytes(Encoding.DER) for each in (held.certificate, *(ca.certificate for ca in above))]


def examine(judge: Admission, held: Held, *above: Held) -> Peer | Refused:
    return judge.examine(held.der, NOW, lambda: path(held, *above) if above else ())


def code(judge: Admission, held: Held, *above: Held) -> RefusalCode | str:
    outcome = examine(judge, held, *above)
    return outcome.code if isinstance(outcome, Refused) else outcome.bundle


@pytest.mark.parametrize(
    ("terms", "own", "beside", "group", "taken"),
    [
        ({}, DOMAIN, True, "meters", False),
        ({}, DOMAIN, False, "meters", False),
        ({}, None, True, "meters", False),
        ({}, None, False, "meters", True),
        ({"groups": ["plant"]}, DOMAIN, True, "plant", True),
        ({"groups": ["plant"]}, DOMAIN, True, "meters", False),
        ({"groups": ["*"]}, DOMAIN, True, "meters", True),
        ({"trust_domain": DOMAIN}, DOMAIN, True, "meters", True),
        ({"identity": [{"source": "spiffe", "group": "plant"}]}, DOMAIN, True, "meters", False),
        ({"identity": [{"source": "spiffe", "group": "plant"}]}, DOMAIN, True, "plant", True),
    ],
)
def test_a_foreign_ca_claims_no_group_that_its_bundle_does_not_name(
    terms: dict[str, Any], own: str | None, beside: bool, group: str, taken: bool
) -> None:
    domain = terms.get("trust_domain", PLANT_DOMAIN)
    plant = bundle(PLANT, **({"trust_domain": domain} | terms))
    judge = admission(plant, *([bundle(PKI.issuing, name="ours")] if beside else []), domain=own)
    outcome = examine(judge, PKI.certify(Identity(domain, Role.DEVICE, "meter-1", group), issuer=PLANT), PLANT)
    if taken:
        assert isinstance(outcome, Peer)
    else:
        assert isinstance(outcome, Refused)
        assert outcome.code is RefusalCode.WRONG_GROUP
        assert outcome.detail.startswith(f"the trust bundle plant does not vouch for group {group}")
        assert ("of another trust domain" in outcome.detail) is not bool(terms.get("groups"))


def test_a_foreign_service_that_claims_no_group_needs_none() -> None:
    ours = bundle(PKI.issuing, name="ours")
    backend = PKI.certify(Identity(PLANT_DOMAIN, Role.SERVICE, "backend"), issuer=PLANT)
    open_to = {"roles": ["service"], "trust_domain": PLANT_DOMAIN}
    assert code(admission(bundle(PLANT, **open_to), ours), backend, PLANT) == "plant"
    refusal = examine(admission(bundle(PLANT, groups=["plant"], **open_to), ours), backend, PLANT)
    assert isinstance(refusal, Refused)
    assert refusal.detail == "the trust bundle plant does not vouch for parties without a group"


def checked_policy(judge: Admission, held: Held) -> str:
    """Return what a check of *held*, of the plant's CA, tells of the policy."""
    verdict = check([held.certificate], [PLANT.certificate, PKI.issuing.certificate], judge, 0.0, NOW)
    return next(step.detail for step in verdict.steps if step.name == "policy")


def foreign(
    common_name: str = "meter-1",
    names: Sequence[x509.GeneralName] = (),
    purposes: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
) -> Held:
    """Return a certificate of the plant's CA, which knows nothing of our URIs."""
    identity = Identity(DOMAIN, Role.DEVICE, "x", "x")
    return PKI.certify(identity, issuer=PLANT, common_name=common_name, uris=[], names=names, purposes=purposes)


def test_the_bundle_that_vouches_judges_and_the_peer_knows_it() -> None:
    judge = admission(bundle(OTHER.root, name="other"), bundle(PKI.root, name="ours"))
    assert code(judge, PKI.device("meter-1"), PKI.issuing, PKI.root) == "ours"
    assert code(judge, OTHER.device("meter-1"), OTHER.issuing, OTHER.root) == "other"
    stranger = Pki()
    assert code(judge, stranger.device("meter-1"), stranger.issuing, stranger.root) is RefusalCode.UNTRUSTED_ISSUER


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
    ],
)
def test_the_purpose_must_be_written_down(purposes: Any, required: list[str], answer: RefusalCode | str) -> None:
    judge = admission(bundle(PKI.root, required_eku=required))
    assert code(judge, PKI.device("meter-1", purposes=purposes), PKI.issuing, PKI.root) == answer


def weak(key: Any, hash_: hashes.HashAlgorithm) -> Held:
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
    judge.index.add(Revocation(*peer.certificate, RevocationReason.KEY_COMPROMISE, NOW))
    assert code(judge, held, PKI.issuing, PKI.root) is RefusalCode.REVOKED
    assert code(judge, held) is RefusalCode.REVOKED


def over_sha1(held: Held, issuer: Held) -> Held:
    """Return *held* signed again by *issuer* over SHA-1, which the library signs nothing with any more."""
    return Held(x509.load_der_x509_certificate(with_sha1(held.certificate, issuer.key)), held.key)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (weak(rsa.generate_private_key(65537, WEAK), hashes.SHA256()), "1024 bits"),
        (weak(rsa.generate_private_key(65537, ALMOST), hashes.SHA256()), "2047 bits"),
        (weak(ec.generate_private_key(ec.SECP192R1()), hashes.SHA256()), "192 bits"),
        (weak(dsa.generate_private_key(2048), hashes.SHA256()), "key is neither RSA, EC nor Ed25519"),
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
        rsa.generate_private_key(65537, 2048),
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
    assert code(judge, device) is RefusalCode.UNTRUSTED_ISSUER, "of its issuer nothing has been seen"
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
    assert bundle(shorter, namesake, same_key).issuer_at(path) is None
    longest = PKI.authority("Renewed CA", PKI.root, key=PLANT.key, not_after=NOW + timedelta(days=8))
    for anchors in ([longer, longest], [longest, longer]):
        assert bundle(*anchors).issuer_at(path).certificate == longest.certificate  # type: ignore[union-attr]
    fingerprints = [each.certificate.fingerprint(hashes.SHA256()).hex() for each in (shown, longer)]
    assert bundle(longer, issuers=(fingerprints[0],)).issuer_at(path) is None
    assert bundle(longer, issuers=(fingerprints[1],)).issuer_at(path) is not None


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
    paths = {(below, own): "own", (below, crossed, other): "other"}
    for order in (list(paths), list(paths)[::-1]):
        judge = admission(bundle(own, other, max_depth=1))
        assert {code(judge, held, *above) for above in order} == {"plant", RefusalCode.PATH_TOO_LONG}
        assert code(judge, held) == "plant"
        judge = admission(bundle(own, name="own"), bundle(other, name="other"))
        assert [code(judge, held, *above) for above in order] == [paths[above] for above in order]
        assert code(judge, held) == "own"


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
    judge.index.publish(key_identifier(plant_root.certificate.public_key()), "crl", revoked)
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
    (issuer,) = judge.trust.issuers_with(key_identifier(PLANT.certificate.public_key()), DOMAIN)
    assert issuer.bundle.name == "plant"


def test_of_cas_of_one_name_a_bundle_learns_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes back is looked for among them, by their signatures."""
    monkeypatch.setattr("broker.admission.trust._MOST_NAMESAKES", 2)
    judge = admission(bundle(PKI.root))
    for expected in ("plant", "plant", RefusalCode.TRUST_FULL):
        namesake = PKI.authority("Test Issuing CA", PKI.root)
        held = PKI.device("meter-1", issuer=namesake)
        assert code(judge, held, namesake, PKI.root) == expected
    other = PKI.authority("Another CA", PKI.root)
    assert code(judge, PKI.device("meter-1", issuer=other), other, PKI.root) == "plant"


FINGERPRINT = {"source": "fingerprint", "group": "plant"}


@pytest.mark.parametrize(
    ("held", "sources", "name", "group"),
    [
        (foreign("meter-7"), [CN], "meter-7", "plant"),
        (foreign("Meter 7", [x509.DNSName("m7.gas.plant.example")]),
         [{"source": "san-dns", "pattern": r"(?P<name>[a-z0-9]+)\.(?P<group>[a-z]+)\.plant\.example"}], "m7", "gas"),
        (foreign("-", [x509.UniformResourceIdentifier("urn:dev:ser:0042")]),
         [CN, {"source": "san-uri", "pattern": "urn:dev:ser:(?P<name>[0-9]+)", "group": "serial"}], "0042", "serial"),
        (foreign("-", [x509.RFC822Name("m8@plant.example")]),
         [{"source": "san-email", "pattern": "(?P<name>[^@]+)@plant\\.example", "group": "mail"}], "m8", "mail"),
        (foreign("meter-9"), [{"source": "subject", "pattern": "CN=(?P<name>meter-[0-9]+)", "group": "s"}],
         "meter-9", "s"),
    ],
)  # fmt: skip
def test_the_name_is_taken_from_where_the_configuration_says(
    held: Held, sources: list[dict[str, str]], name: str, group: str
) -> None:
    if held.certificate.subject.rfc4514_string() == "CN=-":
        sources = [each | {"pattern": "(?P<name>[A-Za-z].*)"} if each is CN else each for each in sources]
    peer = examine(admission(bundle(PLANT, identity=sources, groups=["*"])), held, PLANT)
    assert isinstance(peer, Peer)
    assert peer.identity == Identity(PLANT_DOMAIN, Role.DEVICE, name, group)


def test_a_certificate_without_a_usable_name_is_known_by_its_fingerprint() -> None:
    held = foreign("Gateway in hall 3")
    peer = examine(admission(bundle(PLANT, identity=[FINGERPRINT])), held, PLANT)
    assert isinstance(peer, Peer)
    assert peer.identity.name == held.certificate.fingerprint(hashes.SHA256()).hex()
    key = examine(admission(bundle(PLANT, identity=[FINGERPRINT | {"source": "public-key"}])), held, PLANT)
    assert isinstance(key, Peer)
    assert key.identity.name != peer.identity.name


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (foreign("Meter 7"), "name 'Meter 7'"),
        (foreign("a/b"), "name 'a/b'"),
        (foreign("+"), "name '+'"),
        (foreign("x" * 64, [x509.DNSName("one.example"), x509.DNSName("two.example")]), "2 values name different"),
    ],
)
def test_what_is_no_safe_name_is_refused(held: Held, words: str) -> None:
    dns = {"source": "san-dns", "pattern": r"(?P<name>[a-z]+)\.example", "group": "plant"}
    outcome = examine(admission(bundle(PLANT, identity=[dns, CN])), held, PLANT)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.INVALID_IDENTITY
    assert words in outcome.detail


def test_sources_are_tried_in_their_order() -> None:
    spiffe = {"source": "spiffe"}
    address = {"source": "san-ip", "pattern": r"10\.0\.0\.(?P<name>[0-9]+)", "group": "hosts"}
    judge = admission(bundle(PKI.root, identity=[spiffe, address], trust_domain=DOMAIN))
    ours = examine(judge, PKI.device("meter-1"), PKI.issuing, PKI.root)
    assert isinstance(ours, Peer)
    assert ours.identity == Identity(DOMAIN, Role.DEVICE, "meter-1", "meters")
    host = examine(judge, foreign("x", [x509.IPAddress(ip_address("10.0.0.7"))]), PLANT, PKI.root)
    assert isinstance(host, Peer)
    assert host.identity == Identity(DOMAIN, Role.DEVICE, "7", "hosts")
    for held, words in (
        (
            foreign("x", [x509.IPAddress(ip_address("10.0.1.7"))]),
            "0 identity URIs where one is needed; san-ip: nothing",
        ),
        (foreign("x"), "no Subject Alternative Name; san-ip: there is none"),
    ):
        outcome = examine(judge, held, PLANT, PKI.root)
        assert isinstance(outcome, Refused)
        assert (outcome.code, words in outcome.detail) == (RefusalCode.INVALID_IDENTITY, True), outcome.detail


def test_a_value_is_bounded_and_a_name_that_is_not_captured_is_none() -> None:
    source = {"source": "san-uri", "pattern": "urn:x*(?P<name>[0-9]+)?", "group": "plant"}
    judge = admission(bundle(PLANT, identity=[source]))
    for uri, answer in (
        ("urn:" + "x" * 1019 + "7", "plant"),
        ("urn:" + "x" * 1020 + "7", RefusalCode.INVALID_IDENTITY),
        ("urn:x", RefusalCode.INVALID_IDENTITY),
    ):
        assert code(judge, foreign("-", [x509.UniformResourceIdentifier(uri)]), PLANT) == answer


def test_a_captured_role_must_be_one_that_the_bundle_vouches_for() -> None:
    source = {"source": "common-name", "pattern": "(?P<role>[a-z]+):(?P<name>.+)", "group": "plant"}
    judge = admission(bundle(PLANT, identity=[source]))
    assert code(judge, foreign("device:m1"), PLANT) == "plant"
    assert code(judge, foreign("operator:m1"), PLANT) is RefusalCode.WRONG_ROLE
    assert code(judge, foreign("god:m1"), PLANT) is RefusalCode.INVALID_IDENTITY


@pytest.mark.parametrize(
    ("rule", "accepted", "refused"),
    [
        ("equal", ["", "meter-1"], ["meter-1-a", "meter-2"]),
        ("prefix", ["", "meter-1", "meter-1-a"], ["meter-10", "meter-2"]),
        ("assigned", [""], ["meter-1", "meter-1-a"]),
    ],
)
def test_a_client_identifier_follows_the_bundles_rule(rule: str, accepted: list[str], refused: list[str]) -> None:
    judge = admission(bundle(PKI.root, client_id=rule, any_client_id=["bridge"]))
    for name, client_ids, admitted in (
        ("meter-1", accepted, True),
        ("meter-1", refused, False),
        ("bridge", ["x"], True),
    ):
        peer = examine(judge, PKI.device(name), PKI.issuing, PKI.root)
        assert isinstance(peer, Peer)
        for client_id in client_ids:
            outcome = judge.admit(peer, Connect(client_id=client_id), 0.0)
            assert isinstance(outcome, Admitted) is admitted, client_id


@pytest.mark.parametrize("domain", [DOMAIN, None], ids=["ours", "unknown"])
def test_whom_a_foreign_ca_calls_bridge_is_not_our_bridge(domain: str | None) -> None:
    bundles = bundle(PLANT, identity=[CN]), bundle(PKI.issuing, name="ours")
    judge = admission(*bundles, any_client_id=["bridge"], domain=domain)
    theirs, ours = examine(judge, foreign("bridge"), PLANT), examine(judge, PKI.device("bridge"), PKI.issuing)
    assert isinstance(theirs, Peer)
    assert isinstance(ours, Peer)
    assert isinstance(judge.admit(ours, Connect(client_id="meter-7"), 0.0), Admitted)
    outcome = judge.admit(theirs, Connect(client_id="meter-7"), 0.0)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.CLIENT_ID_MISMATCH
    assert isinstance(judge.admit(theirs, Connect(client_id="bridge"), 0.0), Admitted)


@pytest.mark.parametrize("section", ["device.meter-1", "identity.meter-1"])
@pytest.mark.parametrize("domain", [DOMAIN, None], ids=["ours", "unknown"])
def test_whom_a_foreign_ca_calls_by_a_name_of_the_policy_has_not_its_topics(section: str, domain: str | None) -> None:
    rules = f'[{section}]\npublish.allow = ["a"]\nsubscribe.allow = ["a"]\npublish.deny = ["b/#"]\n'
    bundles = bundle(PLANT, identity=[CN]), bundle(PKI.issuing, name="ours")
    judge = admission(*bundles, policy=parse_policy(rules, "p"), domain=domain)
    ours, theirs = examine(judge, PKI.device("meter-1"), PKI.issuing), examine(judge, foreign("meter-1"), PLANT)
    assert isinstance(ours, Peer)
    assert judge.permissions(ours.identity, "meter-1").may_publish("a")
    assert isinstance(theirs, Refused)
    assert theirs.code is RefusalCode.WRONG_ROLE
    told = "a certificate of role device may not connect"
    assert theirs.told == Properties(reason_string=f"WRONG_ROLE: {told}"), "whom the policy names is not theirs to know"
    named = f"meter-1, not spiffe://{PLANT_DOMAIN}/device/plant/meter-1"
    assert theirs.recorded == f"{told}: the topic policy means parties of our own trust domain by {named}"
    assert checked_policy(judge, foreign("meter-1")) == (
        f"no topic rules for role device; {section} allows only those of our own trust domain: name others by their URI"
    )

    judge.policy = parse_policy(rules + '[role.device]\npublish.allow = ["b/{group}", "c"]\n', "p")
    theirs = examine(judge, foreign("meter-1"), PLANT)
    assert isinstance(theirs, Peer)
    assert checked_policy(judge, foreign("meter-1")).endswith(": publishes b/{group}, c; subscribes to nothing")
    permissions = judge.permissions(theirs.identity, "meter-1")
    allowed = [topic for topic in ("a", "b/plant", "c") if permissions.may_publish(topic)]
    assert allowed == ["c"], "what a name denies, it denies everybody of that name"
    assert not permissions.may_subscribe("a")
    outcome = judge.admit(theirs, Connect(client_id="meter-1", will=will("a")), 0.0)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.WILL_NOT_PERMITTED

    judge.policy = parse_policy(f'[identity."{theirs.identity}"]\nsubscribe.allow = ["a"]\n', "p")
    theirs = examine(judge, foreign("meter-1"), PLANT)
    assert isinstance(theirs, Peer)
    assert judge.permissions(theirs.identity, "meter-1").may_subscribe("a")
    assert code(judge, PKI.device("meter-1"), PKI.issuing) is RefusalCode.WRONG_ROLE


def test_a_bundle_without_a_domain_vouches_for_none_that_is_anothers() -> None:
    judge = admission(bundle(PLANT, identity=[CN]), bundle(PKI.issuing, name="ours"), domain=None)
    claimed = PKI.certify(Identity(PLANT_DOMAIN, Role.DEVICE, "meter-1", "plant"), issuer=PKI.issuing)
    assert code(judge, claimed, PKI.issuing) is RefusalCode.WRONG_TRUST_DOMAIN
    assert code(judge, PKI.device("meter-1"), PKI.issuing) == "ours"


@pytest.mark.parametrize(("rule", "new"), [("equal", False), ("prefix", True), ("assigned", False)])
def test_an_empty_identifier_becomes_a_new_one_where_a_device_may_have_several(rule: str, new: bool) -> None:
    judge = admission(bundle(PKI.root, client_id=rule))
    peer = examine(judge, PKI.device("meter-1"), PKI.issuing, PKI.root)
    assert isinstance(peer, Peer)
    outcomes = [judge.admit(peer, Connect(client_id=""), 0.0) for _ in range(20)]
    names = {outcome.client_id for outcome in outcomes if isinstance(outcome, Admitted) and outcome.assigned}
    assert len(names) == (20 if new else 1)
    assert all(re.fullmatch("meter-1-[0-9a-f]{16}" if new else "meter-1", name) for name in names)
    assert new == ("meter-1" not in names)


@pytest.mark.parametrize(
    ("rule", "username", "admitted"),
    [
        ("ignore", "anybody", True),
        ("equal", "meter-1", True),
        ("equal", "meter-2", False),
        ("equal", None, False),
        ("{group}:{device}", "meters:meter-1", True),
        ("{group}:{device}", "meter-1", False),
    ],
)
def test_a_user_name_follows_the_bundles_rule(rule: str, username: str | None, admitted: bool) -> None:
    judge = admission(bundle(PKI.root, username=rule))
    peer = examine(judge, PKI.device("meter-1"), PKI.issuing, PKI.root)
    assert isinstance(peer, Peer)
    outcome = judge.admit(peer, Connect(username=username), 0.0)
    assert isinstance(outcome, Admitted if admitted else Refused)
    if isinstance(outcome, Refused):
        assert (outcome.code, outcome.reason_code) == (
            RefusalCode.USERNAME_MISMATCH,
            ReasonCode.BAD_USER_NAME_OR_PASSWORD,
        )


def test_a_lost_feed_shuts_out_only_those_whom_it_speaks_of() -> None:
    judge = Admission(RevocationIndex(), Freshness(1.0), DEFAULT_POLICY, DOMAIN, (), Trust([bundle(PKI.root)]))
    fed = Admission(RevocationIndex(), Freshness(1.0), DEFAULT_POLICY, DOMAIN, (), Trust([bundle(PKI.root, feed=True)]))
    device = PKI.device("meter-1")
    peers = [examine(each, device, PKI.issuing, PKI.root) for each in (judge, fed)]
    assert isinstance(peers[0], Peer)
    assert isinstance(peers[1], Peer)
    assert isinstance(judge.admit(peers[0], Connect(), 0.0), Admitted)
    outcome = fed.admit(peers[1], Connect(), 0.0)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.REVOCATION_STATUS_UNKNOWN


@pytest.mark.parametrize(("terms", "admitted"), [(FeedTerms(10.0), True), (FeedTerms(9.9), False), (None, False)])
def test_how_old_the_feed_may_be_is_the_bundles_to_say(terms: FeedTerms | None, admitted: bool) -> None:
    ours = TrustBundle("ours", [PKI.root.certificate], feed=True, feed_terms=terms)
    judge = Admission(RevocationIndex(), Freshness(1.0), DEFAULT_POLICY, DOMAIN, (), Trust([ours]))
    judge.freshness.current(0.0)
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
