"""What one generation of trust has learned: in bounds, from verified paths, and whose lists are looked for."""

from __future__ import annotations

import ssl
from datetime import timedelta
from itertools import permutations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from structlog.testing import capture_logs

from broker.admission.admission import Admission
from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.freshness import Freshness
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.status import RevocationStatus
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from provisioning.pki.identity import Identity
from provisioning.pki.keys import generate_key, key_identifier
from provisioning.pki.revocation import RevocationIndex
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, server_context
from provisioning.pki.verified_path import verified_path
from tests.support.bundles import admission, settings
from tests.support.pki import DOMAIN, Held, Pki, pem_of, shared_pki
from tests.support.policies import DEFAULT_POLICY
from tests.support.shaken_hands import shaken

PKI, OTHER = shared_pki(), Pki()
HOUR = timedelta(hours=1)
PLANT = PKI.authority("Plant CA", PKI.root)


def trust() -> Trust:
    return Trust([TrustBundle("ours", [PKI.root.certificate]), TrustBundle("theirs", [OTHER.root.certificate])])


def seen(judge: Trust, held: Held, *above: Held) -> str | None:
    path = [each.certificate.public_bytes(Encoding.DER) for each in (held, *above)]
    issuer = judge.issuer_of(held.certificate, path if above else (), PKI.now, DOMAIN)
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
    assert x509.load_pem_x509_certificates(judge.anchors_pem(DOMAIN).encode()) == [root, OTHER.root.certificate]
    prints = [each.fingerprint(hashes.SHA256()).hex() for each in (root, OTHER.root.certificate)]
    assert judge.fingerprints == {"one": prints[:1], "two": prints}


def test_an_anchor_that_another_has_issued_is_not_one_with_nothing_above() -> None:
    """A device that is an anchor itself comes back without a path; a CA above it counts, if there is one."""
    judge = Trust([TrustBundle("", [each.certificate for each in (PLANT, OTHER.root, PKI.root)])])
    assert judge.topmost == {each.certificate.public_bytes(Encoding.DER) for each in (PKI.root, OTHER.root)}


def partner(*anchors: Held) -> TrustBundle:
    """Return a bundle of another trust domain whose URL has named *anchors*."""
    certificates = [each.certificate for each in anchors]
    terms = BundleTerms.of(settings(name="partner", trust_domain="plant.example", groups=["meters"]))
    return TrustBundle("partner", certificates, terms=terms, fetched=certificates)


def test_what_a_partner_s_url_lists_judges_nobody_whom_an_anchor_of_ours_vouches_for() -> None:
    """Whoever answers there put out all of our devices, as it came first."""
    ends = PKI.now + timedelta(days=900)
    longer = PKI.authority("Test Issuing CA", OTHER.root, key=PKI.issuing.key, not_after=ends)
    ours = TrustBundle("ours", [PKI.root.certificate, PKI.issuing.certificate])
    device, meter = PKI.device("meter-1"), OTHER.device("meter-1")
    for bundles in permutations([partner(OTHER.root, PKI.issuing, longer), ours]):
        judge = Trust(bundles)
        assert seen(judge, device, PKI.issuing) == "ours: CN=Test Issuing CA"
        assert seen(judge, device) == "ours: CN=Test Issuing CA", "of a resumed session, too"
        assert verified(judge.anchors_pem(DOMAIN), device) == [device.der, PKI.issuing.der], "so it has no other path"
        assert seen(judge, meter, OTHER.issuing, OTHER.root) == "partner: CN=Test Issuing CA", "its own are its own"
        with capture_logs() as logs:
            judge.warn_of_claims(DOMAIN)
        told = [(each["code"], each["bundle"], each["detail"]) for each in logs]
        assert (
            told
            == [("ANCHOR_OF_ANOTHER", "partner", "CN=Test Issuing CA is an anchor of ours, which judges its clients")]
            * 2
        )


