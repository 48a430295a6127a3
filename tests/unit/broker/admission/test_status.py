"""Nobody is let in whose status must be known and is not: by lists, by OCSP, by what is on its way."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.admission import Admission, Admitted
from broker.admission.bundle import ListTerms, OcspTerms, TrustBundle
from broker.admission.freshness import Freshness
from broker.admission.inquiry import Inquiry
from broker.admission.issuers import Issuer
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.status import RevocationStatus
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connect
from broker.settings.trust_settings import REQUIRE, StatusPolicy
from provisioning.pki.crl import parse
from provisioning.pki.identity import Identity
from provisioning.pki.keys import key_identifier
from provisioning.pki.ocsp import Answer
from provisioning.pki.revocation import RevocationIndex
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from tests.support.crl import at, crl, scope
from tests.support.pki import DOMAIN, Held, shared_pki
from tests.support.policies import DEFAULT_POLICY

PKI = shared_pki()
NOW = datetime.now(UTC)
HELD = PKI.device("meter-1")
ADVISORY = StatusPolicy(None)
A_MINUTE = StatusPolicy(60.0)


def admission(
    lists: ListTerms | None = None, ocsp: OcspTerms | None = None, *more_anchors: Held, feed: bool = False
) -> Admission:
    anchors = [each.certificate for each in (PKI.root, *more_anchors)]
    trust = Trust([TrustBundle("ours", anchors, lists=lists, ocsp=ocsp, feed=feed)])
    return Admission(RevocationStatus(RevocationIndex(), Freshness(1.0)), DEFAULT_POLICY, DOMAIN, (), trust)


def examine(judge: Admission, *, status: bool = True, now: datetime = NOW) -> Peer | Refused:
    path = [each.certificate.public_bytes(Encoding.DER) for each in (HELD, PKI.issuing, PKI.root)]
    return judge.examine(HELD.der, now, lambda: path, status=status)


def issuer_of(judge: Admission) -> Issuer:
    peer = examine(judge, status=False)
    assert isinstance(peer, Peer)
    assert peer.issuer is not None
    return peer.issuer


def told(refusal: Refused | None) -> tuple[str, ReasonCode] | None:
    return None if refusal is None else (refusal.code, refusal.reason_code)


def late(seconds: float, *, known: bool = True) -> Answer:
    return Answer(known, None, None, NOW - timedelta(hours=1), NOW - timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("policy", "answer", "code"),
    [
        (REQUIRE, None, RefusalCode.OCSP_UNAVAILABLE),
        (REQUIRE, late(-1), None),
        (REQUIRE, late(0), None),
        (REQUIRE, late(1), RefusalCode.OCSP_UNAVAILABLE),
        (REQUIRE, late(-1, known=False), RefusalCode.OCSP_UNKNOWN),
        (A_MINUTE, late(60), None),
        (A_MINUTE, late(61), RefusalCode.OCSP_UNAVAILABLE),
        (A_MINUTE, None, RefusalCode.OCSP_UNAVAILABLE),
        (ADVISORY, None, None),
        (ADVISORY, late(-1, known=False), None),
        (None, None, None),
    ],
)
def test_what_a_responder_has_said_is_good_for_so_long(
    policy: StatusPolicy | None, answer: Answer | None, code: RefusalCode | None
) -> None:
    judge = admission(ocsp=OcspTerms(policy) if policy is not None else None)
    expected = None if code is None else (code, ReasonCode.SERVER_UNAVAILABLE)
    assert told(judge.status.refuse_by_ocsp(issuer_of(judge), answer, NOW)) == expected


def test_what_a_responder_has_said_has_ended_by_what_is_proven() -> None:
    judge = admission(ocsp=OcspTerms(REQUIRE))
    assert judge.status.refuse_by_ocsp(issuer_of(judge), late(-1), NOW) is None
    assert judge.status.proven.hear_service(NOW + timedelta(seconds=2), 0.0, NOW)
    expected = (RefusalCode.OCSP_UNAVAILABLE, ReasonCode.SERVER_UNAVAILABLE)
    assert told(judge.status.refuse_by_ocsp(issuer_of(judge), late(-1), NOW)) == expected


def test_without_anybody_to_ask_who_must_be_asked_about_is_refused_unless_he_is_in() -> None:
    judge = admission(ocsp=OcspTerms(REQUIRE))
    outcome = examine(judge)
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.identity, outcome.serial) == (
        RefusalCode.OCSP_UNAVAILABLE,
        f"spiffe://{DOMAIN}/device/meters/meter-1",
        f"{HELD.certificate.serial_number:x}",
    )
    assert isinstance(examine(judge, status=False), Peer)
    assert isinstance(examine(admission(ocsp=OcspTerms(ADVISORY))), Peer)


def put(judge: Admission, issuer: Held, *, life: timedelta = timedelta(hours=1), **different: Any) -> None:
    key_id = key_identifier(issuer.key.public_key())
    listed = parse(crl(issuer, age=timedelta(minutes=1), life=life, **different))
    held = judge.status.lists.prepare(listed, (key_id, "CA"), "test", datetime.now(UTC), lambda: None)
    assert held is not None
    judge.status.lists.put(held)


def test_an_anchor_needs_no_list_that_it_is_not_revoked_and_may_be_all_the_same() -> None:
    judge = admission(ListTerms(REQUIRE), None, PKI.issuing)
    put(judge, PKI.issuing)
    assert isinstance(examine(judge), Peer)
    put(judge, PKI.root, revoked=[PKI.issuing])
    outcome = examine(judge)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.ISSUER_REVOKED


def test_every_ca_of_the_path_needs_its_list() -> None:
    judge = admission(ListTerms(REQUIRE))
    for issuer in (PKI.issuing, PKI.root):
        outcome = examine(judge)
        assert isinstance(outcome, Refused)
        assert told(outcome) == (RefusalCode.CRL_MISSING, ReasonCode.SERVER_UNAVAILABLE)
        assert issuer.certificate.subject.rfc4514_string() in outcome.detail
        put(judge, issuer)
    assert isinstance(examine(judge), Peer)
    assert isinstance(examine(judge.judging_by(judge.trust)), Peer), "who judges for a trial knows the same lists"
    assert isinstance(examine(admission(ListTerms(ADVISORY))), Peer)


def test_a_list_about_clients_says_nothing_of_a_ca_and_the_other_way_round() -> None:
    about_clients, about_authorities = scope(users_only=True), scope(authorities_only=True)
    for of_issuer, of_root, missing in (
        (about_clients, about_authorities, None),
        (about_clients, about_clients, "CN=Test Root CA"),
        (about_authorities, about_authorities, "CN=Test Issuing CA"),
    ):
        judge = admission(ListTerms(REQUIRE))
        put(judge, PKI.issuing, point=of_issuer)
        put(judge, PKI.root, point=of_root)
        outcome = examine(judge)
        if missing is None:
            assert isinstance(outcome, Peer)
        else:
            assert isinstance(outcome, Refused)
            assert (outcome.code, missing in outcome.detail) == (RefusalCode.CRL_MISSING, True)


HERE, ELSEWHERE = "http://lists.example/1.crl", "http://lists.example/2.crl"
"""Places of parts of a list; a certificate names that of the part that would name it."""


@pytest.mark.parametrize(
    ("of_meter", "of_authority", "missing"),
    [
        (HERE, ELSEWHERE, None),
        (ELSEWHERE, ELSEWHERE, "CN=parted"),
        (HERE, HERE, "CN=Test Root CA"),
        (None, ELSEWHERE, "CN=parted"),
        (HERE, None, "CN=Test Root CA"),
    ],
)
def test_a_part_of_a_list_is_about_whose_certificate_names_its_place(
    of_meter: str | None, of_authority: str | None, missing: str | None
) -> None:
    def named(place: str | None) -> list[x509.ExtensionType]:
        return [] if place is None else [x509.CRLDistributionPoints(at(place))]

    parted = PKI.certify(
        Identity(DOMAIN, Role.SERVICE, "parted"),
        issuer=PKI.root,
        uris=[],
        purposes=None,
        is_ca=True,
        extensions=named(of_authority),
    )
    meter = PKI.device("meter-1", issuer=parted, extensions=named(of_meter))
    path = [each.certificate.public_bytes(Encoding.DER) for each in (meter, parted, PKI.root)]
    judge = admission(ListTerms(REQUIRE))
    put(judge, parted, point=scope(HERE))
    put(judge, PKI.root, point=scope(ELSEWHERE))
    outcome = judge.examine(meter.der, NOW, lambda: path)
    if missing is None:
        assert isinstance(outcome, Peer)
    else:
        assert isinstance(outcome, Refused)
        assert (outcome.code, missing in outcome.detail) == (RefusalCode.CRL_MISSING, True)


def test_who_is_revoked_or_on_hold_may_come_back_or_has_ended() -> None:
    judge = admission()
    assert not judge.status.is_ended(HELD.revocation.key), "nobody has revoked it"
    for reason in RevocationReason:
        judge = admission()
        judge.status.index.add(replace(HELD.revocation, reason=reason))
        comes_back = reason in {RevocationReason.CERTIFICATE_HOLD, RevocationReason.SUPERSEDED}
        assert judge.status.is_ended(HELD.revocation.key) is not comes_back, reason


def test_lists_that_may_be_late_for_ever_need_not_be_there() -> None:
    judge = admission(ListTerms(ADVISORY))
    assert judge.status.refuse_by_lists(HELD.certificate, issuer_of(judge), NOW) is None


@pytest.mark.parametrize("short", [PKI.issuing, PKI.root], ids=["of the issuer", "of the root"])
@pytest.mark.parametrize("grace", [0.0, 600.0])
def test_a_list_that_is_past_its_next_update_is_good_for_the_grace(short: Held, grace: float) -> None:
    judge = admission(ListTerms(StatusPolicy(grace)))
    for issuer in (PKI.issuing, PKI.root):
        put(judge, issuer, life=timedelta(minutes=2) if issuer is short else timedelta(hours=12))
    held = judge.status.lists.held
    ends = max(each.fresh_until for each in held if each.complete.next_update < NOW + timedelta(hours=1))
    assert isinstance(examine(judge, now=ends + timedelta(seconds=grace)), Peer)
    outcome = examine(judge, now=ends + timedelta(seconds=grace + 1))
    assert isinstance(outcome, Refused)
    assert told(outcome) == (RefusalCode.CRL_EXPIRED, ReasonCode.SERVER_UNAVAILABLE)


class Asked:
    """Somebody who can be asked, and who has these inquiries to give."""

    def failing(self, _bundle: str) -> Collection[str]:
        return ()

    def __init__(self, inquiry: Inquiry | None) -> None:
        self.inquiry = inquiry
        self.refusals: list[Refused | None] = []

    def ask(self, certificate: x509.Certificate, issuer: Issuer, refusal: Refused | None) -> Inquiry | None:  # noqa: ARG002
        self.refusals.append(refusal)
        return self.inquiry


def test_who_is_asked_about_is_let_in_by_the_answer_alone() -> None:
    judge = admission(ListTerms(REQUIRE))
    judge.asker = asker = Asked(Inquiry())
    peer = examine(judge)
    assert isinstance(peer, Peer)
    assert peer.inquiry is not None
    assert peer.inquiry is asker.inquiry
    assert [told(each) for each in asker.refusals] == [(RefusalCode.CRL_MISSING, ReasonCode.SERVER_UNAVAILABLE)]
    outcome = judge.admit(peer, Connect(client_id="meter-1"), 0.0)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.REVOCATION_STATUS_UNKNOWN, "not before there is an answer"
    refusal = Refused(RefusalCode.REVOKED, ReasonCode.NOT_AUTHORIZED, "revoked since")
    peer.inquiry.answer(refusal, 0.0)
    peer.inquiry.answer(None, 0.0)
    assert judge.admit(peer, Connect(client_id="meter-1"), 0.0) == refusal, "the first answer counts"
    assert isinstance(examine(judge, status=False), Peer)
    assert len(asker.refusals) == 1, "nobody is asked about who is in"
    judge.asker = Asked(Inquiry())
    peer = examine(judge)
    assert isinstance(peer, Peer)
    assert peer.inquiry is not None
    peer.inquiry.answer(None, 0.0)
    assert isinstance(judge.admit(peer, Connect(client_id="meter-1"), 0.0), Admitted)


def test_what_was_found_out_elsewhere_does_not_stand_for_the_feed() -> None:
    judge = admission(ListTerms(REQUIRE), feed=True)
    judge.status.freshness.current(0.0)
    judge.asker = Asked(Inquiry())
    peer = examine(judge)
    assert isinstance(peer, Peer)
    assert peer.inquiry is not None
    peer.inquiry.answer(None, 0.0)
    assert isinstance(judge.admit(peer, Connect(client_id="meter-1"), 1.0), Admitted)
    outcome = judge.admit(peer, Connect(client_id="meter-1"), 1.1)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.REVOCATION_STATUS_UNKNOWN


def test_where_there_is_nobody_to_ask_the_refusal_stands() -> None:
    judge = admission(ListTerms(REQUIRE))
    judge.asker = Asked(None)
    outcome = examine(judge)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.CRL_MISSING


def test_who_is_on_hold_is_told_so_and_a_revoked_ca_shuts_out_whom_it_certified() -> None:
    judge = admission()
    judge.status.index.add(replace(HELD.revocation, reason=RevocationReason.CERTIFICATE_HOLD))
    outcome = examine(judge)
    assert isinstance(outcome, Refused)
    assert told(outcome) == (RefusalCode.SUSPENDED, ReasonCode.BANNED)
    judge = admission()
    judge.status.index.add(PKI.issuing.revocation)
    outcome = examine(judge)
    assert isinstance(outcome, Refused)
    assert told(outcome) == (RefusalCode.ISSUER_REVOKED, ReasonCode.NOT_AUTHORIZED)
    assert "CN=Test Issuing CA" in outcome.detail


def test_of_a_certificate_alone_it_is_known_whether_it_or_its_ca_is_revoked() -> None:
    judge = admission()
    assert not judge.is_revoked(HELD.revocation.key), "of its CA nothing has been seen"
    assert isinstance(examine(judge), Peer)
    assert not judge.is_revoked(HELD.revocation.key)
    judge.status.index.add(PKI.issuing.revocation)
    assert judge.is_revoked(HELD.revocation.key)
    assert not judge.is_revoked(replace(HELD.revocation, issuer_key_id=b"another CA").key)
    for trust in (judge.trust, None):
        judge = admission().judging_by(trust)
        judge.status.index.add(HELD.revocation)
        assert judge.is_revoked(HELD.revocation.key)
        assert not judge.is_revoked(PKI.issuing.revocation.key)


def test_while_the_door_is_shut_nobody_comes_in_and_trust_of_before_counts_no_more() -> None:
    judge = admission()
    peer = examine(judge)
    assert isinstance(peer, Peer)
    judge.shut = Refused(RefusalCode.REVOCATION_STATUS_UNKNOWN, ReasonCode.SERVER_UNAVAILABLE, "the clock is wrong")
    assert judge.admit(peer, Connect(client_id="meter-1"), 0.0) == judge.shut
    begun = judge.trust_generation
    assert judge.refuse_before(begun) is None
    judge.believe(judge.trust)
    assert told(judge.refuse_before(begun)) == (RefusalCode.TRUST_CHANGED, ReasonCode.SERVER_UNAVAILABLE)
    assert judge.refuse_before(judge.trust_generation) is None


def test_who_came_while_trust_changed_is_not_said_to_lack_an_answer_that_is_asked_for() -> None:
    """His refusal is another (TRUST_CHANGED), and no responder is to blame."""
    judge = admission(ocsp=OcspTerms(REQUIRE))
    inquiry = Inquiry()
    judge.asker = Answering(inquiry)
    judge.believe(judge.trust)
    peer = examine(judge.of_generation(1))
    assert isinstance(peer, Peer)
    assert peer.inquiry is inquiry


class Answering:
    """Asks elsewhere; the answer is yet to come."""

    def failing(self, _bundle: str) -> Collection[str]:
        return ()

    def __init__(self, inquiry: Inquiry) -> None:
        self._inquiry = inquiry

    def ask(self, _certificate: x509.Certificate, _issuer: Issuer, _refusal: Refused | None) -> Inquiry:
        return self._inquiry
