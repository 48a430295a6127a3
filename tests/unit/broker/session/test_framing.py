"""How long a packet to a client may be, with and without a Topic Alias: what fits in some form arrives."""

from __future__ import annotations

import pytest

from broker.sockets.slow_reader import without_qos0
from tests.conformance.scene import open_broker
from tests.support.wire import V5, publication

SHORT, LONG = "t", "t" * 40
MAXIMUM = 100


def room(topic: str, qos: int, **properties: int) -> int:
    """Return how long the payload of a packet to the client may be."""
    return MAXIMUM - len(publication(topic, b"", qos, packet_id=1 if qos else None, **properties).encode(V5))


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("topic", [SHORT, LONG])
@pytest.mark.parametrize("known", [False, True])
def test_what_fits_in_some_form_arrives(qos: int, topic: str, known: bool) -> None:
    broker = open_broker()
    client = broker.service(topic_alias_maximum=2, maximum_packet_size=MAXIMUM)
    client.subscribe("#", qos=2)
    publisher = broker.service("publisher")
    if known:
        publisher.publish(topic, b"introduced", qos=1)
    longest = room(topic, qos)
    if known:
        longest = max(longest, room("", qos, topic_alias=1))
    for size in (longest + 1, longest):
        publisher.send(publication(topic, bytes(size), qos, packet_id=publisher.packet_id() if qos else None))
    messages = client.messages()[known:]
    assert [len(message.payload) for message in messages] == [longest]
    assert broker.metrics.dropped_too_large == 1


def test_an_alias_that_was_left_out_for_want_of_room_is_introduced_later() -> None:
    broker = open_broker()
    client = broker.service(topic_alias_maximum=1, maximum_packet_size=MAXIMUM)
    client.subscribe("#", qos=1)
    publisher = broker.service("publisher")
    for size in (room(LONG, 1), 1, 1):
        publisher.publish(LONG, bytes(size), qos=1)
    assert [(message.topic, message.properties.topic_alias) for message in client.messages()] == [
        (LONG, None),
        (LONG, 1),
        ("", 1),
    ]


def test_while_a_client_takes_nothing_no_alias_is_introduced_at_qos_0() -> None:
    """Such a message is dropped, as likely as not, and what comes behind it would have no topic."""
    broker = open_broker()
    client = broker.service(topic_alias_maximum=1)
    client.subscribe("#")
    publisher = broker.service("publisher")
    client.connection.choke(broker.now)
    publisher.publish(LONG)
    client.connection.unchoke(broker.now)
    publisher.publish(LONG)
    publisher.publish(LONG)
    # Of a fake wire nothing is dropped: the first has arrived, without an alias.
    assert [(message.topic, message.properties.topic_alias) for message in client.messages()] == [
        (LONG, None),
        (LONG, 1),
        ("", 1),
    ]


def test_of_a_client_with_aliases_that_does_not_keep_up_only_what_introduces_one_is_kept() -> None:
    broker = open_broker()
    client = broker.service(topic_alias_maximum=1)
    client.subscribe("#", qos=1)
    publisher = broker.service("publisher")
    for qos in (0, 0, 1, 0):
        publisher.publish(LONG, b"%d" % qos, qos=qos)
    publisher.publish("without", b"0")
    packets = list(client.transport.packets)
    assert len(packets) == 5
    assert without_qos0(packets, broker.metrics) == [packets[0], packets[2]]
    assert broker.metrics.dropped_slow_consumer == 3
