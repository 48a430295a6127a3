"""What ``fleet-broker check`` says: every step taken, and the verdict that of the gate that refuses."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from broker.admission.admission import Admission
from broker.admission.bundle import ListTerms, TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.check import Verdict, ask, check
from broker.admission.freshness import FeedTerms, Freshness
from broker.admission.inquiry import Inquiry
from broker.admission.issuers import Issuer
from broker.admission.peer import Peer
from broker.admission.policy import Kind, Rules, Section, TopicPolicy
from broker.admission.policy_file import load_policy
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.remedy import REMEDIES
from broker.admission.status import RevocationStatus
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from broker.settings.trust_settings import REQUIRE, TrustSettings
from provisioning.pki.identity import Identity
from provisioning.pki.revocation import RevocationIndex
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, NO_EXTENSIONS, SERVER, Held, Pki, shared_pki

PKI = shared_pki()
NOW = PKI.now
METER = Identity(DOMAIN, Role.DEVICE, "meter-1", "meters")
ROOT_ONLY = [PKI.root.certificate]


def usage(**bits: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    none = dict.fromkeys((*names, "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(**(none | bits))


CA = "this is the certificate of a CA, not of a device"
ANCHOR = f"{CA}; it is one of the broker's trust anchors"
BEHIND = "; after it the file has an end-entity certificate: the device's own has to be the first"
ANYWHERE = (Path("-"),)
STEPS = ["chain", "validity", "purpose", "end entity", "identity", "policy", "bundle", "revocation", "freshness"]


@pytest.fixture
def admission() -> Admission:
    freshness = Freshness(300.0)
    freshness.current(0.0)
    return Admission(RevocationStatus(RevocationIndex(), freshness), load_policy(None), DOMAIN)


def verdict(
    admission: Admission, held: Held, anchors: list[x509.Certificate] | None = None, *, now: float = 5.0
) -> Verdict:
    trusted = anchors if anchors is not None else [PKI.root.certificate, PKI.issuing.certificate]
    return check([held.certificate, *held.chain], trusted, admission, now, NOW)


def failed(outcome: Verdict) -> list[str]:
    return [step.name for step in outcome.steps if step.passed is False]


def test_a_good_certificate_passes_every_step(admission: Admission) -> None:
    for anchors in ([PKI.root.certificate], [PKI.issuing.certificate], [PKI.root.certificate, PKI.issuing.certificate]):
        outcome = verdict(admission, PKI.certify(METER), anchors)
        assert outcome.admitted, outcome
        assert [step.name for step in outcome.steps] == STEPS
        assert all(step.passed for step in outcome.steps)
        assert outcome.detail == f"admitted as {METER.uri}"
        path = "CN=meter-1 <- CN=Test Issuing CA"
        assert outcome.steps[0].detail == (path if PKI.issuing.certificate in anchors else f"{path} <- CN=Test Root CA")


BAD: dict[str, tuple[Held, RefusalCode, list[str]]] = {
    "of another CA": (Pki().certify(METER), RefusalCode.UNTRUSTED_ISSUER, ["chain"]),
    "self-signed": (PKI.self_signed(METER), RefusalCode.UNTRUSTED_ISSUER, ["chain"]),
    "signed by another key": (
        Pki().certify(METER, issuer_name=PKI.issuing.certificate.subject),
        RefusalCode.UNTRUSTED_ISSUER,
        ["chain"],
    ),
    "issued by a device": (
        PKI.certify(METER, issuer=PKI.device("insider")),
        RefusalCode.UNTRUSTED_ISSUER,
        ["chain"],
    ),
    "expired": (PKI.certify(METER, not_after=NOW - timedelta(seconds=1)), RefusalCode.EXPIRED, ["validity"]),
    "not yet valid": (
        PKI.certify(METER, not_before=NOW + timedelta(hours=1), not_after=NOW + timedelta(hours=2)),
        RefusalCode.NOT_YET_VALID,
        ["validity"],
    ),
    "for servers": (PKI.certify(METER, purposes=SERVER[:1]), RefusalCode.WRONG_PURPOSE, ["purpose"]),
    "for encryption only": (
        PKI.certify(METER, extensions=[usage(key_encipherment=True)]),
        RefusalCode.WRONG_PURPOSE,
        ["purpose"],
    ),
    "a CA's": (PKI.certify(METER, is_ca=True), RefusalCode.CA_CERTIFICATE, ["end entity"]),
    "one that may sign certificates": (
        PKI.certify(METER, extensions=[usage(digital_signature=True, key_cert_sign=True)]),
        RefusalCode.CA_CERTIFICATE,
        ["end entity"],
    ),
    "without an identity": (PKI.certify(METER, uris=[]), RefusalCode.INVALID_IDENTITY, ["identity"]),
    "of another domain": (
        PKI.certify(Identity("elsewhere", Role.DEVICE, "meter-1", "meters")),
        RefusalCode.WRONG_TRUST_DOMAIN,
        ["identity"],
    ),
    "expired, and of another domain": (
        PKI.certify(Identity("elsewhere", Role.DEVICE, "meter-1", "meters"), not_after=NOW - timedelta(seconds=1)),
        RefusalCode.EXPIRED,
        ["validity", "identity"],
    ),
    "a broker's": (PKI.broker(), RefusalCode.WRONG_ROLE, ["policy"]),
    "wrong in every way": (
        Pki().certify(METER, uris=[], purposes=SERVER[:1], is_ca=True, not_after=NOW - timedelta(seconds=1)),
        RefusalCode.CA_CERTIFICATE,
        ["chain", "validity", "purpose", "end entity", "identity"],
    ),
}


@pytest.mark.parametrize(("held", "code", "steps"), BAD.values(), ids=BAD.keys())
def test_a_bad_certificate_fails_where_it_is_bad(
    admission: Admission, held: Held, code: RefusalCode, steps: list[str]
) -> None:
    outcome = verdict(admission, held)
    assert (outcome.admitted, outcome.code) == (False, code)
    assert failed(outcome) == steps
    assert outcome.remedy == REMEDIES[code]
    for step in (step for step in outcome.steps if step.passed is False):
        assert step.code in set(RefusalCode)
        assert step.detail not in set(RefusalCode)
    if {"chain", "validity", "purpose"} & set(steps):
        assert outcome.detail.startswith("TLS alert: ") or code is RefusalCode.CA_CERTIFICATE
    else:
        at_the_door = admission.examine(held.der, NOW)
        assert isinstance(at_the_door, Refused)
        assert outcome.detail == at_the_door.detail, "the client is told the same"


@pytest.mark.parametrize(("left", "said"), [(0, "0 days"), (1, "1 day"), (2, "2 days")])
def test_the_days_that_are_left_are_said(admission: Admission, left: int, said: str) -> None:
    held = PKI.certify(METER, not_after=NOW + timedelta(days=left, seconds=1))
    assert verdict(admission, held).steps[1].detail.endswith(f" UTC, {said}")


def test_the_terms_of_a_trust_bundle_are_a_step_and_no_ca_is_learned(admission: Admission) -> None:
    bundle = TrustBundle(
        "meters",
        ROOT_ONLY,
        terms=BundleTerms(TrustSettings(name="meters", anchors=ANYWHERE, max_depth=0, feed=True)),
    )
    admission.trust = Trust([bundle])
    outcome = verdict(admission, PKI.certify(METER), ROOT_ONLY)
    assert (outcome.code, failed(outcome)) == (RefusalCode.PATH_TOO_LONG, ["bundle"])
    assert admission.trust.learned == 0
    admission.trust = Trust([TrustBundle("meters", ROOT_ONLY)])
    outcome = verdict(admission, PKI.certify(METER), ROOT_ONLY)
    assert outcome.admitted
    assert next(step.detail for step in outcome.steps if step.name == "bundle") == "meters"


@pytest.mark.parametrize(
    ("feed", "terms", "admitted"),
    [
        (False, None, True),
        (True, None, False),
        (True, FeedTerms(0.0, always=True, policy="advisory"), True),
    ],
)
def test_how_fresh_the_feed_must_be_is_the_bundles_to_say(
    admission: Admission, feed: bool, terms: FeedTerms | None, admitted: bool
) -> None:
    admission.trust = Trust([TrustBundle("meters", ROOT_ONLY, feed=feed, feed_terms=terms)])
    held = PKI.certify(METER)
    outcome = check([held.certificate, *held.chain], ROOT_ONLY, admission, 1e6, NOW)
    assert outcome.admitted is admitted
    assert failed(outcome) == ([] if admitted else ["freshness"])


def test_what_a_bundle_takes_somebody_for_is_a_step_too(admission: Admission) -> None:
    elsewhere = TrustSettings(name="meters", anchors=ANYWHERE, trust_domain="else.where", feed=True)
    admission.trust = Trust([TrustBundle("meters", ROOT_ONLY, terms=BundleTerms(elsewhere))])
    outcome = verdict(admission, PKI.certify(METER), ROOT_ONLY)
    assert (outcome.code, failed(outcome)) == (RefusalCode.WRONG_TRUST_DOMAIN, ["identity"])
    outcome = verdict(admission, Pki().certify(METER, uris=[]), ROOT_ONLY)
    assert (outcome.code, failed(outcome)) == (RefusalCode.UNTRUSTED_ISSUER, ["chain", "identity"])


def test_a_bundles_own_domain_counts_and_without_any_all_are_good(admission: Admission) -> None:
    elsewhere = Identity("else.where", Role.DEVICE, "meter-1", "meters")
    terms = BundleTerms(
        TrustSettings(name="m", anchors=ANYWHERE, trust_domain="else.where", groups=("meters",), feed=True)
    )
    admission.trust = Trust([TrustBundle("meters", ROOT_ONLY, terms=terms)])
    assert failed(verdict(admission, PKI.certify(elsewhere), ROOT_ONLY)) == []
    admission.trust, admission.trust_domain = None, None
    assert failed(verdict(admission, PKI.certify(elsewhere), ROOT_ONLY)) == []


class Responder:
    """Answers nothing yet, and remembers whom it was asked about."""

    def failing(self, _bundle: str) -> Collection[str]:
        return ()

    def __init__(self) -> None:
        self.asked: list[x509.Certificate] = []

    def ask(self, certificate: x509.Certificate, issuer: Issuer, refusal: Refused | None) -> Inquiry:  # noqa: ARG002
        self.asked.append(certificate)
        return Inquiry()


def test_a_list_that_is_missing_fails_the_step_about_revocation_and_somebody_can_be_asked(admission: Admission) -> None:
    required = ListTerms(REQUIRE)
    admission.trust = Trust([TrustBundle("meters", ROOT_ONLY, lists=required)])
    held, stranger = PKI.certify(METER), Pki().certify(METER)
    outcome = verdict(admission, held, ROOT_ONLY)
    assert (outcome.code, failed(outcome)) == (RefusalCode.CRL_MISSING, ["revocation"])
    responder = Responder()
    admission.asker = responder
    peer = ask([held.certificate, *held.chain], ROOT_ONLY, admission, NOW)
    assert isinstance(peer, Peer)
    assert peer.inquiry is not None
    assert isinstance(ask([stranger.certificate, *stranger.chain], ROOT_ONLY, admission, NOW), Refused)
    assert responder.asked == [held.certificate], "nobody is asked about a stranger"
    assert isinstance(ask([held.certificate, *held.chain], ROOT_ONLY, admission, NOW, status=False), Peer)
    assert responder.asked == [held.certificate], "nor where the status is no reason to refuse"


OF_ITS_STATUS = ("REVOKED", "SUSPENDED", "ISSUER_REVOKED", "CRL_MISSING", "CRL_EXPIRED", "OCSP_UNAVAILABLE",
                 "OCSP_UNKNOWN", "REVOCATION_STATUS_UNKNOWN")  # fmt: skip
OF_A_BUNDLE = ("UNTRUSTED_ISSUER", "TRUST_FULL", "PATH_TOO_LONG", "WEAK_CERTIFICATE", "WRONG_PURPOSE", "WRONG_GROUP")


@pytest.mark.parametrize(
    ("code", "step"),
    [
        *((RefusalCode(each), "revocation") for each in OF_ITS_STATUS),
        *((RefusalCode(each), "bundle") for each in OF_A_BUNDLE),
    ],
)
def test_what_was_found_by_asking_is_the_verdict_and_the_step_that_it_is_about_fails(
    admission: Admission, code: RefusalCode, step: str
) -> None:
    held = PKI.certify(METER)
    found = Refused(code, ReasonCode.NOT_AUTHORIZED, "why", aside="and how")
    outcome = check([held.certificate, *held.chain], ROOT_ONLY, admission, 5.0, NOW, found)
    assert (outcome.admitted, outcome.code, outcome.detail) == (False, code, "why: and how")
    assert [(each.name, each.code, each.detail) for each in outcome.steps if each.passed is False] == [
        (step, code, "why: and how")
    ]


def test_a_missing_intermediate_is_named(admission: Admission) -> None:
    held = PKI.certify(METER)
    outcome = check([held.certificate], ROOT_ONLY, admission, 5.0, NOW)
    assert outcome.steps[0].detail == (
        "CN=meter-1 is issued by CN=Test Issuing CA, which is neither a trust anchor nor in the file"
    )


SELF_SIGNED = "is self-signed: no trust anchor vouches for it"


def test_a_root_that_is_in_the_file_and_no_anchor_is_named(admission: Admission) -> None:
    held, stranger = PKI.certify(METER), Pki()
    chain = [held.certificate, PKI.issuing.certificate, PKI.root.certificate]
    outcome = check(chain, [stranger.root.certificate], admission, 5.0, NOW)
    assert (outcome.code, outcome.steps[0].detail) == (RefusalCode.UNTRUSTED_ISSUER, f"CN=Test Root CA {SELF_SIGNED}")
    assert verdict(admission, PKI.self_signed(METER)).steps[0].detail == f"CN=meter-1 {SELF_SIGNED}"
    other = Pki().certify(METER, issuer_name=PKI.issuing.certificate.subject)
    outcome = check([other.certificate], [PKI.root.certificate, PKI.issuing.certificate], admission, 5.0, NOW)
    assert outcome.steps[0].detail == (
        "CN=meter-1 is issued by CN=Test Issuing CA, its signature is not by that CA's key"
    )


def test_a_trust_anchor_is_not_said_to_have_none(admission: Admission) -> None:
    """Two steps contradicted each other: no anchor vouches for it; it is one of the anchors."""
    outcome = verdict(admission, PKI.root, ROOT_ONLY)
    chain, end_entity = outcome.steps[0], outcome.steps[3]
    assert (chain.passed, chain.code) == (False, RefusalCode.UNTRUSTED_ISSUER)
    assert chain.detail == "CN=Test Root CA is itself a trust anchor: a client needs a certificate that one has issued"
    assert (outcome.code, end_entity.detail) == (RefusalCode.CA_CERTIFICATE, ANCHOR)


def test_cas_that_certify_each_other_and_no_anchor_lead_nowhere(admission: Admission) -> None:
    one, other = PKI.authority("One CA"), PKI.authority("Other CA")
    crossed = [PKI.authority("One CA", other, key=one.key), PKI.authority("Other CA", one, key=other.key)]
    held = PKI.certify(METER, issuer=one)
    outcome = check([held.certificate, *(each.certificate for each in crossed)], ROOT_ONLY, admission, 5.0, NOW)
    assert (outcome.admitted, outcome.code, failed(outcome)) == (False, RefusalCode.UNTRUSTED_ISSUER, ["chain"])


def test_a_ca_above_that_has_expired_or_may_not_have_issued_is_named(admission: Admission) -> None:
    later = NOW + timedelta(days=3)
    held = PKI.certify(METER, not_after=later + timedelta(days=1))
    outcome = check([held.certificate, *held.chain], ROOT_ONLY, admission, 5.0, later)
    assert (outcome.code, failed(outcome)) == (RefusalCode.EXPIRED, ["chain"])
    below = PKI.certify(Identity(DOMAIN, Role.SERVICE, "sub-ca"), is_ca=True)
    outcome = verdict(admission, PKI.certify(METER, issuer=below))
    assert outcome.code == RefusalCode.UNTRUSTED_ISSUER
    assert "allows 0 CAs below it" in outcome.steps[0].detail
    sooner = NOW - timedelta(days=30)
    outcome = check([held.certificate, *held.chain], ROOT_ONLY, admission, 5.0, sooner)
    assert outcome.steps[0].code == RefusalCode.NOT_YET_VALID
    for extension, words in ((usage(crl_sign=True), "may not sign certificates"), (usage(key_cert_sign=True), "")):
        below = PKI.certify(
            Identity(DOMAIN, Role.SERVICE, "sub-ca"), issuer=PKI.root, is_ca=True, extensions=[extension]
        )
        chain = verdict(admission, PKI.certify(METER, issuer=below), ROOT_ONLY).steps[0]
        assert (chain.passed, words in chain.detail) == (not words, True)
    insider = PKI.certify(Identity(DOMAIN, Role.SERVICE, "insider"), issuer=PKI.root)
    chain = verdict(admission, PKI.certify(METER, issuer=insider), ROOT_ONLY).steps[0]
    assert (chain.passed, chain.detail) == (False, "CN=insider is not a CA")
    plain = PKI.certify(METER, purposes=None, extensions=NO_EXTENSIONS)
    assert verdict(admission, plain).admitted
    assert verdict(admission, plain).steps[2].detail == "any: there is no extended key usage"
    assert verdict(admission, PKI.certify(METER, extensions=[usage(key_agreement=True)])).admitted, "as OpenSSL does"


def test_a_device_s_own_certificate_among_the_anchors_lets_nobody_in(admission: Admission) -> None:
    """OpenSSL lets it through, as an anchor is good for itself; no CA vouches for it."""
    for held in (PKI.self_signed(METER), PKI.certify(METER)):
        anchors = [PKI.root.certificate, held.certificate]
        admission.trust = Trust([TrustBundle("cafile", anchors)])
        at_the_door = admission.examine(held.der, NOW, lambda held=held: [held.der])  # type: ignore[misc]
        outcome = check([held.certificate], anchors, admission, 5.0, NOW)
        assert isinstance(at_the_door, Refused)
        assert not outcome.admitted
        assert at_the_door.code == outcome.code == RefusalCode.UNTRUSTED_ISSUER
        admission.trust = None  # Where no bundle judges the path, this check of it is all that there is.
        outcome = check([held.certificate], anchors, admission, 5.0, NOW)
        assert (outcome.admitted, outcome.code) == (False, RefusalCode.UNTRUSTED_ISSUER)


def test_a_revoked_certificate_and_old_data_are_found(admission: Admission) -> None:
    held = PKI.certify(METER)
    admission.status.index.add(held.revocation)
    outcome = verdict(admission, held)
    assert (outcome.code, failed(outcome)) == (RefusalCode.REVOKED, ["revocation"])
    late = PKI.certify(METER, not_after=NOW - timedelta(seconds=1))
    admission.status.index.add(late.revocation)
    assert failed(verdict(admission, late)) == ["validity", "revocation"], "each thing that is wrong is told"
    outcome = verdict(admission, PKI.certify(METER), now=1000.0)
    assert (outcome.code, failed(outcome)) == (RefusalCode.REVOCATION_STATUS_UNKNOWN, ["freshness"])


def test_a_feed_that_was_never_read_and_has_to_be_lets_nobody_in(admission: Admission) -> None:
    admission.status.freshness = Freshness(300.0)
    outcome = verdict(admission, PKI.certify(METER))
    assert (outcome.code, failed(outcome)) == (RefusalCode.REVOCATION_STATUS_UNKNOWN, ["freshness"])
    assert outcome.detail == "revocation data: never read"


def test_a_feed_that_was_never_read_and_need_not_be_is_told(admission: Admission) -> None:
    for policy, words in (("advisory", "feed_policy is advisory"), ("", "no source of revocations")):
        admission.status.freshness = Freshness(0.0, always_acceptable=True, policy=policy)
        outcome = verdict(admission, PKI.certify(METER))
        assert outcome.admitted
        assert (outcome.steps[-1].passed, words in outcome.steps[-1].detail) == (None, True)


def test_lists_are_a_source_too_where_no_bundle_is_known(admission: Admission) -> None:
    """Of a certificate refused before its bundle was known, it said that there is no source of revocations."""
    admission.status.freshness = Freshness(0.0, always_acceptable=True)
    admission.trust = Trust([TrustBundle("meters", ROOT_ONLY, lists=ListTerms(REQUIRE), feed=False)])
    steps = verdict(admission, PKI.certify(METER, uris=[]), ROOT_ONLY).steps
    assert steps[-1].detail == "there is no feed; CRLs and OCSP are checked as each bundle says"


@pytest.mark.parametrize(
    ("file", "anchors", "said"),
    [
        ([PKI.root], [PKI.root], ANCHOR),
        ([PKI.issuing, PKI.root], [PKI.root], CA),
        ([Pki().issuing], [PKI.root], CA),
        ([PKI.issuing, PKI.certify(METER)], [PKI.issuing], f"{ANCHOR}{BEHIND}"),
    ],
)
def test_of_a_cas_certificate_that_is_the_verdict(
    admission: Admission, file: list[Held], anchors: list[Held], said: str
) -> None:
    outcome = check([each.certificate for each in file], [each.certificate for each in anchors], admission, 5.0, NOW)
    assert (outcome.code, outcome.detail) == (RefusalCode.CA_CERTIFICATE, said)
    assert "end entity" in failed(outcome)


def test_every_refusal_has_its_remedy() -> None:
    assert set(RefusalCode) <= set(REMEDIES)


@pytest.mark.parametrize(
    ("rules", "detail"),
    [
        (Rules(), "role.device: publishes nothing; subscribes to nothing"),
        (Rules(("a", "b"), ("c",), ("d",), ("e",)), "role.device: publishes a, b; subscribes to d"),
    ],
)
def test_the_step_about_the_policy_says_what_sections_allow(admission: Admission, rules: Rules, detail: str) -> None:
    admission.policy = TopicPolicy([Section(Kind.ROLE, "device", rules), Section(Kind.ROLE, "service", Rules(("x",)))])
    (step,) = [each for each in verdict(admission, PKI.certify(METER)).steps if each.name == "policy"]
    assert (step.passed, step.detail) == (True, detail)


@pytest.mark.parametrize("domain", [DOMAIN, "plant-7.example"])
def test_whom_a_bare_name_would_admit_if_he_were_ours_is_told_so(domain: str) -> None:
    policy = TopicPolicy([Section(Kind.DEVICE, "meter-1", Rules(("a",), (), ("b",)))])
    admission = Admission(RevocationStatus(RevocationIndex(), Freshness(300.0)), policy, DOMAIN)
    terms = BundleTerms.of(
        TrustSettings(name="plant", anchors=ANYWHERE, trust_domain=domain, unsafe_no_revocation=True)
    )
    admission.believe(Trust([TrustBundle("plant", [PKI.root.certificate], terms=terms)]))
    held = PKI.certify(Identity(domain, Role.DEVICE, "meter-1", "meters"))
    (step,) = [each for each in verdict(admission, held).steps if each.name == "policy"]
    if domain == DOMAIN:
        assert (step.passed, step.detail) == (True, "device.meter-1: publishes a; subscribes to b")
    else:
        allows = "device.meter-1 allows only those of our own trust domain: name others by their URI"
        assert (step.passed, step.detail) == (False, f"no topic rules for role device; {allows}")


def test_a_name_that_a_bundle_cannot_use_is_told_in_the_step_too() -> None:
    """The step complained of a URI that such certificates never have."""
    settings = TrustSettings.model_validate(
        {"name": "plant", "anchors": "-", "trust_domain": "plant-7.example", "required_eku": [],
         "unsafe_no_revocation": True, "identity": [{"source": "common-name", "group": "meters"}]}
    )  # fmt: skip
    admission = Admission(RevocationStatus(RevocationIndex(), Freshness(300.0)), load_policy(None), DOMAIN)
    admission.believe(Trust([TrustBundle("plant", [PKI.root.certificate], terms=BundleTerms.of(settings))]))
    outcome = verdict(admission, PKI.certify(METER, common_name="Pump Room 3", uris=[]))
    (step,) = [each for each in outcome.steps if each.name == "identity"]
    assert (step.code, step.detail) == (outcome.code, outcome.detail)
    assert step.detail.startswith("name 'Pump Room 3': use 1 to 64 letters")
    assert "docs/trust-bundles.md" in outcome.remedy


GARBLED = x509.UnrecognizedExtension(x509.AuthorityInformationAccess.oid, b"\x04\x00")


def garbled(held: Held, text: bytes) -> x509.Certificate:
    """Return the certificate of *held* with *text* in it changed to what is no UTF-8; OpenSSL reads it all the same."""
    der = held.der
    assert text in der
    return x509.load_der_x509_certificate(der.replace(text, b"\xff" * len(text)))


@pytest.mark.parametrize("bundles", [False, True], ids=["cafile", "bundles"])
@pytest.mark.parametrize(
    "chain",
    [
        [garbled(PKI.certify(METER), b"Test Issuing CA"), PKI.issuing.certificate],
        [garbled(PKI.certify(METER, common_name="another"), b"another"), PKI.issuing.certificate],
        [PKI.certify(METER).certificate, garbled(PKI.issuing, b"Test Issuing CA")],
        [PKI.certify(METER, extensions=[GARBLED]).certificate, PKI.issuing.certificate],
    ],
    ids=["its issuer", "its subject", "the subject of its CA", "an extension"],
)
def test_a_certificate_that_only_openssl_reads_has_a_verdict_too(
    admission: Admission, chain: list[x509.Certificate], *, bundles: bool
) -> None:
    if bundles:
        admission.believe(Trust([TrustBundle("ours", ROOT_ONLY)]))
    for outcome in (
        check(chain, ROOT_ONLY, admission, 5.0, NOW),
        check(chain, ROOT_ONLY, admission, 5.0, NOW, ask(chain, ROOT_ONLY, admission, NOW)),
    ):
        assert not outcome.admitted
        assert [step.name for step in outcome.steps] == STEPS
        assert outcome.remedy
