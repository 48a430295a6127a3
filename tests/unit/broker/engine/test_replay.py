"""Retained messages for a wide filter: a portion at a time, at the client's pace, with nothing lost or doubled."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest

from broker.engine.replay import PORTION
from broker.mqtt.message import Message
from broker.mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel, Subscribe
from broker.session.session import Session
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, MemoryBroker, WireClient, request

TOPIC = "fleet/meters/meter-1"
SIZE = 1000
MANY = 1000


def fill(broker: MemoryBroker, count: int = MANY, qos: int = 0) -> WireClient:
    meter = broker.device("meter-1")
    for number in range(count):
        meter.publish(f"{TOPIC}/{number}", b"%0*d" % (SIZE, number), qos=qos, retain=True)
    return meter


def numbers(client: WireClient) -> list[int]:
    return [int(each.payload) for each in client.received() if isinstance(each, Publish)]


def acknowledge_all(client: WireClient) -> list[int]:
    """Take messages and acknowledge them until no more come; return their numbers."""
    got: list[int] = []
    while messages := [each for each in client.received() if isinstance(each, Publish)]:
        got += [int(each.payload) for each in messages]
        client.acknowledge(*messages)
    return got


def test_a_client_that_takes_everything_gets_everything(broker: MemoryBroker) -> None:
    fill(broker)
    backend = broker.service()
    backend.subscribe("fleet/#")
    assert sorted(numbers(backend)) == list(range(MANY))
    assert broker.engine.replays.waiting == {}


class Stalled:
    """A client whose socket takes one portion, and then nothing until it is told to."""

    def __init__(self, client: WireClient) -> None:
        self._client = client
        self._write = client.transport.write
        client.transport.write = self.write  # type: ignore[method-assign]
        self.largest = 0

    def write(self, packets: list[bytes]) -> None:
        self._write(packets)
        self.largest = max(self.largest, sum(map(len, packets)))
        self._client.transport.unsent = True

    def drain(self) -> None:
        self._client.transport.unsent = False
        self._client.connection.drained(self._client.broker.now)
        self._client.broker.settle()


def test_while_something_is_unsent_no_more_is_written_than_one_portion(broker: MemoryBroker) -> None:
    fill(broker)
    backend = broker.service()
    stalled = Stalled(backend)
    backend.subscribe("fleet/#")
    got = numbers(backend)
    assert 0 < len(got) < 2 * PORTION // SIZE
    stalled.drain()
    while some := numbers(backend):
        assert sorted(got) != list(range(MANY))
        got += some
        stalled.drain()
    assert sorted(got) == list(range(MANY))
    assert stalled.largest <= PORTION + 2 * SIZE


def test_at_qos_1_no_more_is_under_way_than_the_client_takes(broker: MemoryBroker) -> None:
    fill(broker, qos=1)
    backend = broker.service(receive_maximum=10)
    backend.subscribe("fleet/#", qos=1)
    assert len(backend.transport.packets) == 10
    assert backend.session.queued <= PORTION // SIZE
    assert sorted(acknowledge_all(backend)) == list(range(MANY))
    assert broker.metrics.dropped_queue_full == 0


def test_more_bytes_than_a_queue_may_hold_come_all(broker: MemoryBroker) -> None:
    broker.engine.registry.limits.bytes = 100 * SIZE
    fill(broker, qos=1)
    backend = broker.service(receive_maximum=10)
    backend.subscribe("fleet/#", qos=1)
    assert sorted(acknowledge_all(backend)) == list(range(MANY))
    assert broker.metrics.dropped_queue_full == 0


def test_a_message_that_is_replaced_meanwhile_comes_once(broker: MemoryBroker) -> None:
    meter = fill(broker, qos=1)
    backend = broker.service(receive_maximum=1)
    backend.subscribe("fleet/#", qos=1)
    for number in range(MANY):
        meter.publish(f"{TOPIC}/{number}", b"%d" % (MANY + number), qos=1, retain=True)
    got = acknowledge_all(backend)
    old = [number for number in got if number < MANY]
    assert len(old) <= PORTION // SIZE  # What was under way already.
    assert sorted(got) == [*sorted(old), *range(MANY, 2 * MANY)]


def test_a_filter_that_is_subscribed_to_again_begins_anew(broker: MemoryBroker) -> None:
    fill(broker, qos=1)
    backend = broker.service(receive_maximum=1)
    backend.subscribe("fleet/#", qos=1)
    backend.received()
    backend.subscribe("fleet/#")  # At QoS 0 now, from the first on.
    assert sorted(numbers(backend)) == list(range(MANY))


def test_an_unsubscribed_filter_sends_no_more(broker: MemoryBroker) -> None:
    fill(broker, qos=1)
    backend = broker.service(receive_maximum=1)
    backend.subscribe("fleet/#", qos=1)
    (message,) = (each for each in backend.received() if isinstance(each, Publish))
    queued = backend.session.queued
    backend.unsubscribe("fleet/#")
    backend.acknowledge(message)
    assert len(acknowledge_all(backend)) == queued, "and nothing more [MQTT-3.10.4-2]"
    assert broker.engine.replays.waiting == {}


def test_an_unsubscribed_filter_sends_no_more_to_who_takes_everything_again(broker: MemoryBroker) -> None:
    fill(broker)
    backend = broker.service()
    stalled = Stalled(backend)
    backend.subscribe("fleet/#")
    assert numbers(backend)
    backend.unsubscribe("fleet/#")
    stalled.drain()
    assert numbers(backend) == []
    assert broker.engine.replays.waiting == {}


def test_two_filters_come_one_after_the_other(broker: MemoryBroker) -> None:
    fill(broker, 20, qos=1)
    backend = broker.service(receive_maximum=3)
    backend.subscribe("fleet/#", f"{TOPIC}/+", qos=1)
    assert sorted(acknowledge_all(backend)) == sorted([*range(20), *range(20)])


def test_many_wide_subscriptions_take_turns(broker: MemoryBroker) -> None:
    """Work is counted, not time: no turn of the loop writes more than a portion, and everybody moves on."""
    fill(broker)
    backends = [broker.service(f"backend-{index}") for index in range(5)]
    waiting: list[Callable[[], None]] = []
    broker.engine.replays._call_soon = waiting.append
    for backend in backends:
        backend.subscribe("fleet/#")
    broker.engine.replays._call_soon = broker._soon.append
    broker._soon.extend(waiting)
    soon = broker._soon
    progress = []
    while soon:
        soon.popleft()()
        progress.append([sum(map(len, backend.transport.packets)) for backend in backends])
    for before, after in itertools.pairwise(progress):
        assert sum(after) - sum(before) <= PORTION + 2 * SIZE
    behind = max(max(each) - min(each) for each in progress)
    assert behind <= PORTION + 2 * SIZE
    assert all(len(numbers(backend)) == MANY for backend in backends)


def test_a_bug_that_one_meets_keeps_no_other_from_the_rest(broker: MemoryBroker) -> None:
    fill(broker)
    first, second = broker.service("first"), broker.service("second")

    def ask(session: Session, message: Message) -> None:
        if session is first.session and len(first.transport.packets) > PORTION // SIZE:
            raise RuntimeError(message.topic)

    broker.engine.replays.ask = ask
    for client in (first, second):
        client.connection.receive(Subscribe(1, (request("fleet/#"),)).encode(V5), broker.now)
    with pytest.raises(RuntimeError):
        broker.settle()
    broker.settle()
    assert len(numbers(first)) < MANY
    assert sorted(numbers(second)) == list(range(MANY))


def test_at_qos_0_the_rest_goes_with_the_connection(broker: MemoryBroker) -> None:
    fill(broker)
    backend = broker.service(**KEPT)
    Stalled(backend)
    backend.subscribe("fleet/#")
    assert broker.engine.replays.waiting
    backend.vanish()
    assert broker.service(**KEPT).received() == []
    assert broker.engine.replays.waiting == {}


def test_at_qos_1_it_goes_on_in_the_next_connection(broker: MemoryBroker) -> None:
    fill(broker, qos=1)
    backend = broker.service(receive_maximum=10, **KEPT)
    backend.subscribe("fleet/#", qos=1)
    backend.vanish()
    back = broker.service(receive_maximum=10, **KEPT)
    assert sorted(acknowledge_all(back)) == list(range(MANY))


def test_a_session_that_ends_waits_for_nothing(broker: MemoryBroker) -> None:
    fill(broker, qos=1)
    backend = broker.service(receive_maximum=1)
    backend.subscribe("fleet/#", qos=1)
    backend.vanish()
    assert broker.engine.replays.waiting == {}


def test_a_walk_in_vain_is_done_in_portions_too(broker: MemoryBroker) -> None:
    fill(broker, 3)
    for number in range(5000):
        broker.engine.retained.retain(f"fleet/meters/m{number}/state", Message(b"t", b"x"))
    broker.engine.retained.retain("fleet/meters/m4999/alert", Message(b"fleet/meters/m4999/alert", b"17"))
    backend = broker.service()
    backend.subscribe("fleet/+/+/alert")
    turns = 0

    def count(original: Callable[[Callable[[], None]], object], work: Callable[[], None]) -> None:
        nonlocal turns
        turns += 1
        original(work)

    other = broker.service("other")
    broker.engine.replays._call_soon = functools.partial(count, broker._soon.append)
    other.subscribe("fleet/+/+/alert")
    assert turns >= 5000 // 512
    assert numbers(backend) == numbers(other) == [17]


def test_an_expired_message_is_left_out_and_forgotten(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1")
    meter.publish(f"{TOPIC}/a", b"1", retain=True, message_expiry_interval=10)
    meter.publish(f"{TOPIC}/b", b"2", retain=True)
    broker.advance(11)
    backend = broker.service()
    backend.subscribe("fleet/#")
    assert numbers(backend) == [2]
    assert len(broker.engine.retained) == 1


def test_after_a_restart_in_the_middle_it_begins_anew(stored: StoredBroker) -> None:
    fill(stored, 200, qos=1)
    backend = stored.service(receive_maximum=10, **KEPT)
    backend.send(Subscribe(1, (request("fleet/#", 1),)))
    some = [each for each in backend.received() if isinstance(each, Publish)]
    assert stored.engine.replays.waiting
    backend.acknowledge(*some[:5])
    after = stored.killed()
    got = acknowledge_all(after.service(receive_maximum=10, **KEPT))
    assert set(got) | {int(each.payload) for each in some[:5]} == set(range(200))
    again = after.killed()
    assert again.engine.replays.waiting == {}
    assert again.service(receive_maximum=10, **KEPT).received() == []


def exchange(client: WireClient, most: int | None = None) -> list[tuple[int, int]]:
    """Take messages, at QoS 2 with the whole exchange, until no more come, or *most*; return number and QoS of each."""
    got: list[tuple[int, int]] = []
    while (most is None or len(got) < most) and (packets := client.received()):
        for packet in packets:
            if isinstance(packet, Publish):
                got.append((int(packet.payload or b"-1"), packet.qos))
                client.send((Pubrec if packet.qos == 2 else Puback)(packet.packet_id))  # type: ignore[arg-type]
            elif isinstance(packet, Pubrel):
                client.send(Pubcomp(packet.packet_id))
    return got


@pytest.mark.parametrize("kills", [1, 4])
def test_a_restart_in_the_middle_doubles_nothing_at_qos_2(stored: StoredBroker, kills: int) -> None:
    """Each message comes once: those completed before, those under way, those not sent yet, replaced and new ones."""
    meter = fill(stored, 150, qos=2)
    backend = stored.service(receive_maximum=10, **KEPT)
    backend.send(Subscribe(1, (request("fleet/#", 2),)))
    got: list[tuple[int, int]] = []
    broker, topics = stored, itertools.count(1000)
    for kill in range(kills):
        got += exchange(backend, 25)
        assert broker.engine.replays.waiting
        meter.publish(f"{TOPIC}/{149 - kill}", b"%d" % next(topics), qos=2, retain=True)  # Replaces one.
        meter.publish(f"{TOPIC}/new-{kill}", b"%d" % next(topics), qos=2, retain=True)
        broker = broker.killed()
        backend, meter = broker.service(receive_maximum=10, **KEPT), broker.device("meter-1")
    got += exchange(backend)
    numbers_of = [number for number, _ in got]
    assert len(numbers_of) == len(set(numbers_of)), "doubled"
    assert set(range(150 - kills)) | set(range(1000, next(topics))) <= set(numbers_of) <= set(range(1100))
    assert {qos for _, qos in got} == {2}
    assert broker.store.rows("SELECT * FROM replayed") == []
    again = broker.killed()
    assert again.service(receive_maximum=10, **KEPT).received() == []


def test_what_is_retained_after_a_restart_in_the_middle_is_newer_than_all_that_was_there_before_it(
    stored: StoredBroker,
) -> None:
    """Also than the last, which is gone: else it is one of those that the replay sends, and comes twice."""
    meter = fill(stored, 150, qos=2)
    meter.publish(f"{TOPIC}/0/last", b"150", qos=2, retain=True)  # What is below the first is walked past at the end.
    backend = stored.service(receive_maximum=10, **KEPT)
    backend.send(Subscribe(1, (request("fleet/#", 2),)))
    got = exchange(backend, 25)
    meter.publish(f"{TOPIC}/0/last", b"", qos=2, retain=True)
    stored.settle()
    after = stored.killed()
    meter = after.device("meter-1")
    meter.publish(f"{TOPIC}/0/new", b"1000", qos=2, retain=True)
    got += exchange(after.service(receive_maximum=10, **KEPT))
    assert sorted(number for number, _ in got) == [-1, *range(150), 1000]


def test_who_subscribes_again_after_a_restart_gets_all_again(stored: StoredBroker) -> None:
    fill(stored, 150, qos=2)
    backend = stored.service(receive_maximum=10, **KEPT)
    backend.send(Subscribe(1, (request("fleet/#", 2),)))
    exchange(backend, 30)
    assert len(stored.store.rows("SELECT * FROM replayed")) >= 30
    after = stored.killed()
    backend = after.service(receive_maximum=10, **KEPT)
    exchange(backend, 20)
    backend.send(Subscribe(2, (request("fleet/#", 2),)))
    got = [number for number, _ in exchange(backend)]
    assert set(got) == set(range(150))
    assert after.store.rows("SELECT * FROM replayed") == []


def test_what_fits_into_the_first_portion_is_noted_nowhere(stored: StoredBroker) -> None:
    fill(stored, 20, qos=2)
    stored.held = True
    backend = stored.service(**KEPT)
    backend.send(Subscribe(1, (request("fleet/#", 2),)))
    assert stored.journal.open.replayed == {}
    stored.held = False
    stored.settle()
    assert sorted(number for number, _ in exchange(backend)) == list(range(20))


def test_who_published_a_retained_message_outlives_the_broker(stored: StoredBroker) -> None:
    backend = stored.service()
    backend.publish("fleet/meters/meter-1/cmd/x", b"1", qos=1, retain=True)
    fill(stored, 1)
    after = stored.killed()
    back = after.service()
    back.subscribe(request("fleet/#", no_local=True))
    assert [int(each.payload) for each in back.messages()] == [0]
