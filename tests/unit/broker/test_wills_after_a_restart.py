"""Wills that another broker process finds in the database: whose are sent, when, and what becomes of those revoked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.peer import Peer
from broker.admission.trust import Trust
from broker.engine.returning import MOST
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.revocation.enforcement import absent, forget_revoked, renew, revoke
from broker.settings.trust_settings import TrustSettings
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, Held, Pki, shared_device, shared_pki, shared_service
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, V311, will


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[StoredBroker]:
    opened = StoredBroker(tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize(("expiry", "delay", "waits"), [(0, 0, 10), (600, 0, 10), (600, 30, 30)])
def test_a_will_is_sent_after_its_delay_or_some_grace(
    broker: StoredBroker, expiry: int, delay: int, waits: int
) -> None:
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    last = will("fleet/meters/meter-1/event", b"gone", 1, will_delay_interval=delay, content_type="text")
    broker.device("meter-1", clean_start=False, session_expiry_interval=expiry, will=last)
    after = broker.killed()
    watcher = after.service(**KEPT)
    after.advance(waits - 2)
    assert watcher.received() == []
    after.advance(4)
    (message,) = watcher.messages()
    assert (message.payload, message.properties.content_type) == (b"gone", "text")
    after.settle()
    again = after.killed()
    again.advance(60)
    assert again.service(**KEPT).payloads() == [b"gone"], "it was not acknowledged, but is sent once"


def test_a_client_that_comes_back_in_time_calls_its_will_back(broker: StoredBroker) -> None:
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    broker.device("meter-1", will=will("fleet/meters/meter-1/event", b"gone", 1), **KEPT)
    after = broker.killed()
    after.device("meter-1", **KEPT)
    watcher = after.service(**KEPT)
    after.advance(60)
    assert watcher.received() == []


@pytest.mark.parametrize("clean_start", [False, True])
@pytest.mark.parametrize("version", [V311, V5])
def test_the_will_of_a_session_that_has_ended_is_called_back_in_time(
    broker: StoredBroker, version: ProtocolVersion, clean_start: bool
) -> None:
    """With or without clean start: the client lost its connection through no fault of its own."""
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    broker.device("meter-1", version=version, will=will("fleet/meters/meter-1/event", qos=1))
    after = broker.killed()
    after.device("meter-1", version=version, clean_start=clean_start)
    watcher = after.service(**KEPT)
    after.advance(60)
    assert watcher.received() == []


def test_a_will_whose_session_ends_first_is_sent_then_after_a_restart_too(broker: StoredBroker) -> None:
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    last = will("fleet/meters/meter-1/event", qos=1, will_delay_interval=300)
    broker.device("meter-1", clean_start=False, session_expiry_interval=30, will=last).vanish()
    after = broker.killed(away=5)
    watcher = after.service(**KEPT)
    after.advance(20)
    assert watcher.received() == []
    after.advance(6)
    assert watcher.payloads() == [b"gone"]
    assert len(after.engine.registry) == 1, "the watcher's"


@pytest.mark.parametrize("connect", [{}, {"clean_start": False, "session_expiry_interval": 600}])
@pytest.mark.parametrize("returns", [False, True])
def test_the_will_of_a_client_that_a_stopping_broker_sends_away_waits_for_the_next(
    broker: StoredBroker, connect: dict[str, Any], returns: bool
) -> None:
    """A broker that stops may defer wills until it starts again (MQTT 5 §3.1.2.5); it does not lose them."""
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    broker.device("meter-1", will=will("fleet/meters/meter-1/event", qos=1), **connect)
    broker.engine.stop(broker.now)
    broker.settle()
    assert broker.engine.connected == 0
    after = broker.killed(away=5)
    watcher = after.service(**KEPT)
    if returns:
        after.device("meter-1", **connect)
    after.advance(9)
    assert watcher.received() == []
    after.advance(3)
    assert watcher.payloads() == ([] if returns else [b"gone"])


@pytest.mark.parametrize("stops", [False, True], ids=["killed", "stopped"])
@pytest.mark.parametrize("known", ["before clients come", "later"])
@pytest.mark.parametrize("keeps", [False, True], ids=["discard", "keep"])
@pytest.mark.parametrize("reason", [RevocationReason.KEY_COMPROMISE, RevocationReason.CERTIFICATE_HOLD])
def test_who_was_revoked_while_there_was_no_broker_leaves_what_it_would_have_left_while_there_was(
    broker: StoredBroker, stops: bool, known: str, keeps: bool, reason: RevocationReason
) -> None:
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    held, gone = shared_pki().device("meter-1"), shared_pki().device("meter-2")
    meter, before = broker.open(held), broker.open(gone)
    meter.connect(client_id="meter-1", will=will("fleet/meters/meter-1/event", qos=1), **KEPT)
    delayed = will("fleet/meters/meter-2/event", qos=1, will_delay_interval=10)
    before.connect(client_id="meter-2", will=delayed, **KEPT)
    before.vanish()
    if stops:
        broker.engine.stop(broker.now)
        broker.settle()
    after = broker.killed(away=5)
    after.engine.keeps_revoked = keeps
    watcher = after.service(**KEPT)
    revocations = [replace(each.revocation, reason=reason) for each in (held, gone)]

    def judge() -> None:
        for session in absent(after.engine):
            forget_revoked(after.engine, session, after.now)

    if known == "before clients come":
        for each in revocations:
            revoke(after.engine, each, after.now)
        judge()
    else:
        judge()
        for each in revocations:
            revoke(after.engine, each, after.now)
    after.advance(30)
    topics = {message.topic for message in watcher.messages()}
    assert topics == ({"fleet/meters/meter-1/event", "fleet/meters/meter-2/event"} if keeps else set())
    assert not after.engine.returning._awaited, "what is no more is held no longer"
    ended = known == "before clients come" and not keeps and reason is RevocationReason.KEY_COMPROMISE
    back = after.killed()
    again = back.open(shared_device("meter-1"))
    assert again.connect(client_id="meter-1", **KEPT).session_present is not ended
    assert back.open(shared_device("meter-2")).connect(client_id="meter-2", **KEPT).session_present


@pytest.mark.parametrize("killed", [False, True])
def test_a_will_that_went_with_its_certificate_does_not_come_back_with_it(broker: StoredBroker, killed: bool) -> None:
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    held = shared_device("meter-1")
    broker.device("meter-1", will=will("fleet/meters/meter-1/event", qos=1), **KEPT)
    after = broker.killed()
    after.engine.admission.status.index.add(replace(held.revocation, reason=RevocationReason.CERTIFICATE_HOLD))
    for session in absent(after.engine):
        forget_revoked(after.engine, session, after.now)
    after.settle()
    if killed:
        after = after.killed()  # It knows nothing of the suspension, which is over.
    after.engine.admission.status.index.release(held.revocation.key)
    after.advance(30)
    assert after.service(**KEPT).payloads() == []
    assert after.device("meter-1", **KEPT).session


def test_whose_will_goes_with_his_certificate_keeps_his_session_for_as_long_as_before(broker: StoredBroker) -> None:
    broker.device("meter-1", will=will("fleet/meters/meter-1/event"), **KEPT)
    after = broker.killed(away=60)
    held = shared_device("meter-1").revocation
    after.engine.admission.status.index.add(replace(held, reason=RevocationReason.CERTIFICATE_HOLD))
    (session,) = absent(after.engine)
    forget_revoked(after.engine, session, after.now)
    after.settle()
    (again,) = after.killed(away=60).engine.registry.all()
    assert again.expires_at == session.expires_at == after.now + 600


def test_a_session_that_has_ended_before_it_is_judged_is_not_written_again(broker: StoredBroker) -> None:
    held = shared_pki().device("meter-1")
    broker.open(held).connect(client_id="meter-1", **KEPT)
    after = broker.killed()
    (session,) = absent(after.engine)
    revoke(after.engine, held.revocation, after.now)
    after.device("meter-1", **KEPT)  # With a certificate that is good: what was left by the other is ended.
    forget_revoked(after.engine, session, after.now)
    after.settle()
    assert after.store._database.execute("SELECT count(*) FROM sessions").fetchone() == (1,)


@pytest.mark.parametrize("revoked", [False, True])
def test_a_will_waits_for_what_a_responder_says_of_whoever_left_it(broker: StoredBroker, revoked: bool) -> None:
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    held = shared_device("meter-1")
    broker.device("meter-1", will=will("fleet/meters/meter-1/event", qos=1), **KEPT)
    after = broker.killed()
    asked: list[object] = []

    def ask(certificate: object) -> float:
        asked.append(certificate)
        return 5.0 if len(asked) == 1 else 0.0

    after.engine.returning.ask = ask
    watcher = after.service(**KEPT)
    after.advance(14)
    assert (asked, watcher.received()) == ([held.revocation.key], [])
    if revoked:
        after.engine.admission.status.index.add(held.revocation)
    after.advance(6)
    assert watcher.payloads() == ([] if revoked else [b"gone"])


PKI = shared_pki()
CROSS = Pki()
ABOVE = PKI.authority("Test Issuing CA", CROSS.root, key=PKI.issuing.key)
"""The same issuing CA, certified by another root."""


def believing(*anchors: Held, domain: str | None = None) -> Trust:
    settings = TrustSettings(
        name="fleet", anchors=(Path("anchors.pem"),), trust_domain=domain, feed=True, roles=(Role.DEVICE, Role.SERVICE)
    )
    certificates = [each.certificate for each in anchors]
    return Trust([TrustBundle("fleet", certificates, terms=BundleTerms.of(settings))])


@pytest.mark.parametrize(
    ("path", "now", "sent"),
    [
        ([PKI.issuing, PKI.root], believing(PKI.root), True),
        ([PKI.issuing, PKI.root], believing(PKI.issuing), True),
        ([PKI.issuing, PKI.root], believing(PKI.authority("Test Root CA", key=PKI.root.key)), True),
        ([PKI.issuing, PKI.root], believing(CROSS.root, CROSS.issuing), False),
        ([PKI.issuing, PKI.root], believing(PKI.root, domain="plant.example"), False),
        ([PKI.issuing, PKI.root], believing(PKI.root, domain=DOMAIN), True),
        ([PKI.issuing], believing(PKI.root), True),
        ([PKI.issuing], believing(CROSS.root), False),
        ([ABOVE], believing(CROSS.root), True),
        ([ABOVE], believing(PKI.root), False),
        ([], believing(CROSS.root), True),
        ([PKI.issuing, PKI.root], None, True),
    ],
)
@pytest.mark.parametrize("delay", [0, 30])
@pytest.mark.parametrize("judged", ["cafile", "bundle"])
def test_whose_anchors_are_others_after_the_restart_leaves_no_will(
    broker: StoredBroker, path: list[Held], now: Trust | None, sent: bool, delay: int, judged: str
) -> None:
    """As from a broker that runs (0143); where it is not known who vouched for him, his will is sent."""
    if judged == "bundle" and path:
        broker.engine.admission.trust = believing(path[-1])
    watcher = broker.open(shared_service("backend"), path=[shared_service("backend").der, *map(_der, path)])
    watcher.connect(client_id="backend", **KEPT)
    watcher.subscribe("fleet/#", qos=1)
    held = PKI.device("meter-1")
    meter = broker.open(held, path=[held.der, *map(_der, path)])
    last = will("fleet/meters/meter-1/event", qos=1, will_delay_interval=delay)
    meter.connect(client_id="meter-1", will=last, **KEPT)
    after = broker.killed(away=5)
    after.engine.admission.believed = now
    watcher = after.service(**KEPT)
    after.advance(60)
    assert watcher.payloads() == ([b"gone"] if sent else [])
    again = after.killed()
    assert again.open(held).connect(client_id="meter-1", **KEPT).session_present, "his session has its time"


@pytest.mark.parametrize("revoked", [False, True])
def test_nor_does_he_if_an_older_broker_wrote_down_his_certificate_and_not_that_of_his_will(
    broker: StoredBroker, revoked: bool
) -> None:
    held = PKI.device("meter-1")
    broker.service(**KEPT).subscribe("fleet/#", qos=1)
    meter = broker.open(held, path=[held.der, _der(PKI.issuing), _der(PKI.root)])
    meter.connect(client_id="meter-1", will=will("fleet/meters/meter-1/event", qos=1), **KEPT)
    broker.store._database.execute(
        "UPDATE sessions SET will_certificate = NULL, will_authorities = NULL, will_cas = NULL"
    )
    after = broker.killed()
    after.engine.admission.believed = believing(PKI.root if revoked else CROSS.root)
    if revoked:
        revoke(after.engine, held.revocation, after.now)
    watcher = after.service(**KEPT)
    after.advance(60)
    assert watcher.payloads() == []


def test_nor_does_he_if_they_are_others_before_it_is_due(broker: StoredBroker) -> None:
    held = PKI.device("meter-1")
    broker.service(**KEPT).subscribe("fleet/#", qos=1)
    meter = broker.open(held, path=[held.der, _der(PKI.issuing), _der(PKI.root)])
    meter.connect(client_id="meter-1", will=will("fleet/meters/meter-1/event", qos=1), **KEPT)
    after = broker.killed()
    after.engine.admission.believed = believing(PKI.root)
    watcher = after.service(**KEPT)
    after.advance(5)
    after.engine.admission.believed = believing(CROSS.root)
    after.advance(60)
    assert watcher.payloads() == []


@pytest.mark.parametrize("stored_by", ["an older broker", "this broker"])
@pytest.mark.parametrize("judged", ["cafile", "bundle"])
@pytest.mark.parametrize(("revoked", "sent"), [(PKI.issuing, []), (PKI.device("meter-9"), [b"gone"])])
def test_nor_does_he_if_a_ca_above_him_is_revoked_meanwhile(
    broker: StoredBroker, revoked: Held, sent: list[bytes], judged: str, stored_by: str
) -> None:
    """With its stolen key he certified himself: no list has his number. No client has shown the CA since."""
    held, now = PKI.device("meter-1"), believing(PKI.issuing, PKI.root)
    broker.engine.admission.trust = now if judged == "bundle" else None
    watcher = broker.open(shared_service("backend"), path=[shared_service("backend").der, *map(_der, [PKI.issuing])])
    watcher.connect(client_id="backend", **KEPT)
    watcher.subscribe("fleet/#", qos=1)
    meter = broker.open(held, path=[held.der, _der(PKI.issuing), _der(PKI.root)])
    meter.connect(client_id="meter-1", will=will("fleet/meters/meter-1/event", qos=1), **KEPT)
    if stored_by == "an older broker":
        broker.store._database.execute("UPDATE sessions SET will_cas = NULL")
    after = broker.killed()
    after.engine.admission.trust = now if judged == "bundle" else None
    after.engine.admission.believed = now
    after.engine.admission.status.index.add(revoked.revocation)
    after.advance(60)
    after.engine.admission.trust = None
    assert after.service(**KEPT).payloads() == sent


@pytest.mark.parametrize("revoked", [False, True])
def test_who_stayed_when_other_anchors_began_to_count_is_judged_by_them_after_the_restart(
    broker: StoredBroker, revoked: bool
) -> None:
    held = PKI.device("meter-1", authority_key_id=b"as the CA's maker would have it")
    broker.service(**KEPT).subscribe("fleet/#", qos=1)
    meter = broker.open(held, path=[held.der, _der(CROSS.root)])
    meter.connect(client_id="meter-1", will=will("fleet/meters/meter-1/event", qos=1), **KEPT)
    now = believing(PKI.root)
    broker.engine.admission.believe(now)
    found = broker.engine.admission.examine(held.der, broker.wall, lambda: [*map(_der, (held, PKI.issuing, PKI.root))])
    assert isinstance(found, Peer)
    renew(broker.engine, meter.connection, found, broker.now)
    broker.settle()
    after = broker.killed()
    after.engine.admission.believed = now
    (stored,) = [each for each in absent(after.engine) if each.client_id == "meter-1"]
    assert (stored.certificate, stored.authorities) == (found.certificate, found.authorities)
    if revoked:
        after.engine.admission.status.index.add(replace(held.revocation, issuer_key_id=found.certificate[0]))
    watcher = after.service(**KEPT)
    after.advance(60)
    assert watcher.payloads() == ([] if revoked else [b"gone"])


@pytest.mark.parametrize(("keeps", "left"), [(False, []), (True, [b"meter-1", b"meter-2"])])
def test_he_leaves_it_where_wills_of_revoked_clients_are_kept(
    broker: StoredBroker, keeps: bool, left: list[bytes]
) -> None:
    """The first one has gone while the broker ran, so that the delay of his will had begun; the second one has not."""
    broker.service(**KEPT).subscribe("fleet/#", qos=1)
    for name in ("meter-1", "meter-2"):
        held = PKI.device(name)
        client = broker.open(held, path=[held.der, _der(PKI.issuing), _der(PKI.root)])
        last = will(f"fleet/meters/{name}/event", name.encode(), 1, will_delay_interval=30)
        client.connect(client_id=name, will=last, **KEPT)
        if name == "meter-1":
            client.vanish()
    after = broker.killed()
    after.engine.keeps_revoked = keeps
    after.engine.admission.believed = believing(CROSS.root)
    watcher = after.service(**KEPT)
    after.advance(60)
    assert sorted(watcher.payloads()) == left


def _der(held: Held) -> bytes:
    return held.certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize("reason", [RevocationReason.KEY_COMPROMISE, RevocationReason.CERTIFICATE_HOLD])
@pytest.mark.parametrize("clean_start", [False, True])
@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("keeps", [False, True], ids=["discard", "keep"])
def test_who_comes_back_with_another_certificate_finds_nothing_of_the_revoked_one(
    broker: StoredBroker, reason: RevocationReason, clean_start: bool, connected: bool, keeps: bool
) -> None:
    """Nor does he call its will up; whether all the others have been judged by then does not matter."""
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    held = shared_pki().device("meter-1")
    last = will("fleet/meters/meter-1/event", qos=1)
    meter = broker.open(held)
    meter.connect(client_id="meter-1", clean_start=False, session_expiry_interval=600, will=last)
    after = broker if connected else broker.killed(away=5)
    after.engine.keeps_revoked = keeps
    watcher = watcher if connected else after.service(**KEPT)
    after.engine.admission.status.index.add(replace(held.revocation, reason=reason))
    back = after.open(shared_device("meter-1"))
    answer = back.connect(client_id="meter-1", clean_start=clean_start, session_expiry_interval=600)
    good = keeps or reason is RevocationReason.CERTIFICATE_HOLD
    assert answer.session_present is (good and not clean_start)
    after.advance(30)
    assert watcher.payloads() == ([b"gone"] if keeps and (connected or clean_start) else [])


def test_sessions_that_are_kept_over_a_restart_take_places_of_their_service(broker: StoredBroker) -> None:
    broker.limits |= {"max_instances": 2}
    for number in range(2):
        broker.service(client_id=f"backend-{number}", **KEPT)
    after = broker.killed()
    answer = after.open_service().connect(client_id="backend-7", expect=ReasonCode.QUOTA_EXCEEDED)
    assert str(answer.properties.reason_string).startswith("TOO_MANY_SESSIONS")
    assert after.service(client_id="backend-0", **KEPT).session.row == 1


@pytest.mark.parametrize("has_will", [False, True])
def test_of_a_session_of_which_only_the_will_is_left_no_place_of_a_service_is_taken(
    broker: StoredBroker, has_will: bool
) -> None:
    broker.limits |= {"max_instances": 2}
    for number in range(2):
        client_id = f"backend-{number}"
        broker.service(client_id=client_id, will=will("fleet/meters/meter-1/cmd/stop", qos=1) if has_will else None)
    after = broker.killed()
    new = [after.service(client_id=f"backend-{number}") for number in (7, 8)]
    back = after.open_service()
    answer = back.connect(client_id="backend-0", expect=ReasonCode.QUOTA_EXCEEDED)
    assert str(answer.properties.reason_string).startswith("TOO_MANY_SESSIONS")
    new[0].leave()
    after.service(client_id="backend-0")
    assert after.engine.registry.instances(new[1].session.owner) == 2


def test_wills_wait_as_long_as_clients_come_back(broker: StoredBroker) -> None:
    """A fleet needs more than ten seconds for its handshakes: who waits at the door is not gone."""
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    for number in range(1, 5):
        last = will(f"fleet/meters/meter-{number}/event", b"%d" % number, qos=1)
        broker.device(f"meter-{number}", will=last, session_expiry_interval=number)
    after = broker.killed(away=30)
    watcher = after.service(**KEPT)
    for number in (1, 2):
        after.advance(8)
        after.device(f"meter-{number}", clean_start=False)
    after.advance(8)
    after.device("another")  # It was not here before the start.
    assert watcher.received() == []
    after.advance(3)
    assert sorted(watcher.payloads()) == [b"3", b"4"]
    assert len(after.engine.registry) == 4, "the sessions of the two whose time has passed are gone"


def test_wills_do_not_wait_for_ever_for_those_who_come_back_one_by_one(broker: StoredBroker) -> None:
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    last = int(MOST / 5)
    for number in range(last + 2):
        broker.device(f"meter-{number}", will=will(f"fleet/meters/meter-{number}/event", qos=1))
    after = broker.killed()
    watcher = after.service(**KEPT)
    for number in range(last):
        assert watcher.received() == []
        after.device(f"meter-{number}")
        after.advance(5)
        after.keep_fresh()
    after.advance(2)
    assert len(watcher.payloads()) == 2


def test_no_will_is_sent_before_the_doors_have_been_open_for_a_moment(broker: StoredBroker) -> None:
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    broker.device("meter-1", will=will("fleet/meters/meter-1/event", qos=1))
    after = broker.killed()
    after.engine.returning.opened(after.now + 10)  # At the latest, so long is waited for the revocation feed.
    after.advance(9)
    after.engine.returning.opened(after.now)
    watcher = after.service(**KEPT)
    after.advance(9)
    assert watcher.received() == []
    after.advance(2)
    assert watcher.payloads() == [b"gone"]
