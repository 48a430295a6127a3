"""What one generation of trust has learned: in bounds, from verified paths, and whose lists are looked for."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from broker.admission.admission import Admission
from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.freshness import Freshness
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.status import RevocationStatus
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import RevocationIndex
from tests.support.bundles import settings
from tests.support.pki import DOMAIN, Held, Pki, shared_pki
from tests.support.policies import DEFAULT_POLICY

PKI, OTHER = shared_pki(), Pki()
PLANT = PKI.authority("Plant CA", PKI.root)


def trust() -> Trust:
    return Trust([TrustBundle("ours", [PKI.root.certificate]), TrustBundle("theirs", [OTHER.root.certificate])])


def seen(judge: Trust, held: Held, *above: Held) -> str | None:
    path = [each.certificate.public_bytes(Encoding.DER) for each in (held, *above)]
    issuer = judge.issuer_of(held.certificate, path if above else (), PKI.now)
    return None if issuer is None else f"{issuer.bundle.name}: {issuer.subject}"


def named(judge: Trust, bundle: int) -> list[str]:
    return [each.subject for each in judge.issuing(judge.bundles[bundle])]


def test_a_ca_is_learned_from_a_path_and_known_without_one() -> None:
    judge = trust()
    device = PKI.device("meter-1", issuer=PLANT)
    assert seen(judge, device) is None
    for path in ((PLANT, PKI.root), ()):
        assert seen(judge, device, *path) == "ours: CN=Plant CA"
    assert judge.learned == 1
    assert seen(judge, OTHER.device("meter-1"), OTHER.issuing, OTHER.root) == "theirs: CN=Test Issuing CA"
    assert judge.learned == 2
    assert judge.issuer_of(device.certificate, [device.der], PKI.now) is None, (
        "nobody has issued it: it is an anchor itself"
    )
    stranger = Pki()
    assert seen(judge, stranger.device("meter-1"), stranger.issuing, stranger.root) is None
    assert judge.learned == 2
    namesake = Trust([TrustBundle("theirs", [OTHER.issuing.certificate])])
    assert seen(namesake, PKI.device("meter-1")) is None, "of that name, and of another key"


def test_who_resumes_is_known_by_any_anchor_of_his_bundle_before_anybody_has_come() -> None:
    judge = Trust([TrustBundle("ours", [PLANT.certificate, PKI.issuing.certificate])])
    assert seen(judge, PKI.device("meter-1", issuer=PLANT)) == "ours: CN=Plant CA"
    assert seen(judge, PKI.device("meter-1")) == "ours: CN=Test Issuing CA"


def test_a_key_is_of_the_cas_that_have_it_and_of_no_other() -> None:
    """Who is offline is judged by it: by another's revocation he would lose what waits for him, or keep it."""
    third = Pki()
    nobodys = TrustBundle("nobody's", [third.root.certificate], terms=BundleTerms.of(settings(issuers=["CN=Nobody"])))
    judge = Trust([*trust().bundles, nobodys])
    assert seen(judge, PKI.device("meter-1"), PKI.issuing, PKI.root)

    def having(held: Held) -> list[str]:
        found = judge.issuers_with(key_identifier(held.certificate.public_key()), DOMAIN)
        return [f"{each.bundle.name}: {each.subject}" for each in found]

    assert having(PKI.issuing) == ["ours: CN=Test Issuing CA"]
    assert having(PKI.root) == ["ours: CN=Test Root CA"]
    assert having(OTHER.root) == ["theirs: CN=Test Root CA"]
    assert having(OTHER.issuing) == [], "none of its clients has come"
    assert having(third.root) == ["nobody's: CN=Test Root CA"], "though it may issue to nobody"


def test_so_many_cas_are_learned_and_no_more_and_that_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.admission.trust._MOST_PATHS", 1)
    judge = trust()
    assert seen(judge, PKI.device("meter-1"), PKI.issuing, PKI.root) == "ours: CN=Test Issuing CA"
    assert judge.paths_of(judge.bundles[0]) == 1
    one_more = PKI.device("meter-1", issuer=PLANT)
    path = [each.certificate.public_bytes(Encoding.DER) for each in (one_more, PLANT, PKI.root)]
    admission = Admission(RevocationStatus(RevocationIndex(), Freshness(1.0)), DEFAULT_POLICY, DOMAIN, trust=judge)
    with capture_logs() as logs:
        for _ in range(2):
            refusal = admission.examine(one_more.der, PKI.now, lambda: path)
            assert isinstance(refusal, Refused)
            assert (refusal.code, refusal.reason_code) == (RefusalCode.TRUST_FULL, ReasonCode.QUOTA_EXCEEDED)
            assert refusal.identity == f"spiffe://{DOMAIN}/device/meters/meter-1"
    assert [(each["code"], each["bundle"], each["log_level"]) for each in logs] == [("TRUST_FULL", "ours", "error")]
    assert seen(judge, PKI.device("meter-2"), PKI.issuing, PKI.root) == "ours: CN=Test Issuing CA"
    assert judge.learned == 1
    assert seen(judge, OTHER.device("meter-1"), OTHER.issuing, OTHER.root) == "theirs: CN=Test Issuing CA"