def test_what_a_url_s_ca_below_our_root_claims_is_not_ours() -> None:
    """We have the root, which is above that path and not in it; a device of that CA was admitted as one of ours."""
    spoof = PKI.device("meter-1", issuer=PLANT)
    good = PKI.certify(Identity("plant.example", Role.DEVICE, "meter-1", "meters"), issuer=PLANT)
    bundles = [partner(PLANT), TrustBundle("ours", [PKI.root.certificate, PKI.issuing.certificate])]
    assert verified(Trust(bundles).anchors_pem(DOMAIN), spoof) == [spoof.der, PLANT.der]
    key = key_identifier(PLANT.certificate.public_key())
    assert [each.bundle.name for each in Trust(bundles).issuers_with(key, DOMAIN)] == ["partner"]
    for above in ([], [PLANT.der]):
        judge = admission(*bundles)

        def comes(held: Held, judge: Admission = judge, above: list[bytes] = above) -> Peer | Refused:
            return judge.examine(held.der, PKI.now, lambda: [held.der, *above] if above else [], status=False)

        refused, admitted = comes(spoof), comes(good)
        assert isinstance(refused, Refused)
        assert refused.code == RefusalCode.WRONG_TRUST_DOMAIN
        assert not isinstance(admitted, Refused)
        assert admitted.issuer is not None
        assert admitted.issuer.bundle.name == "partner"


def test_a_ca_that_a_table_confines_is_confined_by_each_of_its_certificates() -> None:
    """Our root had renewed it, and the table, which comes first, names the old one: its device came as one of ours."""
    renewed = PKI.authority("Plant CA", PKI.root, key=PLANT.key, not_after=PKI.now + timedelta(days=900))
    ca, key = renewed.certificate, generate_key()
    common_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meter-1")])
    begins, ends = PKI.now - HOUR, PKI.now + HOUR
    builder = x509.CertificateBuilder(ca.subject, common_name, key.public_key(), 7, begins, ends)
    stated = x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(ca.issuer)], ca.serial_number)
    name = x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/device/meters/meter-1")
    for extension in (stated, x509.SubjectAlternativeName([name])):
        builder = builder.add_extension(extension, critical=False)
    spoof = Held(builder.sign(renewed.key, hashes.SHA256()), key, (ca,))
    confined = TrustBundle("confined", [PLANT.certificate], terms=partner().terms)
    judge = Trust([confined, TrustBundle("ours", [PKI.root.certificate])])
    assert verified(judge.anchors_pem(DOMAIN), spoof) == [spoof.der, renewed.der, PKI.root.der]
    for above in ((renewed, PKI.root), ()):
        assert seen(judge, spoof, *above) == "confined: CN=Plant CA"
    judge = Trust([confined, TrustBundle("ours", [renewed.certificate])])
    assert (seen(judge, spoof, renewed), seen(judge, spoof)) == ("ours: CN=Plant CA",) * 2, "which names that very one"
    own = TrustBundle("own", [PLANT.certificate])
    assert seen(Trust([own, TrustBundle("ours", [PKI.root.certificate])]), spoof, renewed, PKI.root) == (
        "own: CN=Plant CA"
    ), "to its roles and groups, where the trust domain is the same"
    judge = Trust([TrustBundle("ours", [PKI.root.certificate]), confined])
    assert seen(judge, spoof, renewed, PKI.root) == "ours: CN=Plant CA", "the settings' order counts"


