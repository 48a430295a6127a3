"""What one client may ask of a moment: too much in a packet is refused, too much in a read goes in portions."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.packets import Packet, Pingreq, Pingresp, Puback, Subscribe, Unsubscribe
from broker.mqtt.properties import Properties
from broker.portions import PORTION
from tests.support.pki import shared_device
from tests.support.wire import V5, V311, MemoryBroker, WireClient, publication, request

OWN = "fleet/meters/meter-1/state"
PAIRS = (("name", "value"),)


def subscription(filters: int, **properties: Any) -> Subscribe:
    return Subscribe(1, tuple(request(f"fleet/{number}") for number in range(filters)), Properties(**properties))


@pytest.mark.parametrize("version", [V5, V311])
@pytest.mark.parametrize(
    ("most", "too_many"),
    [
        (subscription(20), subscription(21)),
        (Unsubscribe(1, ("a",) * 20), Unsubscribe(1, ("a",) * 21)),
    ],
)
def test_a_packet_with_more_filters_than_it_may_have_ends_the_connection(
    version: ProtocolVersion, most: Packet, too_many: Packet
) -> None:
    client = MemoryBroker(max_packet_items=20, max_subscriptions=20).device("meter-1", version=version)
    client.send(most)
    assert not client.closed
    assert len(client.received()) == 1
    client.send(too_many)
    assert client.closed
    assert client.broker.metrics.closed == {"BAD_PACKET": 1}
    if version is V5:
        assert client.farewell().reason_code is ReasonCode.QUOTA_EXCEEDED


@pytest.mark.parametrize(
    ("most", "too_many"),
    [
        (
            publication(OWN, user_properties=PAIRS * 19, content_type="text"),
            publication(OWN, user_properties=PAIRS * 20, content_type="text"),
        ),
        (subscription(10, user_properties=PAIRS * 10), subscription(10, user_properties=PAIRS * 11)),
    ],
)
def test_properties_are_counted_with_the_filters(most: Packet, too_many: Packet) -> None:
    client = MemoryBroker(max_packet_items=20, max_subscriptions=20).device("meter-1")
    client.send(most)
    assert not client.closed
    client.send(too_many)
    assert client.farewell().reason_code is ReasonCode.QUOTA_EXCEEDED


def test_all_subscriptions_that_a_session_may_have_may_be_asked_for_in_one_packet() -> None:
    client = MemoryBroker(max_packet_items=20, max_subscriptions=30).device("meter-1")
    client.send(subscription(30))
    assert not client.closed
    client.send(subscription(31))
    assert client.farewell().reason_code is ReasonCode.QUOTA_EXCEEDED


def test_the_properties_of_a_connect_and_its_will_are_bounded_before_anybody_is_admitted() -> None:
    broker = MemoryBroker(max_packet_items=20, max_subscriptions=20)
    client = broker.open(shared_device("meter-1"))
    client.connect(client_id="meter-1", user_properties=PAIRS * 21, expect=ReasonCode.QUOTA_EXCEEDED)
    assert client.closed
    assert broker.metrics.refused == {"BAD_PACKET": 1}


def in_one_read(client: WireClient, *packets: Packet) -> None:
    """Let the broker read *packets* at once; the event loop has not gone round when this returns."""
    client.connection.receive(b"".join(each.encode(client.version) for each in packets), client.broker.now)
    client.broker.engine.turn.end()


def test_a_client_that_asks_for_much_at_once_lets_others_be_served_between() -> None:
    broker = MemoryBroker()
    greedy, modest = broker.device("meter-1"), broker.device("meter-2")
    in_one_read(greedy, *(publication("not/mine", b"", 1, packet_id=number) for number in range(1, 1001)))
    assert len(greedy.received()) == PORTION
    assert greedy.transport.held
    in_one_read(modest, Pingreq())
    assert modest.received() == [Pingresp()]
    broker.settle()
    answers = greedy.received()
    assert [each.packet_id for each in answers if isinstance(each, Puback)] == list(range(PORTION + 1, 1001))
    assert not greedy.transport.held
    assert broker.metrics.publishes_denied == 1000


def test_filters_count_as_much_as_packets() -> None:
    broker = MemoryBroker()
    greedy = broker.service()
    in_one_read(greedy, *(subscription(100) for _ in range(5)))
    assert len(greedy.received()) == 1
    broker.settle()
    assert len(greedy.received()) == 4


def test_what_the_data_path_does_by_itself_is_not_cut_up() -> None:
    broker = MemoryBroker()
    meter = broker.device("meter-1")
    in_one_read(meter, *(publication(OWN, b"x", 1, packet_id=number) for number in range(1, 501)))
    assert len(meter.received()) == 500


def test_what_waits_for_its_turn_goes_with_the_connection() -> None:
    broker = MemoryBroker()
    greedy = broker.device("meter-1")
    in_one_read(greedy, *(publication("not/mine", b"", 1, packet_id=number) for number in range(1, 1001)))
    greedy.vanish()
    assert broker.metrics.publishes_denied == PORTION


def test_portions_of_one_read_are_all_paid_for_by_the_rate() -> None:
    broker = MemoryBroker(max_packet_rate=100)
    greedy = broker.device("meter-1")
    in_one_read(greedy, *(publication("not/mine", b"", 1, packet_id=number) for number in range(1, 1001)))
    broker.settle()
    assert len(greedy.received()) == 1000
    assert greedy.transport.rests[-1] == pytest.approx(9.0, abs=0.1)
