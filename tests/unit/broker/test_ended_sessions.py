"""A client is told that its earlier session is gone when that is on disk: after a crash it does not come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Pingreq, Pingresp, Pubcomp, Pubrec, Pubrel
from broker.mqtt.publication import Publish
from broker.session.incoming import Incoming
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, WireClient, connect_packet, id_of, publication, will

TOPIC = "fleet/meters/meter-1/telemetry"
CMD = "fleet/meters/meter-1/cmd/1"
FRESH: dict[str, Any] = {"clean_start": True, "session_expiry_interval": 600}
ONCE: dict[str, Any] = {"clean_start": False, "session_expiry_interval": 0}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[StoredBroker]:
    opened = StoredBroker(tmp_path)
    yield opened
    opened.close()


def asking(broker: StoredBroker, name: str = "backend", **connect: Any) -> WireClient:
    """Return the service *name*, whose CONNECT is with the broker."""
    client = broker.open_service(name)
    client.send(connect_packet(V5, client_id=name, **connect))
    return client


def with_unfinished_exchange(broker: StoredBroker) -> WireClient:
    """Let the service ``backend`` begin to publish at QoS 2, with packet identifier 7; it is gone then."""
    client = broker.service(**KEPT)
    client.send(publication(CMD, b"old", 2, packet_id=7))
    assert client.next_packet(Pubrec).packet_id == 7
    client.vanish()
    return client


@pytest.mark.parametrize("connected", [False, True], ids=["away", "connected"])
def test_a_clean_start_is_answered_when_the_old_session_is_gone_from_the_store(
    broker: StoredBroker, connected: bool
) -> None:
    older = broker.service(**KEPT)
    older.subscribe("fleet/#", qos=1)
    if not connected:
        older.vanish()
    broker.held = True
    client = asking(broker, **FRESH)
    assert older.closed
    assert client.received() == []
    assert broker.engine.connected == 0
    assert broker.write()
    assert not client.next_packet(Connack).session_present
    assert broker.engine.connected == 1
    assert (broker.metrics.admitted, client.received()) == (2, [])


def test_after_a_crash_a_new_message_is_not_taken_for_one_of_the_old_session(broker: StoredBroker) -> None:
    with_unfinished_exchange(broker)
    broker.held = True
    client = asking(broker, **FRESH)
    while not client.transport.packets:
        broker.write()
    client.send(publication(CMD, b"new", 2, packet_id=7))  # Its answer is still to come: it is sent again.
    after = broker.killed()
    watcher = after.service("watcher")
    watcher.subscribe(CMD, qos=2)
    again = asking(after, clean_start=False, session_expiry_interval=600)
    assert not again.next_packet(Connack).session_present
    again.send(publication(CMD, b"new", 2, packet_id=7, dup=True))
    assert again.received() == [Pubrec(7)]
    assert watcher.payloads() == [b"new"]


def test_after_a_crash_a_message_is_not_sent_again_out_of_the_old_session(broker: StoredBroker) -> None:
    older = broker.service(**KEPT)
    older.subscribe(TOPIC, qos=2)
    broker.device("meter-1").publish(TOPIC, b"once", qos=2)
    assert older.payloads() == [b"once"]
    older.vanish()
    broker.held = True
    client = asking(broker, **FRESH)
    while not client.transport.packets:
        broker.write()
    after = broker.killed()
    assert asking(after, **KEPT).received()[1:] == []


@pytest.mark.parametrize("fails_first", [False, True], ids=["before the store fails", "while it fails"])
def test_an_exchange_whose_end_is_not_on_disk_is_unfinished(broker: StoredBroker, fails_first: bool) -> None:
    """After a crash the old session knew its identifier: a new message was acknowledged, and routed to nobody."""
    broker.service(**KEPT).vanish()
    client = asking(broker, **KEPT)
    client.send(publication(CMD, b"old", 2, packet_id=7))
    client.received()
    broker.held = True
    if fails_first:
        broker.device("meter-2", **KEPT)
        broker.fail()
    client.send(Pubrel(7))
    newer = asking(broker, **FRESH)
    if not fails_first:
        broker.fail()
    answer = newer.next_packet(Connack)
    assert (answer.reason_code, newer.closed) == (ReasonCode.SERVER_UNAVAILABLE, True)
    assert str(answer.properties.reason_string).startswith("STORE_FAILED: ")
    while broker.write():
        pass
    again = asking(broker, **FRESH)
    while not again.transport.packets:
        assert broker.write()
    assert again.next_packet(Connack).reason_code is ReasonCode.SUCCESS


@pytest.mark.parametrize("qos", [1, 2])
def test_what_waits_at_qos_2_is_not_sent_in_a_brief_session_that_a_crash_would_undo(
    broker: StoredBroker, qos: int
) -> None:
    older = broker.service(**KEPT)
    older.subscribe(TOPIC, qos=qos)
    older.vanish()
    broker.device("meter-1", **KEPT).publish(TOPIC, b"once", qos=2)
    broker.held = True
    broker.journal.retain("a", None)
    broker.fail()
    client = asking(broker, **ONCE)
    assert client.next_packet(Connack).reason_code is (
        ReasonCode.SERVER_UNAVAILABLE if qos == 2 else ReasonCode.SUCCESS
    )
    assert [each.payload for each in client.messages()] == ([] if qos == 2 else [b"once"])


def end_at_disconnect(_broker: StoredBroker, client: WireClient) -> None:
    client.leave(session_expiry_interval=0)


def end_by_operator(broker: StoredBroker, client: WireClient) -> None:
    session = client.session
    client.vanish()
    broker.engine.forget(session, broker.now)


@pytest.mark.parametrize("end", [end_at_disconnect, end_by_operator])
def test_whatever_has_ended_it_who_comes_next_waits(
    broker: StoredBroker, end: Callable[[StoredBroker, WireClient], None]
) -> None:
    client = broker.service(**KEPT)
    client.subscribe("fleet/#", qos=1)
    broker.held = True
    end(broker, client)
    broker.settle()
    first, second = asking(broker, **KEPT), asking(broker, **FRESH)
    assert first.received() == second.received() == []
    broker.write()
    assert not first.next_packet(Connack).session_present
    while not second.transport.packets:  # It ends the session that the first has just begun.
        assert broker.write()
    assert not second.next_packet(Connack).session_present
    assert first.farewell().reason_code is ReasonCode.SESSION_TAKEN_OVER
    broker.write()
    after = broker.killed()
    assert asking(after, **KEPT).next_packet(Connack).session_present
    assert after.store.rows("SELECT count(*) FROM subscriptions") == [(0,)]


def test_who_has_no_earlier_session_waits_for_nobody(broker: StoredBroker) -> None:
    broker.service("other", **KEPT).vanish()
    broker.service("ended", **KEPT).leave(session_expiry_interval=0)
    broker.service("kept", **KEPT).vanish()
    brief = broker.service("brief", will=will(CMD))
    broker.held = True
    assert asking(broker, "other", **FRESH).received() == []
    for name, connect in (("new", FRESH), ("newer", KEPT), ("ended", FRESH), ("kept", KEPT), ("brief", FRESH)):
        (answer,) = asking(broker, name, **connect).received()
        assert isinstance(answer, Connack)
        assert answer.session_present is (name == "kept")
    assert brief.closed


def test_what_comes_behind_a_connect_that_waits_is_handled_after_it(broker: StoredBroker) -> None:
    broker.service(**KEPT).vanish()
    broker.held = True
    client = broker.open_service("backend")
    client.send(connect_packet(V5, client_id="backend", **FRESH), Pingreq())
    client.send(publication(CMD, b"x", 2, packet_id=1))
    assert client.received() == []
    broker.write()
    client.next_packet(Connack)
    assert client.next_packet(Pingresp) == Pingresp()
    broker.write()
    assert client.received() == [Pubrec(1)]


def test_who_leaves_while_waiting_has_ended_the_session_and_nothing_is_opened(broker: StoredBroker) -> None:
    broker.service(**KEPT).vanish()
    broker.held = True
    client = asking(broker, **FRESH)
    client.vanish()
    broker.write()
    assert (broker.engine.connected, len(broker.engine.registry)) == (0, 0)


def test_who_waits_counts_once(broker: StoredBroker) -> None:
    broker.limits |= {"max_connects_per_identity": 3, "max_instances": 1}
    after = broker.killed()
    for _ in range(3):
        asking(after, **FRESH).next_packet(Connack)
    refused = asking(after, **FRESH).next_packet(Connack)
    assert refused.reason_code is ReasonCode.CONNECTION_RATE_EXCEEDED


@pytest.mark.parametrize("asks", ["while it is written", "then"])
@pytest.mark.parametrize("second", [KEPT, ONCE], ids=["kept", "for one connection"])
def test_nobody_waits_for_the_end_of_a_session_that_the_store_was_never_given(
    broker: StoredBroker, second: dict[str, Any], asks: str
) -> None:
    """It began and ended while one batch was written: nothing of it is left to write, and nobody else writes."""
    broker.held = True
    broker.journal.retain("a", None)
    slow = broker.journal.take()
    assert slow is not None
    asking(broker, **KEPT).vanish()
    asking(broker, **second).leave(session_expiry_interval=0)
    client = asking(broker, **FRESH) if asks == "while it is written" else None
    broker.store._apply(slow)
    broker.engine.stored(broker.now)
    broker.settle()
    client = client or asking(broker, **FRESH)
    while broker.journal.dirty:
        broker.write()
    assert not client.next_packet(Connack).session_present


def test_very_many_that_wait_are_admitted_some_at_a_time(broker: StoredBroker) -> None:
    names = [f"service-{number}" for number in range(40)]
    for name in names:
        broker.service(name, **KEPT).vanish()
    broker.held = True
    clients = [asking(broker, name, **FRESH) for name in names]
    batch = broker.journal.take()
    assert batch is not None
    broker.store._apply(batch)
    broker.engine.stored(broker.now)
    admitted = broker.engine.connected
    assert 0 < admitted < len(names)
    broker.journal.retain("a", None)
    assert broker.journal.take() is not None
    broker.engine.stored(broker.now)
    assert broker.engine.connected == admitted, "another batch is no reason to go on faster"
    broker.settle()
    assert [type(client.next_packet(Connack)) for client in clients] == [Connack] * len(names)


def test_who_is_admitted_late_out_of_many_is_admitted_as_of_then(broker: StoredBroker) -> None:
    """Thousands that wait take seconds: a certificate may end meanwhile, and a keep alive begins with the answer."""
    names = [f"service-{number}" for number in range(40)]
    for name in names:
        broker.service(name, **KEPT).vanish()
    broker.held = True
    clients = [asking(broker, name, **FRESH) for name in names]
    (ending := clients[-1].connection).expires_at = broker.now + 1
    begun = broker.now
    broker.write_slowly()
    assert broker.now > begun + 2
    since = [client.connection.since for client in clients[:-1]]
    assert (since[0], since == sorted(since), len(set(since))) == (begun, True, 3)
    assert (ending.session, broker.metrics.refused["EXPIRED"]) == (None, 1)


@pytest.mark.parametrize("connect", [KEPT, ONCE], ids=["kept", "for one connection"])
def test_who_resumes_late_out_of_many_gets_nothing_that_has_expired_by_then(
    broker: StoredBroker, connect: dict[str, Any]
) -> None:
    names = [f"service-{number}" for number in range(60)]
    for name in names:
        client = broker.service(name, **KEPT)
        client.subscribe(TOPIC, qos=2)
        client.vanish()
    meter = broker.device("meter-1")
    for number in range(4):
        meter.publish(TOPIC, b"%d" % number, qos=2)
    for name in names:  # Two of four are under way, the others wait for room.
        client = broker.service(name, **KEPT, receive_maximum=2)
        assert client.payloads() == [b"0", b"1"]
        client.vanish()
    meter.publish(TOPIC, b"brief", qos=1, message_expiry_interval=1)
    broker.held = True
    clients = [asking(broker, name, **connect) for name in names]
    while broker.journal.dirty:
        broker.write_slowly()
    last = [each.payload for each in clients[-1].received() if isinstance(each, Publish)]
    assert last == [b"0", b"1", b"2", b"3"]


# A session resumed for the time of one connection


def test_who_resumes_a_session_for_one_connection_is_told_when_it_is_stored_as_such(broker: StoredBroker) -> None:
    older = broker.service(**KEPT)
    older.subscribe(TOPIC, qos=1)
    older.vanish()
    broker.device("meter-1").publish(TOPIC, b"kept", qos=1)
    broker.held = True
    client = asking(broker, **ONCE)
    assert client.received() == []
    broker.write()
    assert client.next_packet(Connack).session_present
    assert client.payloads() == [b"kept"]
    assert broker.journal.brief == set(), "its row number is never used again"
    after = broker.killed()
    assert not asking(after, **KEPT).next_packet(Connack).session_present
    assert after.store.rows("SELECT count(*) FROM deliveries") == [(0,)]


def test_what_ends_with_a_session_that_was_resumed_for_one_connection_leaves_others_what_they_are_owed(
    broker: StoredBroker,
) -> None:
    """Its row for the will took the message away from all who were still to get it: the broker did not start again."""
    for name in ("backend", "other"):
        client = broker.service(name, **KEPT)
        client.subscribe(TOPIC, qos=1)
        client.vanish()
    broker.device("meter-1").publish(TOPIC, b"owed", qos=1)
    once = asking(broker, **ONCE, will=will(CMD, b"gone"))
    once.next_packet(Connack)
    assert once.payloads() == [b"owed"]
    once.vanish()
    other = broker.killed().service("other", **KEPT)
    assert other.payloads() == [b"owed"]


def test_who_is_gone_before_it_has_resumed_a_session_so_finds_it_whole(broker: StoredBroker) -> None:
    older = broker.service(**KEPT)
    older.subscribe(TOPIC, qos=1)
    older.vanish()
    broker.held = True
    asking(broker, **ONCE).vanish()
    broker.held = False
    broker.settle()
    broker.device("meter-1").publish(TOPIC, b"kept", qos=1)
    client = asking(broker, **KEPT)
    assert client.next_packet(Connack).session_present
    assert client.payloads() == [b"kept"]
    client.vanish()
    back = asking(broker.killed(), **KEPT)
    assert back.next_packet(Connack).session_present
    assert back.payloads() == [b"kept"]


def test_a_session_that_was_kept_again_is_stored_anew_before_it_is_resumed_for_one_connection(
    broker: StoredBroker,
) -> None:
    broker.service(**KEPT).vanish()
    broker.held = True
    asking(broker, **ONCE).vanish()
    broker.write()
    asking(broker, **KEPT).vanish()
    while broker.journal.dirty:
        broker.write()
    client = asking(broker, **ONCE)
    assert client.received() == [], "in the store it would outlive this connection"
    broker.write()
    assert client.next_packet(Connack).session_present
    assert not asking(broker.killed(), **KEPT).next_packet(Connack).session_present


# A store that fails


@pytest.mark.parametrize("connect", [FRESH, ONCE])
@pytest.mark.parametrize("at", ["before", "while"])
def test_while_the_store_fails_a_session_with_an_unfinished_exchange_cannot_be_ended(
    broker: StoredBroker, connect: dict[str, Any], at: str
) -> None:
    with_unfinished_exchange(broker)
    broker.held = True
    if at == "before":
        broker.journal.retain("a", None)
        broker.fail()
    client = asking(broker, **connect)
    if at == "while":
        assert client.received() == []
        broker.fail()
    (refused,) = client.received()
    assert isinstance(refused, Connack)
    assert refused.reason_code is ReasonCode.SERVER_UNAVAILABLE
    assert "the store cannot be written" in str(refused.properties.reason_string)
    assert client.closed
    assert broker.metrics.refused["STORE_FAILED"] == 1
    if at == "before":  # Its exchange can be ended in the session, which is there.
        back = asking(broker, **KEPT)
        assert back.next_packet(Connack).session_present
        assert 7 in back.session.incoming
        back.vanish()
    broker.held = False
    broker.settle()
    again = asking(broker, **connect)
    assert again.next_packet(Connack).reason_code is ReasonCode.SUCCESS


@pytest.mark.parametrize("tried", [True, False])
def test_what_could_not_be_written_is_reckoned_with_and_what_was_never_tried_is_not(
    broker: StoredBroker, tried: bool
) -> None:
    """After a failed fsync SQLite's log holds the whole batch: a broker that is killed then finds the session there."""
    broker.held = True
    if not tried:
        broker.journal.retain("a", None)
        broker.fail()
    client = asking(broker, **KEPT)
    assert not client.next_packet(Connack).session_present
    if tried:
        client.send(publication(CMD, b"old", 2, packet_id=7))
        broker.fail()
    else:  # A message of QoS 2 is refused now.
        client.session.incoming = Incoming()
        client.session.incoming.add(7)
    end_by_operator(broker, client)
    answer = asking(broker, **FRESH).next_packet(Connack).reason_code
    assert answer is (ReasonCode.SERVER_UNAVAILABLE if tried else ReasonCode.SUCCESS)


@pytest.mark.parametrize("at", ["before", "while"])
def test_while_the_store_fails_others_start_cleanly_at_once(broker: StoredBroker, at: str) -> None:
    older = broker.service(**KEPT)
    older.subscribe(TOPIC, qos=2)
    broker.device("meter-1").publish(TOPIC, b"x", qos=2)
    (message,) = older.messages()
    older.send(Pubrec(id_of(message)))
    assert older.next_packet(Pubrel) == Pubrel(id_of(message))
    older.send(Pubcomp(id_of(message)))
    older.vanish()
    broker.held = True
    if at == "before":
        broker.journal.retain("a", None)
        broker.fail()
    client = asking(broker, **FRESH)
    if at == "while":
        assert client.received() == []
        broker.fail()
    assert not client.next_packet(Connack).session_present
    client.ping()
    assert client.next_packet(Pingresp) == Pingresp()