@pytest.mark.parametrize("limit", ["_MOST_PATHS", "_MOST_NAMESAKES"])
def test_a_ca_that_is_replaced_every_few_hours_fills_no_bundle(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """As SPIRE's is, for one: otherwise nobody would be admitted after some days."""
    monkeypatch.setattr(f"broker.admission.trust.{limit}", 2)
    admission = Admission(RevocationStatus(RevocationIndex(), Freshness(1.0)), DEFAULT_POLICY, DOMAIN, trust=trust())
    assert admission.trust is not None

    def comes(issuer: Held, hours: float, *, resumed: bool = False) -> RefusalCode | None:
        held = PKI.device("meter-1", issuer=issuer)
        path = [each.certificate.public_bytes(Encoding.DER) for each in (held, issuer, PKI.root)]
        outcome = admission.examine(held.der, PKI.now + timedelta(hours=hours), lambda: [] if resumed else path)
        return outcome.code if isinstance(outcome, Refused) else None

    def of(hour: float) -> Held:
        end = PKI.now + timedelta(hours=hour + 2)
        return PKI.authority("Hourly CA", PKI.root, not_after=end)

    first, second, third = of(0), of(1), of(2)
    with capture_logs() as logs:
        assert [comes(first, 0), comes(second, 1), comes(third, 1.5)] == [None, None, RefusalCode.TRUST_FULL]
        assert admission.stands_above(first.revocation.key)
        assert [comes(third, 2.5), comes(of(3), 2.6)] == [None, RefusalCode.TRUST_FULL], "there is room for one"
    assert [each["code"] for each in logs] == ["TRUST_FULL"] * 2, "it is said again, as there was room meanwhile"
    assert not admission.stands_above(first.revocation.key)
    assert [comes(each, 2.6, resumed=True) for each in (first, second, third)] == [
        RefusalCode.UNTRUSTED_ISSUER,
        None,
        None,
    ]
    assert admission.trust.learned == 3, "a list that found no issuer before may find one"


def test_who_comes_to_a_full_bundle_by_another_path_shuts_nobody_out_who_comes_by_a_known_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other path begins with an old certificate of the anchor, for which the anchor stands."""
    monkeypatch.setattr("broker.admission.trust._MOST_PATHS", 1)
    judge = Trust([TrustBundle("ours", [PLANT.certificate])])
    old = PKI.authority("Plant CA", PKI.root, key=PLANT.key, not_after=PKI.now + timedelta(hours=1))
    held = PKI.device("meter-1", issuer=PLANT)

    def fault(*above: Held) -> RefusalCode | None:
        path = [each.certificate.public_bytes(Encoding.DER) for each in (held, *above)]
        issuer = judge.issuer_of(held.certificate, path, PKI.now)
        assert issuer is not None
        return None if issuer.fault is None else issuer.fault.code

    assert [fault(PLANT), fault(old), fault(PLANT)] == [None, RefusalCode.TRUST_FULL, None]


def test_who_issues_to_clients_is_who_was_seen_to_or_else_the_anchors() -> None:
    judge = trust()
    assert (named(judge, 0), named(judge, 1)) == (["CN=Test Root CA"], ["CN=Test Root CA"])
    seen(judge, PKI.device("meter-1", issuer=PLANT), PLANT, PKI.root)
    assert (named(judge, 0), named(judge, 1)) == (["CN=Plant CA"], ["CN=Test Root CA"])
    both = Trust([TrustBundle("ours", [PKI.root.certificate, PKI.issuing.certificate])])
    assert named(both, 0) == ["CN=Test Issuing CA"], "an anchor above another one issues to that"
    seen(both, PKI.device("meter-1"), PKI.issuing)
    assert named(both, 0) == ["CN=Test Issuing CA"]


def test_every_ca_of_a_name_is_found_once() -> None:
    judge = trust()
    seen(judge, PKI.device("meter-1"), PKI.issuing, PKI.root)
    seen(judge, PKI.device("meter-1", issuer=PLANT), PLANT, PKI.root)
    roots = judge.authorities(PKI.root.certificate.subject)
    assert {each.certificate for each in roots} == {PKI.root.certificate, OTHER.root.certificate}
    assert len(roots) == 2
    assert [each.certificate for each in judge.authorities(PLANT.certificate.subject)] == [PLANT.certificate]


def test_the_anchors_are_told_to_openssl_once_each_and_to_the_record() -> None:
    root = PKI.root.certificate
    judge = Trust([TrustBundle("one", [root]), TrustBundle("two", [root, OTHER.root.certificate])])
    assert x509.load_pem_x509_certificates(judge.anchors_pem.encode()) == [root, OTHER.root.certificate]
    prints = [each.fingerprint(hashes.SHA256()).hex() for each in (root, OTHER.root.certificate)]
    assert judge.fingerprints == {"one": prints[:1], "two": prints}


def test_an_anchor_that_another_has_issued_is_not_one_with_nothing_above() -> None:
    """A device that is an anchor itself comes back without a path; a CA above it counts, if there is one."""
    judge = Trust([TrustBundle("", [each.certificate for each in (PLANT, OTHER.root, PKI.root)])])
    assert judge.topmost == {each.certificate.public_bytes(Encoding.DER) for each in (PKI.root, OTHER.root)}


def partner(*anchors: Held) -> TrustBundle:
    """Return a bundle of another trust domain whose URL has named *anchors*."""
    certificates = [each.certificate for each in anchors]
    terms = BundleTerms.of(settings(name="partner", trust_domain="plant.example"))
    return TrustBundle("partner", certificates, terms=terms, fetched=certificates)


def test_what_a_partner_s_url_lists_judges_nobody_whom_an_anchor_of_ours_vouches_for() -> None:
    """Whoever answers there put out all of our devices, as it came first; or, by a longer life, at any place."""
    ends = PKI.now + timedelta(days=900)
    longer = PKI.authority("Test Issuing CA", OTHER.root, key=PKI.issuing.key, not_after=ends)
    ours = TrustBundle("ours", [PKI.root.certificate, PKI.issuing.certificate])
    device, meter = PKI.device("meter-1"), OTHER.device("meter-1")
    for bundles in permutations([partner(OTHER.root, PKI.issuing, longer), ours]):
        judge = Trust(bundles)
        assert seen(judge, device, PKI.issuing) == "ours: CN=Test Issuing CA"
        assert seen(judge, device) == "ours: CN=Test Issuing CA", "of a resumed session, too"
        assert seen(judge, device, longer) == "ours: CN=Test Issuing CA"
        assert seen(judge, meter, OTHER.issuing, OTHER.root) == "partner: CN=Test Issuing CA", "its own are its own"
        with capture_logs() as logs:
            judge.warn_of_claims(DOMAIN)
        told = [(each["code"], each["bundle"], each["detail"]) for each in logs]
        assert (
            told
            == [("ANCHOR_OF_ANOTHER", "partner", "CN=Test Issuing CA is an anchor of ours, which judges its clients")]
            * 2
        )
    assert seen(Trust([partner(longer)]), device, longer) == "partner: CN=Test Issuing CA", "nobody else has it"
    constrained = x509.NameConstraints([x509.DNSName("plant.example")], None)
    less = PKI.authority("Test Issuing CA", PKI.root, key=PKI.issuing.key, extensions=[constrained])
    for each in (less, OTHER.issuing, PKI.authority("Another CA", PKI.root, key=PKI.issuing.key)):
        judge = Trust([partner(longer), TrustBundle("ours", [each.certificate])])
        assert seen(judge, device, longer) == "partner: CN=Test Issuing CA", "it allows less, or is another CA"


def test_the_settings_order_counts_where_no_url_of_others_has_named_an_anchor() -> None:
    """A pinned one the settings have named; and two tables may have one root, each for its own issuers."""
    named = TrustBundle("theirs", [PKI.issuing.certificate], terms=partner().terms)
    own = TrustBundle("first", [PKI.issuing.certificate], fetched=[PKI.issuing.certificate])
    ours = TrustBundle("ours", [PKI.issuing.certificate])
    for first, called in ((named, "theirs"), (own, "first")):
        assert seen(Trust([first, ours]), PKI.device("meter-1"), PKI.issuing) == f"{called}: CN=Test Issuing CA"
