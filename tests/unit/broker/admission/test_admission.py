"""Admission: certificate first, then CONNECT; the first thing that is wrong is the answer."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.admission import Admission, Admitted
from broker.admission.freshness import Freshness
from broker.admission.peer import Peer
from broker.admission.policy import Kind, Rules, Section, TopicPolicy
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.status import RevocationStatus
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connect
from provisioning.pki.identity import Identity
from provisioning.pki.revocation import RevocationIndex
from provisioning.pki.role import Role
from tests.support.panic import panic
from tests.support.pki import DOMAIN, Held, shared_device, shared_pki, shared_service
from tests.support.policies import DEFAULT_POLICY
from tests.support.wire import will
from tests.support.year_0 import FIRST_SECOND, valid_in

PKI = shared_pki()
NOW = PKI.now
METER = Identity(DOMAIN, Role.DEVICE, "meter-1", "meters")
# A SAN with an x400Address, which no library parses; and the same extension twice cannot be built by one.
ODD_SAN = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, bytes.fromhex("3004a3023000"))


@pytest.fixture
def admission() -> Admission:
    freshness = Freshness(300.0)
    freshness.current(0.0)
    return Admission(RevocationStatus(RevocationIndex(), freshness), DEFAULT_POLICY, DOMAIN)


def certificate(**different: object) -> Held:
    return PKI.certify(METER, **different)  # type: ignore[arg-type]


def test_a_good_certificate_is_a_peer(admission: Admission) -> None:
    held = certificate(not_after=NOW + timedelta(seconds=90))
    peer = admission.examine(held.der, NOW)
    assert isinstance(peer, Peer)
    assert peer.identity == METER
    assert peer.certificate == held.revocation.key
    assert peer.serial == f"{held.certificate.serial_number:x}"
    assert peer.seconds_left == 90


def test_an_operator_is_a_peer(admission: Admission) -> None:
    peer = admission.examine(PKI.certify(Identity(DOMAIN, Role.OPERATOR, "admin")).der, NOW)
    assert isinstance(peer, Peer)
    assert not admission.permissions(peer.identity, "admin").may_publish("fleet/meters/meter-1/cmd/go")


@pytest.mark.parametrize(
    ("held", "code", "words"),
    [
        (certificate(uris=[]), RefusalCode.INVALID_IDENTITY, "no Subject Alternative Name"),
        (certificate(uris=[METER.uri, METER.uri + "0"]), RefusalCode.INVALID_IDENTITY, "2 identity URIs"),
        (certificate(uris=["https://x"]), RefusalCode.INVALID_IDENTITY, "0 identity URIs"),
        (certificate(uris=["spiffe://fleet.internal/device/meters/meter+1"]), RefusalCode.INVALID_IDENTITY, "name"),
        (certificate(uris=["spiffe://fleet.internal/device/meters/#"]), RefusalCode.INVALID_IDENTITY, "name"),
        (certificate(uris=["spiffe://fleet.internal/robot/meters/meter-1"]), RefusalCode.INVALID_IDENTITY, "role"),
        (certificate(uris=["spiffe://fleet.internal/device/meter-1"]), RefusalCode.INVALID_IDENTITY, "group"),
        (certificate(common_name="meter-2"), RefusalCode.INVALID_IDENTITY, "Common Name"),
        (certificate(uris=[], extensions=[ODD_SAN]), RefusalCode.INVALID_IDENTITY, ""),
        (PKI.certify(replace(METER, trust_domain="other")), RefusalCode.WRONG_TRUST_DOMAIN, "other is not our"),
        (PKI.broker(), RefusalCode.WRONG_ROLE, "role broker"),
        (certificate(not_after=NOW - timedelta(seconds=1)), RefusalCode.EXPIRED, "expired on"),
        (certificate(not_before=NOW + timedelta(seconds=1)), RefusalCode.NOT_YET_VALID, "clock says"),
    ],
)
def test_a_bad_certificate_is_refused_with_its_reason(
    admission: Admission, held: Held, code: RefusalCode, words: str
) -> None:
    refused = admission.examine(held.der, NOW)
    assert isinstance(refused, Refused)
    assert refused.code is code
    assert words in refused.detail
    assert refused.told.reason_string == f"{code}: {refused.detail}"


@pytest.mark.parametrize(
    ("held", "named"),
    [
        (PKI.certify(replace(METER, trust_domain="other")), replace(METER, trust_domain="other")),
        (certificate(not_after=NOW - timedelta(seconds=1)), METER),
        (certificate(is_ca=True), METER),
    ],
    ids=["of another domain", "expired", "a CA's"],
)
def test_who_is_refused_and_by_which_certificate_is_recorded(admission: Admission, held: Held, named: Identity) -> None:
    refused = admission.examine(held.der, NOW)
    assert isinstance(refused, Refused)
    assert (refused.identity, refused.serial) == (named.uri, f"{held.certificate.serial_number:x}")


def test_of_the_first_second_that_there_is_a_certificate_is_expired(admission: Admission) -> None:
    """Seconds as a fraction are not exact over two thousand years: at some moments the sum is before that second."""
    held = certificate()
    ended = valid_in(held.certificate, PKI.issuing.key, FIRST_SECOND, FIRST_SECOND)
    for microsecond in range(8):
        refused = admission.examine(ended.public_bytes(Encoding.DER), NOW.replace(microsecond=microsecond))
        assert isinstance(refused, Refused)
        assert refused.code is RefusalCode.EXPIRED
        assert "1-01-01 00:00:00 UTC" in refused.detail


@pytest.mark.parametrize("nothing", [None, b""])
def test_no_certificate_is_refused(admission: Admission, nothing: bytes | None) -> None:
    refused = admission.examine(nothing, NOW)
    assert isinstance(refused, Refused)
    assert refused.code is RefusalCode.NO_CERTIFICATE


@pytest.mark.parametrize("junk", [b"junk", b"\x30\x03\x02\x01\x01", shared_device("meter-1").der[:-5]])
def test_what_is_no_certificate_is_refused(admission: Admission, junk: bytes) -> None:
    refused = admission.examine(junk, NOW)
    assert isinstance(refused, Refused)
    assert refused.code is RefusalCode.INVALID_IDENTITY


def test_who_makes_the_library_panic_is_refused(admission: Admission, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else those who were to be served in the same turn would wait."""
    der = certificate().der
    monkeypatch.setattr(x509, "load_der_x509_certificate", lambda _: panic())
    refused = admission.examine(der, NOW)
    assert isinstance(refused, Refused)
    assert refused.code is RefusalCode.INVALID_IDENTITY