def test_a_ca_is_confined_whatever_its_old_certificate_allows_and_whatever_a_url_adds_to_it() -> None:
    """An old one that allows no CA below, or other names, did not count, and our root's table admitted the device."""
    ends = PKI.now + timedelta(days=900)
    nobody = Identity(DOMAIN, Role.DEVICE, "x", "x")
    renewed = PKI.certify(nobody, issuer=PKI.root, common_name="Works CA", is_ca=True, purposes=None, not_after=ends)
    below = PKI.authority("Sub CA", renewed)
    spoof, lower = PKI.device("meter-1", issuer=renewed), PKI.device("meter-1", issuer=below)
    constrained = x509.NameConstraints([x509.DNSName("works.example")], None)
    narrow = PKI.authority("Works CA", PKI.root, key=renewed.key, extensions=[constrained])
    again = PKI.authority("Works CA", PKI.root, key=renewed.key, not_after=PKI.now + timedelta(days=800))
    ours = TrustBundle("ours", [PKI.root.certificate])
    for fetched in ([], [again.certificate]):
        anchors = [narrow.certificate, *fetched]
        judge = Trust([TrustBundle("confined", anchors, terms=partner().terms, fetched=fetched), ours])
        assert seen(judge, spoof, renewed, PKI.root) == "confined: CN=Works CA"
        assert seen(judge, lower, below, renewed, PKI.root) == "confined: CN=Sub CA"


def test_a_ca_is_confined_whatever_its_other_certificates_are_called_and_the_url_cannot_help_it_out() -> None:
    """Our root's table admitted its devices, by a name that the settings do not know, and by a CA of its own list."""
    renamed = PKI.authority("Plant CA 2", PKI.root, key=PLANT.key, not_after=PKI.now + timedelta(days=900))
    listed = PKI.authority("Sub CA", PLANT, not_after=PKI.now + timedelta(days=1))
    sub = PKI.authority("Sub CA", PLANT, key=listed.key)
    spoof, lower = PKI.device("meter-1", issuer=renamed), PKI.device("meter-1", issuer=sub)
    ca = renamed.certificate
    builder = x509.CertificateBuilder(ca.issuer, ca.subject, ca.public_key(), 7, PKI.now, ca.not_valid_after_utc)
    unstated = Held(builder.sign(PKI.root.key, hashes.SHA256()), PLANT.key)
    anchors = [PLANT.certificate, listed.certificate]
    confined = TrustBundle("confined", anchors, terms=partner().terms, fetched=anchors[1:])
    judge = Trust([confined, TrustBundle("ours", [PKI.root.certificate])])
    for above in ((renamed, PKI.root), ()):
        assert seen(judge, spoof, *above) == "confined: CN=Plant CA 2", "so that it can come back"
    path = [each.certificate.public_bytes(Encoding.DER) for each in (spoof, renamed, PKI.root)]
    issuer = judge.issuer_of(spoof.certificate, path, PKI.now, DOMAIN)
    assert issuer is not None
    assert issuer.not_after == PLANT.certificate.not_valid_after_utc, "what the settings name has ended then"
    assert issuer.ends_with == "the certificate of the CA CN=Plant CA, an anchor of confined,", "not one that it sent"
    assert key_identifier(PLANT.certificate.public_key()) == issuer.key_id
    by_root = key_identifier(PKI.root.certificate.public_key()), unstated.certificate.serial_number
    path = [each.certificate.public_bytes(Encoding.DER) for each in (spoof, unstated, PKI.root)]
    issuer = judge.issuer_of(spoof.certificate, path, PKI.now, DOMAIN)
    assert issuer is not None
    assert by_root in issuer.path_revoked_as, (
        "it was admitted where our root's list names it, as it does not say by whom"
    )
    renewed = PKI.authority("Plant CA", PKI.root, key=PLANT.key, not_after=PKI.now + timedelta(days=900))
    assert seen(judge, lower, sub, renewed, PKI.root) == "confined: CN=Sub CA"


