"""Messages at QoS 1 and 2 to one session, in the order in which they came: while they wait, and after a restart."""

from __future__ import annotations

from broker.mqtt.message import Deliverable, Message, PersonalMessage
from broker.session.inflight import Inflight, unused, were_sent
from broker.session.queue import MessageQueue, QueueLimits
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, publication

TOPIC = "fleet/meters/meter-1/telemetry"


def test_what_follows_a_packet_that_waits_for_the_store_waits_with_it(stored: StoredBroker) -> None:
    """A message at QoS 1 does not overtake one at QoS 2, nor wait for more than that does."""
    backend = stored.service(**KEPT)
    backend.subscribe("fleet/#", qos=2)
    meter = stored.device("meter-1")
    stored.held = True
    meter.send(publication(TOPIC, b"1", 2, packet_id=1))
    batch = stored.journal.take()
    assert batch is not None
    later = ((b"2", 1), (b"3", 2), (b"4", 1))
    meter.send(*(publication(TOPIC, payload, qos, packet_id=int(payload)) for payload, qos in later))
    assert backend.payloads() == []
    stored.store._apply(batch)
    stored.engine.stored(stored.now)
    stored.settle()
    assert backend.payloads() == [b"1", b"2"]
    stored.fail()
    assert backend.payloads() == []
    stored.write()
    assert backend.payloads() == [b"3", b"4"]
    meter.send(publication(TOPIC, b"5", 1, packet_id=5))
    assert backend.payloads() == [b"5"]


def test_what_was_sent_comes_again_in_order_after_a_restart(stored: StoredBroker) -> None:
    """Under the same identifiers [MQTT-4.4.0-1]; what waits comes behind [MQTT-4.6.0-1]."""
    backend = stored.service(receive_maximum=6, **KEPT)
    backend.subscribe("fleet/#", qos=2)
    meter = stored.device("meter-1")
    meter.publish(TOPIC, b"0", qos=1)
    backend.acknowledge(*backend.messages())
    assert backend.session.inflight is not None
    backend.session.inflight._last_id = 65_534  # The next has 65,535, then they begin again.
    meter.send(*(publication(TOPIC, b"%d" % number, 1 + number // 2 % 2, packet_id=number) for number in range(1, 9)))
    sent = backend.messages()
    assert [(message.payload, message.qos) for message in sent] == [
        (b"1", 1), (b"2", 2), (b"3", 2), (b"4", 1), (b"5", 1), (b"6", 2)
    ]  # fmt: skip
    back = stored.killed().service(receive_maximum=6, **KEPT)
    again = back.messages()
    assert [(message.payload, message.dup) for message in again] == [(message.payload, True) for message in sent]
    assert [message.packet_id for message in again] == [message.packet_id for message in sent]
    back.acknowledge(again[0])
    assert [(message.payload, message.dup) for message in back.messages()] == [(b"7", False)]


def test_identifiers_that_no_session_has_are_found_at_once_after_a_restart() -> None:
    """A search by each session took it 10 ms if another one had most of them; and where too few are left they wait."""
    limits, free = QueueLimits(9, 999), unused({*range(1, 60_001), *range(60_003, 65_535)})
    assert free == (60_001, 60_002, 65_535)
    inflight: Inflight[Deliverable] = Inflight(1, limits)

    def waiting(number: int) -> MessageQueue:
        queue = MessageQueue(limits)
        for _ in range(number):
            queue.restore(PersonalMessage(Message(b"t", b"", 1)))
        return queue

    assert [were_sent(waiting(number), inflight, free) for number in (2, 2, 1, 1)] == [True, False, True, False]
    assert [packet_id for packet_id in range(65_536) if inflight.get(packet_id)] == list(free)