def test_any_domain_is_good_when_none_is_asked_for() -> None:
    admission = Admission(RevocationStatus(RevocationIndex(), Freshness(1.0)), DEFAULT_POLICY, None)
    held = PKI.certify(Identity("elsewhere", Role.DEVICE, "m", "g"))
    assert isinstance(admission.examine(held.der, NOW), Peer)


def test_the_last_second_of_a_certificate_counts(admission: Admission) -> None:
    held = certificate(not_before=NOW, not_after=NOW)
    assert isinstance(admission.examine(held.der, NOW), Peer)


def test_a_revoked_certificate_is_refused_at_either_step(admission: Admission) -> None:
    held, other = certificate(), certificate()
    peer = admission.examine(held.der, NOW)
    assert isinstance(peer, Peer)
    admission.status.index.add(held.revocation)
    for refused in (admission.examine(held.der, NOW), admission.admit(peer, Connect(), 0.0)):
        assert isinstance(refused, Refused)
        assert refused.code is RefusalCode.REVOKED
        assert refused.detail == "certificate revoked (keyCompromise)"
    assert isinstance(admission.examine(other.der, NOW), Peer)


def test_the_serial_alone_revokes_nothing(admission: Admission) -> None:
    held = certificate()
    admission.status.index.add(replace(held.revocation, issuer_key_id=b"another CA"))
    assert isinstance(admission.examine(held.der, NOW), Peer)


def peer_of(admission: Admission, held: Held) -> Peer:
    peer = admission.examine(held.der, NOW)
    assert isinstance(peer, Peer)
    return peer