def test_a_key_that_our_settings_name_is_ours_also_where_a_partner_s_url_lists_its_renewed_certificate() -> None:
    """Our root has renewed it, and our files have the old one; our devices that send the new one were refused."""
    renewed = PKI.authority("Test Issuing CA", PKI.root, key=PKI.issuing.key, not_after=PKI.now + timedelta(days=900))
    anchors, device = [PKI.root.certificate, PKI.issuing.certificate], PKI.device("meter-1")
    for bundles in permutations([partner(renewed), TrustBundle("ours", anchors)]):
        assert seen(Trust(bundles), device, renewed) == "ours: CN=Test Issuing CA"
    terms = BundleTerms.of(settings(name="third", trust_domain="third.example"))
    third = TrustBundle("third", anchors, terms=terms, fetched=anchors[1:])
    assert seen(Trust([partner(renewed), third]), device, renewed) == "partner: CN=Test Issuing CA", (
        "a URL alone says so: the first of two counts"
    )


def test_the_settings_order_counts_where_no_url_of_others_has_named_an_anchor() -> None:
    """A pinned one the settings have named; and two tables may have one root, each for its own issuers."""
    named = TrustBundle("theirs", [PKI.issuing.certificate], terms=partner().terms)
    own = TrustBundle("first", [PKI.issuing.certificate], fetched=[PKI.issuing.certificate])
    ours = TrustBundle("ours", [PKI.issuing.certificate])
    terms = BundleTerms.of(settings(trust_domain=DOMAIN))
    told = TrustBundle("told", [PKI.issuing.certificate], terms=terms, fetched=[PKI.issuing.certificate])
    for first, called in ((named, "theirs"), (own, "first"), (told, "told")):
        assert seen(Trust([first, ours]), PKI.device("meter-1"), PKI.issuing) == f"{called}: CN=Test Issuing CA"


def verified(anchors: str, held: Held) -> list[bytes] | str:
    """Return the path that OpenSSL verifies for *held* in a handshake below *anchors*, or why it refuses."""
    server = server_context(PKI.broker().credential, anchors, client_certificate=ClientCertificate.REQUIRED)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=PKI.anchors)
    held.credential.load_into(client)
    try:
        return verified_path(shaken(client, server))
    except ssl.SSLCertVerificationError as error:
        return error.verify_message


def namesake(called: bytes | None) -> Held:
    """Return a CA of our issuing CA's name, and a key of its own that is *called* so."""
    key, name = generate_key(), PKI.issuing.certificate.subject
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), 5, PKI.now - timedelta(days=1), PKI.issuing.certificate.not_valid_after_utc
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    if called is not None:
        builder = builder.add_extension(x509.SubjectKeyIdentifier(called), critical=False)
    return Held(builder.sign(key, hashes.SHA256()), key)


