"""Sections 3.3.1, 3.3.3 to 3.3.5: PUBLISH, its flags, and what it leads to."""

from __future__ import annotations

import pytest

from broker.mqtt.acks import Puback, Pubcomp, Pubrec, Pubrel
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.packets import Packet, Pingreq, Pingresp, Suback
from tests.conformance.scene import (
    MALFORMED,
    PROTOCOL_ERROR,
    assert_ended,
    durable,
    exactly_once,
    keeping,
    late,
    open_broker,
    raw_publish,
    raw_subscribe,
)
from tests.support.wire import V5, V311, MemoryBroker, WireClient, publication, request


def test_mqtt5_3_3_1_1_mqtt311_3_3_1_1_dup_says_that_a_message_comes_again(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """DUP is 1 when a PUBLISH is delivered again."""
    client = broker.service("client", version=version, **keeping(version))
    client.subscribe("t", qos=2)
    publisher.publish("t", b"1", qos=1)
    exactly_once(publisher, "t", b"2")
    assert [message.dup for message in client.messages()] == [False, False]
    client.vanish()
    back = broker.service("client", version=version, **keeping(version))
    assert [(message.payload, message.dup) for message in back.messages()] == [(b"1", True), (b"2", True)]


def test_mqtt5_3_3_1_2_mqtt311_3_3_1_2_dup_at_qos_0_closes(publisher: WireClient) -> None:
    """DUP is 0 at QoS 0."""
    publisher.send_bytes(raw_publish(publisher.version, "t", first=0x38))
    assert_ended(publisher)


def test_mqtt5_3_3_1_3_mqtt311_3_3_1_3_dup_is_not_passed_on(publisher: WireClient, subscriber: WireClient) -> None:
    """DUP of what goes out does not come from what came in."""
    subscriber.subscribe("t", qos=2)
    publisher.publish("t", qos=1)  # The topic is known from here on.
    publisher.send(publication("t", qos=1, packet_id=7, dup=True), publication("t", qos=2, packet_id=8, dup=True))
    assert [message.dup for message in subscriber.messages()] == [False] * 3


@pytest.mark.parametrize("first", [0x36, 0x37, 0x3E])
def test_mqtt5_3_3_1_4_mqtt311_3_3_1_4_qos_3_closes(publisher: WireClient, first: int) -> None:
    """QoS 3 does not exist."""
    publisher.send_bytes(raw_publish(publisher.version, "t", first=first, packet_id=1))
    assert_ended(publisher, MALFORMED)


def test_mqtt5_3_3_1_5_mqtt311_3_3_1_5_a_message_is_retained_with_its_qos(
    broker: MemoryBroker, publisher: WireClient
) -> None:
    """RETAIN 1 replaces the topic's retained message with this one and its QoS."""
    publisher.publish("t", b"old", qos=0, retain=True)
    exactly_once(publisher, "t", b"new", retain=True)
    assert [(m.payload, m.qos) for m in late(broker, version=publisher.version).messages()] == [(b"new", 2)]


def test_mqtt5_3_3_1_5_mqtt311_3_3_1_7_what_is_replaced_is_gone_even_where_there_is_no_room(
    version: ProtocolVersion,
) -> None:
    """RETAIN 1 replaces the topic's retained message with this one and its QoS."""
    broker = open_broker(max_retained_bytes=100)
    publisher = broker.service("publisher", version=version)
    publisher.publish("t", bytes(50), retain=True)
    publisher.publish("t", bytes(200), retain=True)
    assert late(broker, version=version).messages() == []


def test_mqtt311_3_3_1_6_a_new_subscription_gets_each_topics_last_message(
    broker: MemoryBroker, publisher: WireClient
) -> None:
    """A new subscription gets the last retained message of each matching topic."""
    for topic, payload in (("a", b"top"), ("a/1", b"old"), ("a/1", b"new"), ("a/2", b"only"), ("b/1", b"other")):
        publisher.publish(topic, payload, retain=True)
    client = late(broker, "a/+", version=publisher.version)
    assert sorted((m.topic, m.payload) for m in client.messages()) == [("a/1", b"new"), ("a/2", b"only")]
    for wide, topics in (("a/#", ["a", "a/1", "a/2"]), ("#", ["a", "a/1", "a/2", "b/1"]), ("b/1", ["b/1"])):
        assert sorted(m.topic for m in late(broker, wide, version=publisher.version).messages()) == topics


def test_mqtt311_3_3_1_7_qos_0_replaces_what_was_retained(broker: MemoryBroker, publisher: WireClient) -> None:
    """A QoS 0 message with RETAIN 1 discards what the topic had retained."""
    publisher.publish("t", b"old", qos=1, retain=True)
    publisher.publish("t", b"new", qos=0, retain=True)
    assert late(broker, version=publisher.version).payloads() == [b"new"]


def test_mqtt311_3_3_1_8_a_retained_message_says_so(broker: MemoryBroker, publisher: WireClient) -> None:
    """A message sent because of a new subscription has RETAIN 1."""
    for qos in (0, 1, 2):
        publisher.publish(f"t/{qos}", b"x", qos=qos, retain=True)
    messages = late(broker, "t/#", version=publisher.version).messages()
    assert sorted((message.topic, message.qos, message.retain) for message in messages) == [
        ("t/0", 0, True),
        ("t/1", 1, True),
        ("t/2", 2, True),
    ]


def test_mqtt5_3_3_1_12_mqtt311_3_3_1_9_an_established_subscription_gets_retain_0(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """Retain as published 0 forwards with RETAIN 0."""
    subscriber.subscribe("t", qos=1)
    publisher.publish("t", b"1", retain=True)
    publisher.publish("t", b"2", qos=1, retain=True)
    publisher.publish("t", b"3", qos=1)
    assert [message.retain for message in subscriber.messages()] == [False] * 3


def test_mqtt5_3_3_1_6_mqtt311_3_3_1_10_an_empty_message_is_delivered_and_forgets(
    broker: MemoryBroker, publisher: WireClient, subscriber: WireClient
) -> None:
    """An empty message with RETAIN 1 is delivered, and removes what the topic had retained."""
    publisher.publish("t", b"kept", retain=True)
    subscriber.subscribe("t", qos=1)
    assert subscriber.payloads() == [b"kept"]
    publisher.publish("t", b"", qos=1, retain=True)
    assert subscriber.payloads() == [b""]
    assert late(broker, version=publisher.version).received() == []


def test_mqtt5_3_3_1_7_mqtt311_3_3_1_11_an_empty_message_is_not_retained(
    broker: MemoryBroker, publisher: WireClient
) -> None:
    """An empty message is never retained."""
    publisher.publish("t", b"", retain=True)
    assert late(broker, version=publisher.version).received() == []
    assert len(broker.engine.retained) == 0


def test_mqtt5_3_3_1_8_mqtt311_3_3_1_12_retain_0_changes_nothing(broker: MemoryBroker, publisher: WireClient) -> None:
    """RETAIN 0 neither stores nor removes a retained message."""
    publisher.publish("t", b"kept", retain=True)
    publisher.publish("t", b"passing")
    publisher.publish("t", b"", qos=1)
    exactly_once(publisher, "t", b"")
    publisher.publish("u", b"passing", qos=1)
    exactly_once(publisher, "u", b"passing")
    assert late(broker, "t", "u", version=publisher.version).payloads() == [b"kept"]


def test_mqtt5_3_3_1_9_retain_handling_0_sends_all(broker: MemoryBroker, publisher5: WireClient) -> None:
    """Retain handling 0 sends the retained messages that match."""
    for topic in ("a", "a/1", "a/2", "b"):
        publisher5.publish(topic, b"x", retain=True)
    client = late(broker, request("a/#", 1, retain_handling=0))
    for _ in range(2):
        assert sorted(message.topic for message in client.messages()) == ["a", "a/1", "a/2"]
        client.subscribe(request("a/#", 0, retain_handling=0))  # Whether it is new or not.
    client.received()
    client.subscribe(request("$share/g/a/#", 0, retain_handling=0))  # To a share it sends none (§4.8.2).
    assert client.received() == []


def test_mqtt5_3_3_1_10_retain_handling_1_sends_to_a_new_subscription(
    broker: MemoryBroker, publisher5: WireClient
) -> None:
    """Retain handling 1 sends them if the subscription is new."""
    publisher5.publish("t", b"x", retain=True)
    client = late(broker, request("t", 1, retain_handling=1))
    assert client.payloads() == [b"x"]
    client.subscribe(request("t", 0, retain_handling=1))
    assert client.received() == []
    client.unsubscribe("t")
    client.subscribe(request("t", 0, retain_handling=1))
    assert client.payloads() == [b"x"]


def test_mqtt5_3_3_1_11_retain_handling_2_sends_none(broker: MemoryBroker, publisher5: WireClient) -> None:
    """Retain handling 2 sends none."""
    publisher5.publish("t", b"x", retain=True)
    client = late(broker, request("t", 1, retain_handling=2))
    client.subscribe(request("t", 1, retain_handling=2))
    assert client.received() == []
    publisher5.publish("t", b"live", retain=True)
    assert client.payloads() == [b"live"]


def test_mqtt5_3_3_1_13_retain_as_published_keeps_the_flag(publisher5: WireClient, subscriber5: WireClient) -> None:
    """Retain as published 1 forwards with RETAIN as it came."""
    subscriber5.subscribe(request("t", 1, retain_as_published=True))
    for qos in (0, 1):
        publisher5.publish("t", b"x", qos=qos, retain=True)
        publisher5.publish("t", b"x", qos=qos)
    assert [message.retain for message in subscriber5.messages()] == [True, False, True, False]


def test_mqtt5_3_3_4_1_mqtt311_3_3_4_1_the_answer_depends_on_the_qos(publisher: WireClient) -> None:
    """PUBLISH is answered by QoS: nothing, PUBACK or PUBREC."""
    code = ReasonCode.SUCCESS
    for qos, answers in ((0, []), (1, [Puback(7, code)]), (2, [Pubrec(7, code)])):
        publisher.send(publication("t", qos=qos, packet_id=7 if qos else None))
        assert publisher.received() == answers


def test_mqtt5_3_3_4_2_mqtt311_3_3_5_1_overlapping_subscriptions_get_the_highest_qos(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """Overlapping subscriptions get the message at their highest QoS."""
    subscriber.subscribe("a/b", qos=0)
    subscriber.subscribe("a/+", qos=2)
    subscriber.subscribe("a/#", qos=1)
    exactly_once(publisher, "a/b")
    publisher.publish("a/b", qos=1)
    assert [message.qos for message in subscriber.messages()] == [2, 1]  # One copy of each.
    subscriber.unsubscribe("a/+")
    exactly_once(publisher, "a/b")
    assert [message.qos for message in subscriber.messages()] == [1]
    subscriber.unsubscribe("a/#")
    exactly_once(publisher, "a/b")
    assert [message.qos for message in subscriber.messages()] == [0]


def test_mqtt5_3_3_4_3_subscription_identifiers_go_with_the_message(
    publisher5: WireClient, subscriber5: WireClient
) -> None:
    """The subscription identifiers of matching subscriptions go with the message."""
    subscriber5.subscribe("a/b", identifier=7)
    subscriber5.subscribe("a/c", qos=1)
    publisher5.publish("a/b")
    publisher5.publish("a/c", qos=1)
    assert [m.properties.subscription_identifiers for m in subscriber5.messages()] == [(7,), ()]


def test_mqtt5_3_3_4_4_one_copy_has_all_identifiers(publisher5: WireClient, subscriber5: WireClient) -> None:
    """A single copy has the identifiers of all matching subscriptions."""
    subscriber5.subscribe("a/b", identifier=268_435_455)
    subscriber5.subscribe("a/+", qos=1, identifier=1)
    subscriber5.subscribe("#", qos=1)
    publisher5.publish("a/b", qos=1)
    (message,) = subscriber5.messages()
    assert set(message.properties.subscription_identifiers) == {1, 268_435_455}


@pytest.mark.parametrize("first", [0x30, 0x32])
def test_mqtt5_3_3_4_6_a_subscription_identifier_from_a_client_closes(publisher5: WireClient, first: int) -> None:
    """A client's PUBLISH has no subscription identifier."""
    publisher5.publish("t")
    packet_id = 9 if first == 0x32 else None
    publisher5.send_bytes(raw_publish(V5, "t", first=first, packet_id=packet_id, properties=b"\x0b\x01"))
    assert_ended(publisher5, PROTOCOL_ERROR)


def test_mqtt5_3_3_4_7_more_than_the_receive_maximum_closes() -> None:
    """A client has no more than the receive maximum of messages unacknowledged."""
    client = open_broker(max_inflight=3).service("client")
    client.send(*(publication("t", qos=2, packet_id=number) for number in (1, 2, 3)))
    client.send(publication("t", qos=2, packet_id=2, dup=True), Pubrel(1), publication("t", qos=2, packet_id=4))
    assert not client.closed
    client.send(publication("t", qos=2, packet_id=5))
    assert_ended(client, ReasonCode.RECEIVE_MAXIMUM_EXCEEDED)


def test_mqtt5_3_3_4_9_mqtt5_4_9_0_2_the_clients_receive_maximum_is_kept(
    broker: MemoryBroker, publisher5: WireClient
) -> None:
    """The server has no more than the receive maximum of messages unacknowledged."""
    client = broker.service("client", receive_maximum=2, **durable(broker, V5))
    client.subscribe("t", qos=2)
    for number in range(6):
        publisher5.send(publication("t", b"%d" % number, 1 + number % 2, packet_id=number + 1))
    first, second = client.messages()
    client.acknowledge(first)
    (third,) = client.messages()
    client.send(Pubrec(second.packet_id or 0))
    assert client.received() == [Pubrel(second.packet_id or 0)]  # PUBREC gives no quota back, PUBCOMP does.
    client.send(Pubcomp(second.packet_id or 0))
    (fourth,) = client.messages()
    client.send(Pubrec(fourth.packet_id or 0, ReasonCode.UNSPECIFIED_ERROR))  # Nor a PUBREL, when it refuses.
    (fifth,) = client.messages()
    assert [each.payload for each in (first, second, third, fourth, fifth)] == [b"0", b"1", b"2", b"3", b"4"]


def test_mqtt5_3_3_4_10_mqtt5_4_9_0_3_without_quota_everything_else_is_answered(
    broker: MemoryBroker, publisher5: WireClient
) -> None:
    """The server without quota still sends other packets."""
    client = broker.service("client", receive_maximum=1, **durable(broker, V5))
    client.subscribe("t", qos=1)
    for _ in range(3):
        publisher5.publish("t", qos=1)
    assert len(client.messages()) == 1
    client.send_bytes(
        raw_subscribe(V5, "u", packet_id=500)
        + publication("v", qos=1, packet_id=501).encode(V5)
        + publication("v", qos=2, packet_id=502).encode(V5)
        + Pubrel(502).encode(V5)
        + Pingreq().encode(V5)
    )
    kinds: set[type[Packet]] = {Suback, Puback, Pubrec, Pubcomp, Pingresp}
    answers = client.received()
    assert (len(answers), {type(packet) for packet in answers}) == (5, kinds)  # A ping does not wait for the store.
    client.subscribe("w", identifier=7)
    for topic in ("u", "w"):
        publisher5.publish(topic)
        assert len(client.messages()) == 1  # QoS 0 needs no quota, in a packet of its own neither.


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_mqtt311_3_3_5_2_what_is_not_authorised_is_acknowledged_and_goes_nowhere(qos: int) -> None:
    """A PUBLISH that is not authorised is acknowledged, or the connection closed."""
    broker = MemoryBroker()  # With the real policy, which refuses.
    watcher = broker.service("watcher")
    watcher.subscribe("fleet/#")
    client = broker.device("meter-1", version=V311)
    client.send(publication("fleet/meters/meter-2/event", qos=qos, packet_id=5 if qos else None))
    assert client.received() == [[], [Puback(5)], [Pubrec(5)]][qos]
    assert not client.closed
    assert watcher.received() == []


@pytest.mark.parametrize("keeps_flag", [False, True])
def test_mqtt5_3_3_1_12_mqtt5_3_3_1_13_the_flag_of_a_message_on_every_way(
    broker: MemoryBroker, publisher5: WireClient, keeps_flag: bool
) -> None:
    """Retain as published 0 forwards with RETAIN 0."""
    asked = request("t", 2, retain_as_published=keeps_flag)
    away = broker.service("away", **keeping(V5))
    away.subscribe(asked)
    away.vanish()
    clients = [late(broker, request("t", qos, retain_as_published=keeps_flag)) for qos in (0, 1, 2)]
    clients.append(late(broker, request("$share/g/t", 2, retain_as_published=keeps_flag)))
    for qos in (0, 1, 2):
        for retain in (True, False):
            publisher5.publish("t", b"x", qos=qos, retain=retain)
    clients.append(broker.service("away", **keeping(V5)))
    flags = [[message.retain for message in client.messages()] for client in clients]
    assert flags == [[keeps_flag, False] * 3] * 4 + [[keeps_flag, False] * 2]  # QoS 0 does not wait for who is away.
    late_one = late(broker, asked)
    assert [message.retain for message in late_one.messages()] == [True]  # Said of what is sent because it subscribes.


def test_mqtt311_3_3_1_9_retain_0_on_every_way(broker: MemoryBroker, publisher: WireClient) -> None:
    """A message sent because of an established subscription has RETAIN 0."""
    version = publisher.version
    away = broker.service("away", version=version, **keeping(version))
    away.subscribe("t", qos=2)
    away.vanish()
    clients = [late(broker, version=version, qos=qos) for qos in (0, 1, 2)]
    for qos in (0, 1, 2):
        publisher.publish("t", b"x", qos=qos, retain=True)
    clients.append(broker.service("away", version=version, **keeping(version)))
    assert [[message.retain for message in client.messages()] for client in clients] == [[False] * 3] * 3 + [
        [False] * 2
    ]


def test_mqtt5_3_3_4_3_identifiers_go_with_the_message_on_every_way(
    broker: MemoryBroker, publisher5: WireClient
) -> None:
    """The subscription identifiers of matching subscriptions go with the message."""

    def seen(client: WireClient) -> list[tuple[int, ...]]:
        return [message.properties.subscription_identifiers for message in client.messages()]

    away = broker.service("away", **keeping(V5))
    away.subscribe("t", qos=2, identifier=9)
    away.vanish()
    member, client = broker.service("member"), broker.service("client")
    member.subscribe("$share/g/t", qos=2, identifier=10)
    client.subscribe("u", "t", qos=2, identifier=128)
    for qos in (0, 1, 2):
        publisher5.publish("t", b"x", qos=qos, retain=True)
    publisher5.publish("u")
    assert (seen(member), seen(client)) == ([(10,)] * 3, [(128,)] * 4)
    client.subscribe("t", qos=2, identifier=7)  # It replaces the identifier; what is retained comes with it.
    publisher5.publish("t", qos=1)
    assert seen(client) == [(7,), (7,)]
    client.subscribe("t", qos=2)  # It takes the identifier away.
    publisher5.publish("t", qos=1)
    assert seen(client) == [(), ()]
    for _ in range(2):  # What waited for it, and then again, when it comes again.
        back = broker.service("away", **keeping(V5))
        assert seen(back) == [(9,)] * 4
        back.vanish()


def test_mqtt5_3_3_4_4_the_same_identifier_comes_as_often_as_it_was_given(
    publisher5: WireClient, subscriber5: WireClient
) -> None:
    """A single copy has the identifiers of all matching subscriptions."""
    subscriber5.subscribe("a/b", "a/+", identifier=5)
    subscriber5.subscribe("a/#", qos=2, identifier=6)
    subscriber5.subscribe("other", identifier=8)
    for qos in (0, 1, 2):
        publisher5.publish("a/b", qos=qos)
    copies = [sorted(message.properties.subscription_identifiers) for message in subscriber5.messages()]
    assert copies == [[5, 5, 6]] * 3  # MQTT 5 §3.3.4: "multiple identical Subscription Identifiers".


def test_mqtt5_3_3_4_5_a_copy_through_a_share_has_its_own_identifier(
    broker: MemoryBroker, publisher5: WireClient
) -> None:
    """Of several copies, each has its own subscription's identifier."""
    client = broker.service("client")
    client.subscribe("a/b", qos=1, identifier=1)
    client.subscribe("$share/g/a/b", qos=1, identifier=2)
    client.subscribe("$share/other/a/+", qos=1)
    for qos in (0, 1, 2):
        publisher5.publish("a/b", qos=qos)
        copies = [message.properties.subscription_identifiers for message in client.messages()]
        assert sorted(copies) == [(), (1,), (2,)]