@pytest.mark.parametrize(
    ("last_current", "now", "admitted"), [(None, 0.0, False), (0.0, 300.0, True), (0.0, 300.1, False)]
)
def test_stale_revocation_data_is_our_fault_and_passes(last_current: float | None, now: float, admitted: bool) -> None:
    freshness = Freshness(300.0)
    if last_current is not None:
        freshness.current(last_current)
    admission = Admission(RevocationStatus(RevocationIndex(), freshness), DEFAULT_POLICY, DOMAIN)
    outcome = admission.admit(peer_of(admission, shared_device("meter-1")), Connect(), now)
    if admitted:
        assert isinstance(outcome, Admitted)
    else:
        assert isinstance(outcome, Refused)
        assert outcome.code is RefusalCode.REVOCATION_STATUS_UNKNOWN
        assert outcome.reason_code is ReasonCode.SERVER_UNAVAILABLE


def test_a_revoked_device_is_told_so_even_while_the_data_is_stale() -> None:
    held = certificate()
    admission = Admission(RevocationStatus(RevocationIndex(), Freshness(1.0)), DEFAULT_POLICY, DOMAIN)
    peer = peer_of(admission, held)
    admission.status.index.add(held.revocation)
    outcome = admission.admit(peer, Connect(), 1e9)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.REVOKED


@pytest.mark.parametrize(
    ("held", "client_id", "expected"),
    [
        (shared_device("meter-1"), "meter-1", ("meter-1", False)),
        (shared_device("meter-1"), "", ("meter-1", True)),
        (shared_device("meter-1"), "meter-1-a", None),
        (shared_service("backend"), "backend", ("backend", False)),
        (shared_service("backend"), "backend-a", ("backend-a", False)),
        (shared_service("backend"), "backend_a", None),
    ],
)
def test_client_identifiers(
    admission: Admission, held: Held, client_id: str, expected: tuple[str, bool] | None
) -> None:
    outcome = admission.admit(peer_of(admission, held), Connect(client_id), 0.0)
    if expected is None:
        assert isinstance(outcome, Refused)
        assert outcome.code is RefusalCode.CLIENT_ID_MISMATCH
        assert outcome.reason_code is ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
    else:
        assert isinstance(outcome, Admitted)
        assert (outcome.client_id, outcome.assigned) == expected


def test_an_assigned_identifier_of_a_service_cannot_be_guessed(admission: Admission) -> None:
    peer = peer_of(admission, shared_service("backend"))
    names = {getattr(admission.admit(peer, Connect(), 0.0), "client_id", "") for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("backend-") for name in names)


def test_whom_another_policy_knows_no_more_is_not_let_in_though_it_was_examined_before(admission: Admission) -> None:
    peer = peer_of(admission, shared_device("meter-1"))
    admission.policy = TopicPolicy([Section(Kind.ROLE, Role.SERVICE, Rules(("#",)))])
    outcome = admission.admit(peer, Connect("meter-1"), 0.0)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.WRONG_ROLE
    assert outcome == replace(_refusal(admission, shared_device("meter-1")), identity="", serial="")


def _refusal(admission: Admission, held: Held) -> Refused:
    refused = admission.examine(held.der, NOW)
    assert isinstance(refused, Refused)
    return refused


@pytest.mark.parametrize("wanted", [False, True])
def test_a_fingerprint_is_made_for_those_who_ask(admission: Admission, wanted: bool) -> None:
    assert not admission.fingerprints
    admission.fingerprints = wanted
    held = shared_device("meter-1")
    peer = peer_of(admission, held)
    assert peer.fingerprint == (held.certificate.fingerprint(SHA256()) if wanted else b"")
    assert peer.bundle == "cafile"


def test_a_will_outside_the_policy_is_refused(admission: Admission) -> None:
    peer = peer_of(admission, shared_device("meter-1"))
    good = admission.admit(peer, Connect(will=will("fleet/meters/meter-1/event")), 0.0)
    assert isinstance(good, Admitted)
    outcome = admission.admit(peer, Connect(will=will("fleet/meters/meter-2/event")), 0.0)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.WILL_NOT_PERMITTED


def test_the_issuers_that_are_remembered_are_bounded(admission: Admission) -> None:
    for index in range(3000):
        admission._shared(b"%d" % index)
        assert len(admission._issuers) <= 1024
    first, second = bytes(bytearray(b"same")), bytes(bytearray(b"same"))
    assert admission._shared(first) is admission._shared(second)