def twins() -> dict[str, Held]:
    """Return what a partner's URL may list to have our devices' paths end, or fail, there."""

    def of_our_key(*extensions: x509.ExtensionType) -> Held:
        ends = PKI.now + timedelta(days=900)
        return PKI.authority("Test Issuing CA", OTHER.root, key=PKI.issuing.key, not_after=ends, extensions=extensions)

    return {
        "with our key": of_our_key(),
        "for other names": of_our_key(x509.NameConstraints([x509.DNSName("nobody.example")], None)),
        "for servers": of_our_key(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
        "with our key identifier": namesake(key_identifier(PKI.issuing.certificate.public_key())),
        "without key identifier": namesake(None),
    }


@pytest.mark.parametrize("twin", twins())
def test_openssl_is_given_last_what_a_partner_s_url_lists(twin: str) -> None:
    """Of several anchors that look alike it takes the first; all of our devices were refused in the handshake."""
    listed = twins()[twin]
    ours = TrustBundle("ours", [PKI.root.certificate, PKI.issuing.certificate])
    device = PKI.device("meter-1")
    first = "".join(pem_of(each.certificate).decode() for each in (listed, PKI.issuing))
    assert verified(first, device) != [device.der, PKI.issuing.der], "the order counts"
    for bundles in permutations([partner(OTHER.root, listed, *map(namesake, (None, b"x"))), ours]):
        judge = Trust(bundles)
        path = verified(judge.anchors_pem(DOMAIN), device)
        assert path == [device.der, PKI.issuing.der]
        with capture_logs() as logs:
            judge.warn_of_claims(DOMAIN)
        assert [each["code"] for each in logs] == ["ANCHOR_OF_ANOTHER"] * 2, "of the other identifier nothing is taken"
    unidentified = TrustBundle("ours", [namesake(None).certificate])
    with capture_logs() as logs:
        Trust([partner(namesake(b"x")), unidentified]).warn_of_claims(DOMAIN)
    assert [each["code"] for each in logs] == ["ANCHOR_OF_ANOTHER"], "ours says no identifier, so it could be taken"


def test_a_partner_s_url_may_renew_what_the_settings_name_of_its_own() -> None:
    renewed = OTHER.authority("Test Issuing CA", OTHER.root, key=OTHER.issuing.key)
    both = [OTHER.issuing.certificate, renewed.certificate]
    judge = Trust([TrustBundle("partner", both, terms=partner().terms, fetched=[renewed.certificate])])
    with capture_logs() as logs:
        judge.warn_of_claims(DOMAIN)
    assert logs == []


def test_an_anchor_that_has_expired_takes_no_client_of_a_partner_s_url() -> None:
    """The settings of another bundle may still name an old certificate of the partner's CA."""
    meter = OTHER.device("meter-1")
    old = OTHER.authority("Test Issuing CA", OTHER.root, key=OTHER.issuing.key, not_after=PKI.now - timedelta(days=1))
    judge = Trust([TrustBundle("old", [old.certificate]), partner(OTHER.issuing)])
    path = verified(judge.anchors_pem(DOMAIN), meter)
    assert path == [meter.der, OTHER.issuing.der]
    assert seen(judge, meter, OTHER.issuing) == "partner: CN=Test Issuing CA"
    assert seen(judge, meter) == "partner: CN=Test Issuing CA", "of a resumed session, too"


def test_of_two_partners_whose_urls_list_one_ca_the_first_table_judges_and_the_log_says_so() -> None:
    device = PKI.device("meter-1")
    certificates = [OTHER.issuing.certificate, PKI.issuing.certificate]
    terms = BundleTerms.of(settings(name="another", trust_domain="another.example"))
    other = TrustBundle("another", certificates, terms=terms, fetched=certificates)
    for first, second in permutations([other, partner(PKI.issuing)]):
        judge = Trust([first, second])
        assert seen(judge, device, PKI.issuing) == seen(judge, device) == f"{first.name}: CN=Test Issuing CA"
        with capture_logs() as logs:
            judge.warn_of_claims(DOMAIN)
        told = [(each["code"], each["bundle"], each["detail"]) for each in logs]
        detail = f"CN=Test Issuing CA is an anchor of {first.name}, which judges its clients"
        assert told[:1] == [("ANCHOR_OF_ANOTHER", second.name, detail)]
    named = TrustBundle("partner", [PKI.issuing.certificate], terms=partner().terms)
    assert seen(Trust([other, named]), device, PKI.issuing) == "partner: CN=Test Issuing CA", "its settings name it"


def test_of_two_bundles_from_files_the_one_that_has_the_anchor_judges() -> None:
    """Another, listed first, has an earlier certificate of that CA: expired, or without the lists this requires."""
    device = PKI.device("meter-1")
    present = TrustBundle("present", [PKI.issuing.certificate])
    nobodys = TrustBundle("nobody's", [PKI.issuing.certificate], terms=BundleTerms.of(settings(issuers=["CN=Nobody"])))
    for hours in (-1, 1):
        ends = PKI.now + timedelta(hours=hours)
        early = TrustBundle(
            "early", [PKI.authority("Test Issuing CA", PKI.root, key=PKI.issuing.key, not_after=ends).certificate]
        )
        for bundles in permutations([early, present]):
            assert seen(Trust(bundles), device, PKI.issuing) == "present: CN=Test Issuing CA"
        assert seen(Trust([early, nobodys]), device, PKI.issuing) is None, "the terms of the one are not the other's"
