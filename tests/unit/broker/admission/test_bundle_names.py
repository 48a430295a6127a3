"""Who a foreign CA's certificate says somebody is: names, groups, client identifiers and user names by its bundle."""

from __future__ import annotations

import re
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from broker.admission.admission import Admitted
from broker.admission.identification import IdentityPipeline
from broker.admission.peer import Peer
from broker.admission.policy_file import parse_policy
from broker.admission.refusal import RefusalCode, Refused
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connect
from broker.mqtt.properties import Properties
from broker.settings.trust_settings import IdentitySource
from provisioning.pki.identity import Identity, InvalidIdentity
from provisioning.pki.keys import generate_key
from provisioning.pki.role import Role
from tests.support.bundles import (
    CN,
    NOW,
    PKI,
    PLANT,
    PLANT_DOMAIN,
    admission,
    bundle,
    checked_policy,
    code,
    examine,
    foreign,
)
from tests.support.pki import DOMAIN, Held
from tests.support.wire import will


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


@pytest.mark.parametrize(
    ("organisation", "common_name"),
    [("Plant,CN=meter-2", "meter-1"), ("Plant+CN=meter-2", "meter-1"), ("CN=meter-2", "meter-1"), ("a;<\0>", r"\m")],
)
def test_nobody_puts_another_common_name_into_his_organisation(organisation: str, common_name: str) -> None:
    """Many CAs let the requester choose it; the pattern is as one would write it."""
    asked = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    key = generate_key()
    builder = x509.CertificateBuilder(PLANT.certificate.subject, asked, key.public_key(), 1)
    made = builder.not_valid_before(NOW).not_valid_after(NOW + timedelta(hours=1)).sign(PLANT.key, hashes.SHA256())
    source = IdentitySource(source="subject", pattern="(?:.*[,+])?CN=(?P<name>[^,+]+)(?:[,+].*)?", group="plant")
    pipeline = IdentityPipeline(PLANT_DOMAIN, [source])
    if common_name == "meter-1":
        assert pipeline.identify(made) == Identity(PLANT_DOMAIN, Role.DEVICE, "meter-1", "plant")
    else:
        with pytest.raises(InvalidIdentity, match=r"^name '.*5Cm'"):  # As RFC 4514 allows for any character.
            pipeline.identify(made)


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


@pytest.mark.parametrize("source", ["san-uri", "san-dns", "san-email", "san-ip"])
def test_who_has_no_alternative_name_is_named_by_none(source: str) -> None:
    named = {"source": source, "pattern": "(?P<name>.+)", "group": "plant"}
    outcome = examine(admission(bundle(PLANT, identity=[named])), foreign("meter-7"), PLANT)
    assert isinstance(outcome, Refused)
    assert outcome.detail == f"the certificate contains no identity ({source}: there is none)"
    assert code(admission(bundle(PLANT, identity=[named, CN])), foreign("meter-7"), PLANT) == "plant"


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
    outcome = examine(judge, foreign("god:m1"), PLANT)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.INVALID_IDENTITY
    assert outcome.detail == f"role 'god' is not one of {', '.join(Role)}"


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
    named = f"by meter-1 only clients of our own trust domain, not spiffe://{PLANT_DOMAIN}/device/plant/meter-1"
    assert theirs.recorded == f"{told}: the topic policy allows {named}"
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
    for unnamed in (examine(judge, PKI.device("meter-1"), PKI.issuing), examine(judge, foreign("meter-2"), PLANT)):
        assert isinstance(unnamed, Refused)
        assert (unnamed.code, unnamed.recorded) == (RefusalCode.WRONG_ROLE, told)


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


def test_a_pattern_that_searches_for_hours_is_given_up() -> None:
    """A partner's CA chooses the name: nobody was served for six seconds with 27 characters, for weeks with 50."""
    nested = {"source": "common-name", "group": "plant", "pattern": "(?P<name>([a-z0-9]+-?)+)"}
    judge = admission(bundle(PLANT, identity=[nested]))
    outcome = examine(judge, foreign("a" * 25 + "!"), PLANT)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.INVALID_IDENTITY
    assert outcome.detail.startswith("a pattern of the trust bundle takes too long with what is in the certificate")
    peer = examine(judge, foreign("a" * 25), PLANT)
    assert isinstance(peer, Peer), "nor does it count against the next one"
