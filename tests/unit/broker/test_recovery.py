"""What another broker process finds in the database: every table, and what time has done to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from broker.mqtt.packets import Pubcomp, Publish, Pubrec, Pubrel
from tests.support.pki import DOMAIN, shared_device
from tests.support.stored import WALL_OFFSET, StoredBroker
from tests.support.wire import KEPT, V5, V311, id_of, publication, request, will

TOPIC = "fleet/meters/meter-1/telemetry"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[StoredBroker]:
    opened = StoredBroker(tmp_path)
    yield opened
    opened.close()


def test_subscriptions_come_back_with_their_options(broker: StoredBroker) -> None:
    backend = broker.service(**KEPT)
    backend.subscribe(request("fleet/#", 1, retain_as_published=True), identifier=7)
    backend.subscribe("fleet/a")
    backend.unsubscribe("fleet/a")
    after = broker.killed()
    meter = after.device("meter-1")
    meter.publish(TOPIC, b"while away", qos=1, retain=True)
    back = after.service(**KEPT)
    (message,) = back.messages()
    assert (message.payload, message.retain, message.properties.subscription_identifiers) == (b"while away", True, (7,))
    assert len(back.session.subscriptions) == 1


def test_messages_come_back_in_order_with_what_belongs_to_them(broker: StoredBroker) -> None:
    backend = broker.service(**KEPT, receive_maximum=2)
    backend.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1")
    for number in range(5):
        meter.publish(TOPIC, b"%d" % number, qos=1, user_properties=(("n", str(number)),), message_expiry_interval=60)
    backend.acknowledge(backend.messages()[0])
    messages = broker.killed(away=20).service(**KEPT).messages()
    assert [message.payload for message in messages] == [b"1", b"2", b"3", b"4"]
    assert [message.properties.user_properties for message in messages] == [(("n", str(n)),) for n in range(1, 5)]
    assert {message.properties.message_expiry_interval for message in messages} == {40}


def test_more_messages_than_the_queue_takes_come_back_all(broker: StoredBroker) -> None:
    broker.limits |= {"max_queued_bytes": 300}
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1")
    for number in range(10):
        meter.publish(TOPIC, b"%d" % number * 100, qos=1)
    after = broker.killed()
    assert after.service(**KEPT).payloads() == [b"%d" % number * 100 for number in range(10)]


def test_what_came_back_counts_for_the_bound_of_the_queue(broker: StoredBroker) -> None:
    broker.limits |= {"max_queued_bytes": 1000}
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=1)
    backend.vanish()
    broker.device("meter-1").publish(TOPIC, bytes(700), qos=1)
    after = broker.killed()
    after.device("meter-1").publish(TOPIC, bytes(700), qos=1)
    assert after.metrics.dropped_queue_full == 1
    assert after.service(**KEPT).payloads() == [bytes(700)]


def test_what_came_back_and_expires_makes_room(broker: StoredBroker) -> None:
    broker.limits |= {"max_queued_messages": 2}
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=1)
    backend.vanish()
    meter = broker.device("meter-1")
    for seconds in (30, 20):
        meter.publish(TOPIC, b"short", qos=1, message_expiry_interval=seconds)
    after = broker.killed(away=10)
    meter = after.device("meter-1")
    meter.publish(TOPIC, b"no room", qos=1)
    after.advance(11)
    meter.publish(TOPIC, b"long", qos=1)
    assert (after.metrics.dropped_queue_full, after.metrics.dropped_expired) == (1, 1)
    assert after.service(**KEPT).payloads() == [b"short", b"long"]


def test_what_took_the_place_of_expired_messages_is_as_durable_as_they_were(broker: StoredBroker) -> None:
    broker.limits |= {"max_queued_messages": 2}
    broker = broker.killed()
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=1)
    backend.vanish()
    meter = broker.device("meter-1")
    for _ in range(2):
        meter.publish(TOPIC, b"short", qos=1, message_expiry_interval=5)
    broker.advance(6)
    for payload in (b"1", b"2", b"no room"):
        meter.publish(TOPIC, payload, qos=1)
    assert (broker.metrics.dropped_expired, broker.metrics.dropped_queue_full) == (2, 1)
    after = broker.killed()
    assert after.store.rows("SELECT count(*) FROM deliveries") == [(2,)]
    assert after.service(**KEPT).payloads() == [b"1", b"2"]


def test_a_message_that_has_expired_for_one_stays_for_another_to_whom_it_was_sent(broker: StoredBroker) -> None:
    """It was removed for both, and the next start found a damaged database."""
    (away := broker.service("a", **KEPT)).subscribe("fleet/#", qos=1)
    away.vanish()
    broker.service("b", **KEPT).subscribe("fleet/#", qos=2)
    broker.device("meter-1").publish(TOPIC, b"x", qos=2, message_expiry_interval=5)
    (after := broker.killed(away=10)).settle()
    again = after.killed()
    assert [again.service(name, **KEPT).payloads() for name in ("a", "b")] == [[], [b"x"]]


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_too_large_for_its_client_does_not_come_back(broker: StoredBroker, qos: int) -> None:
    """As if it had been delivered [MQTT-3.1.2-25]."""
    backend = broker.service(**KEPT, maximum_packet_size=100)
    backend.subscribe("fleet/#", qos=2)
    meter = broker.device("meter-1")
    meter.publish(TOPIC, bytes(100), qos=qos)
    meter.publish(TOPIC, b"small", qos=qos)
    assert broker.metrics.dropped_too_large == 1
    after = broker.killed()
    assert after.store.rows("SELECT count(*) FROM deliveries") == [(1,)]
    assert after.service(**KEPT).payloads() == [b"small"]


@pytest.mark.parametrize("qos", [1, 2])
def test_what_became_too_large_for_its_client_or_old_for_anybody_does_not_come_back(
    broker: StoredBroker, qos: int
) -> None:
    backend = broker.service(**KEPT, receive_maximum=1)
    backend.subscribe("fleet/#", qos=2)
    meter = broker.device("meter-1")
    meter.publish(TOPIC, bytes(100), qos=qos)  # Sent, and too large when it is to be sent again.
    meter.publish(TOPIC, b"old", qos=qos, message_expiry_interval=5)
    meter.publish(TOPIC, b"small", qos=qos)
    backend.vanish()
    broker.advance(6)
    back = broker.service(**KEPT, receive_maximum=1, maximum_packet_size=100)
    assert back.payloads() == [b"small"]
    assert (broker.metrics.dropped_too_large, broker.metrics.dropped_expired) == (1, 1)
    after = broker.killed()
    assert after.store.rows("SELECT count(*) FROM deliveries") == [(1,)]
    assert after.service(**KEPT).payloads() == [b"small"]


def test_what_came_back_unacknowledged_counts_for_the_bytes_that_may_be(broker: StoredBroker) -> None:
    broker.limits |= {"max_inflight_bytes": 30_000}
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=2)
    meter = broker.device("meter-1")
    for _ in range(3):
        meter.publish(TOPIC, bytes(11_000), qos=2)
    assert len(backend.messages()) == 3
    after = broker.killed()
    back = after.service(**KEPT)
    assert len(back.messages()) == 3
    after.device("meter-1").publish(TOPIC, b"next", qos=2)
    assert back.messages() == []


def test_what_comes_after_a_restart_lasts_beside_what_was_there(broker: StoredBroker) -> None:
    """For who is away since before it, too, and in rows of its own."""
    backend = broker.service("backend", **KEPT)
    backend.subscribe("fleet/#", qos=1)
    backend.vanish()
    broker.device("meter-1").publish(TOPIC, b"before", qos=1)
    after = broker.killed()
    archive = after.service("archive", **KEPT)
    archive.subscribe("fleet/#", qos=1)
    archive.vanish()
    after.device("meter-1").publish(TOPIC, b"after", qos=1)
    again = after.killed()
    assert again.service("backend", **KEPT).payloads() == [b"before", b"after"]
    assert again.service("archive", **KEPT).payloads() == [b"after"]


@pytest.mark.parametrize("identifier", [7, None])
@pytest.mark.parametrize("leaves", [True, False])
def test_who_ends_with_his_connection_takes_nothing_along_that_waits_for_others(
    broker: StoredBroker, leaves: bool, identifier: int | None
) -> None:
    """He is in the store for his will alone: what is on its way to him is not there."""
    archive = broker.service("archive", **KEPT)
    archive.subscribe("fleet/#", qos=1)
    archive.vanish()
    backend = broker.service("backend", will=will("fleet/meters/meter-1/cmd/x"))
    backend.subscribe(request("fleet/#", 1), identifier=identifier)
    broker.device("meter-1").publish(TOPIC, b"x", qos=1)
    backend.leave() if leaves else backend.vanish()
    after = broker.killed()
    assert after.service("archive", **KEPT).payloads() == [b"x"]


@pytest.mark.parametrize("last", [{}, {"will": will("fleet/meters/meter-1/cmd/x")}], ids=["nothing", "a will"])
def test_who_comes_back_for_one_connection_more_is_forgotten_with_it(
    broker: StoredBroker, last: dict[str, Any]
) -> None:
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=1)
    backend.vanish()
    broker.device("meter-1").publish(TOPIC, b"x", qos=1)
    assert broker.service(clean_start=False, **last).payloads() == [b"x"]
    after = broker.killed()
    assert not after.open_service().connect(client_id="backend", clean_start=False).session_present
    assert after.store.rows("SELECT session FROM subscriptions UNION SELECT id FROM deliveries") == []


def test_expired_messages_do_not_come_back(broker: StoredBroker) -> None:
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=1)
    backend.vanish()
    meter = broker.device("meter-1")
    meter.publish(TOPIC, b"short", qos=1, message_expiry_interval=10)
    meter.publish(TOPIC, b"long", qos=1, message_expiry_interval=100)
    meter.publish("fleet/meters/meter-1/a", b"short", qos=1, retain=True, message_expiry_interval=10)
    meter.publish("fleet/meters/meter-1/b", b"long", qos=1, retain=True)
    after = broker.killed(away=20)
    assert after.service(**KEPT).payloads() == [b"long", b"long"]
    assert len(after.engine.retained) == 1
    after.settle()
    assert len(after.store.rows("SELECT * FROM retained")) == 1
    assert {payload for (payload,) in after.store.rows("SELECT payload FROM messages")} == {b"long"}


def test_a_retained_message_that_was_cleared_stays_cleared(broker: StoredBroker) -> None:
    meter = broker.device("meter-1")
    meter.publish(TOPIC, b"x", qos=1, retain=True)
    meter.publish(TOPIC, b"", qos=1, retain=True)
    after = broker.killed()
    assert len(after.engine.retained) == 0


@pytest.mark.parametrize(
    ("own", "stored", "publisher"),
    [
        (DOMAIN, "device/meter-1", f"/device/{DOMAIN}/meter-1"),
        (DOMAIN, "service/a/b", f"/service/{DOMAIN}/a/b"),
        (DOMAIN, "/device/other.example/meter-1", "/device/other.example/meter-1"),
        (DOMAIN, "", ""),
        (None, "device/meter-1", "device/meter-1"),
    ],
)
def test_who_published_a_retained_message_before_names_had_a_trust_domain_is_of_the_brokers_own(
    tmp_path: Path, own: str | None, stored: str, publisher: str
) -> None:
    broker = StoredBroker(tmp_path, trust_domain=DOMAIN)
    broker.device("meter-1").publish(TOPIC, b"x", qos=1, retain=True)
    broker.store._database.execute("UPDATE retained SET publisher = ?", (stored,))
    broker.limits["trust_domain"] = own
    after = broker.killed()
    assert [each.publisher for each in after.engine.retained.walk(TOPIC) if each is not None] == [publisher]
    broker.close()


@pytest.mark.parametrize("limit", ["max_retained", "max_retained_of_device"])
def test_more_retained_messages_than_there_is_room_for_come_back_all(broker: StoredBroker, limit: str) -> None:
    meter = broker.device("meter-1")
    topics = [f"fleet/meters/meter-1/{number}" for number in range(3)]
    for topic in topics:
        meter.publish(topic, b"old", qos=1, retain=True)
    broker.limits |= {limit: 1}
    after = broker.killed()
    assert len(after.engine.retained) == 3
    meter = after.device("meter-1")
    meter.publish(topics[0], b"", qos=1, retain=True)
    meter.publish(topics[1], b"new", qos=1, retain=True)  # Which does not fit, and what it replaces is out of date.
    again = after.killed()
    assert [each.topic.decode() for each in again.engine.retained.all()] == topics[2:]


@pytest.mark.parametrize(("away", "present"), [(30, True), (90, False)])
def test_a_session_whose_time_has_passed_does_not_come_back(broker: StoredBroker, away: float, present: bool) -> None:
    client = broker.service(clean_start=False, session_expiry_interval=60)
    client.subscribe("fleet/#", qos=1)
    client.leave()
    after = broker.killed(away=away)
    assert len(after.engine.registry) == present
    answer = after.open_service().connect(client_id="backend", clean_start=False)
    assert answer.session_present is present


def test_the_time_of_who_was_connected_begins_at_the_restart(broker: StoredBroker) -> None:
    broker.service(clean_start=False, session_expiry_interval=60)
    after = broker.killed(away=1000)
    after.advance(50)
    after.keep_fresh()
    assert after.open_service().connect(client_id="backend", clean_start=False).session_present


def test_a_session_that_ends_with_its_connection_leaves_nothing(broker: StoredBroker) -> None:
    broker.service("brief").subscribe("fleet/#", qos=1)
    kept = broker.service(**KEPT)
    kept.leave(session_expiry_interval=0)
    assert broker.store.rows("SELECT * FROM sessions") == []
    assert broker.store.rows("SELECT * FROM subscriptions") == []


def test_a_clean_start_takes_everything_of_the_session_along(broker: StoredBroker) -> None:
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=2)
    backend.vanish()
    broker.device("meter-1").publish(TOPIC, b"x", qos=2)
    broker.service(session_expiry_interval=600)
    assert [broker.store.rows(f"SELECT count(*) FROM {each}") for each in ("deliveries", "messages")] == [[(0,)]] * 2
    assert broker.store.rows("SELECT count(*) FROM sessions") == [(1,)]


def test_a_qos2_message_from_a_client_is_known_after_a_crash(broker: StoredBroker) -> None:
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1", **KEPT)
    meter.send(publication(TOPIC, b"once", 2, packet_id=9))
    assert meter.received() == [Pubrec(9)]
    after = broker.killed()
    meter = after.device("meter-1", **KEPT)
    meter.send(publication(TOPIC, b"once", 2, packet_id=9, dup=True))
    assert meter.received() == [Pubrec(9)]
    meter.send(Pubrel(9))
    assert meter.received() == [Pubcomp(9)]
    assert after.service(**KEPT).payloads() == [b"once"]


@pytest.mark.parametrize("received", [False, True])
def test_a_qos2_message_to_a_client_goes_on_where_it_was(broker: StoredBroker, received: bool) -> None:
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=2)
    broker.device("meter-1").publish(TOPIC, b"once", qos=2)
    (message,) = backend.messages()
    if received:
        backend.send(Pubrec(id_of(message)))
        assert backend.received() == [Pubrel(id_of(message))]
    after = broker.killed()
    backend = after.service(**KEPT)
    if not received:
        (again,) = backend.messages()
        assert again == Publish(TOPIC, b"once", message.qos, dup=True, packet_id=message.packet_id)
        backend.send(Pubrec(id_of(message)))
    assert backend.received() == [Pubrel(id_of(message))]
    backend.send(Pubcomp(id_of(message)))
    after.settle()
    assert [after.store.rows(f"SELECT * FROM {table}") for table in ("deliveries", "messages")] == [[], []]


@pytest.mark.parametrize("version", [V311, V5])
def test_identifiers_are_kept_for_who_was_killed_with_the_broker(broker: StoredBroker, version: object) -> None:
    fields = KEPT if version is V5 else {"clean_start": False}
    backend = broker.service(version=version, **fields)  # type: ignore[arg-type]
    backend.subscribe("fleet/#", qos=1)
    after = broker.killed()
    session = after.engine.registry.find(DOMAIN, backend.session.owner.role, "backend")
    assert session is not None
    assert session.v5 is (version is V5)


@pytest.mark.parametrize("away", [0, 100])
def test_what_a_member_of_a_share_holds_goes_to_another_when_it_does_not_return(
    broker: StoredBroker, away: float
) -> None:
    """Its session ends after the restart, or while there was no broker."""
    for name, expiry in (("brief", 60), ("kept", 600)):
        member = broker.service(name, clean_start=False, session_expiry_interval=expiry)
        member.subscribe("$share/workers/fleet/#", qos=1)
        member.leave()
    meter = broker.device("meter-1")
    for number in range(6):
        meter.publish(TOPIC, b"%d" % number, qos=1)
    after = broker.killed(away=away)
    kept = after.service("kept", **KEPT)
    got = kept.messages()
    kept.acknowledge(*got)
    assert len(got) == (6 if away else 3)
    after.advance(61)
    more = kept.messages()
    kept.acknowledge(*more)
    assert sorted(each.payload for each in (*got, *more)) == [b"%d" % number for number in range(6)]
    after.settle()
    assert [after.store.rows(f"SELECT count(*) FROM {each}") for each in ("deliveries", "messages")] == [[(0,)]] * 2


def test_a_share_that_has_no_members_left_holds_back_nothing(broker: StoredBroker) -> None:
    member = broker.service(**KEPT)
    member.subscribe("$share/workers/fleet/#", qos=1)
    broker.device("meter-1").publish(TOPIC, b"1", qos=1)
    assert len(member.messages()) == 1
    member.unsubscribe("$share/workers/fleet/#")
    after = broker.killed()
    assert after.service(**KEPT).payloads() == [b"1"]


def test_a_retained_message_that_has_expired_leaves_the_database_too(broker: StoredBroker) -> None:
    meter = broker.device("meter-1")
    meter.publish(f"{TOPIC}/short", b"1", retain=True, message_expiry_interval=10)
    meter.publish(f"{TOPIC}/long", b"2", retain=True, message_expiry_interval=100)
    broker.settle()
    broker.advance(12)
    assert broker.store.rows("SELECT topic_name FROM retained") == [(f"{TOPIC}/long",)]


def test_nothing_is_written_to_forget_what_was_never_retained(broker: StoredBroker) -> None:
    meter = broker.device("meter-1")
    broker.held = True
    for number in range(3):
        meter.publish(f"{TOPIC}/{number}", b"", retain=True)
    assert broker.journal.open.retained == {}
    for expected in ({}, {f"{TOPIC}/0": None}):
        meter.publish(f"{TOPIC}/0", b"1", retain=True)
        if expected:
            broker.write()
        meter.publish(f"{TOPIC}/0", b"", retain=True)
        assert broker.journal.open.retained == expected


def test_a_session_that_ended_with_its_connection_is_not_there_after_a_crash(broker: StoredBroker) -> None:
    """All that outlived the crash is its will: a client that is told of a session would rely on subscriptions."""
    meter = broker.device("meter-1", clean_start=False, will=will("fleet/meters/meter-1/event", qos=1))
    meter.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    after = broker.killed()
    meter = after.open(shared_device("meter-1"))
    assert not meter.connect(client_id="meter-1", clean_start=False, session_expiry_interval=60).session_present
    again = after.killed()
    assert again.open(shared_device("meter-1")).connect(client_id="meter-1", clean_start=False).session_present


def test_all_the_exchanges_that_a_device_can_leave_open_do_not_keep_a_start_waiting(broker: StoredBroker) -> None:
    """In the store of an older broker a device can have left every packet identifier open, and where max_inflight is
    large. Eleven seconds' work for a start that adds each to a copy of the others, a tenth of one for one that does
    not."""
    meter = broker.device("meter-1", **KEPT)
    numbers = range(1, 0x10000)
    rows = [(meter.session.row, each) for each in numbers]
    broker.store._database.executemany("INSERT INTO incoming VALUES (?, ?)", rows)
    began = process_time()
    after = broker.killed()
    assert process_time() - began < 4
    back = after.device("meter-1", **KEPT)
    assert set(back.session.incoming or ()) == set(numbers)


@pytest.mark.parametrize("will_delay", [0, 5])
def test_who_left_later_than_now_left_now(
    broker: StoredBroker, monkeypatch: pytest.MonkeyPatch, will_delay: int
) -> None:
    """A machine without a battery starts in the past: else its wills and sessions waited for years."""
    watcher = broker.service(**KEPT)
    watcher.subscribe("fleet/#", qos=1)
    last = will("fleet/meters/meter-1/event", qos=1, will_delay_interval=will_delay)
    meter = broker.device("meter-1", session_expiry_interval=30, will=last)
    if will_delay:
        meter.vanish()
    else:
        broker.engine.stop(broker.now)
        broker.settle()
    monkeypatch.setattr("tests.support.stored.WALL_OFFSET", WALL_OFFSET - 1e9)
    after = broker.killed()
    watcher = after.service(**KEPT)
    after.advance(11)
    assert watcher.payloads() == [b"gone"]
    after.advance(20)
    assert len(after.engine.registry) == 1, "the watcher's"
