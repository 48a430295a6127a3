"""Sections 4.1 to 4.6: session state, the three deliveries, sending again, order."""

from __future__ import annotations

import contextlib
from pathlib import Path

from broker.mqtt.acks import Puback, Pubcomp, Pubrec, Pubrel
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.packets import Pingreq, Publish
from tests.conformance.scene import OPEN_POLICY, durable, exactly_once, finish, keeping, stranger
from tests.support.stored import StoredBroker
from tests.support.wire import V5, MemoryBroker, WireClient, publication

FAILED = ReasonCode.UNSPECIFIED_ERROR


def kept(broker: MemoryBroker, version: ProtocolVersion = V5, qos: int = 2) -> WireClient:
    """Return a client with a session that is kept, subscribed to ``t``."""
    client = broker.service("client", version=version, **keeping(version))
    client.subscribe("t", qos=qos)
    return client


def back(client: WireClient) -> WireClient:
    """Return the same client after its connection was lost."""
    client.vanish()
    return client.broker.service("client", version=client.version, **keeping(client.version))


def identifier(message: Publish) -> int:
    assert message.packet_id is not None
    return message.packet_id


def test_mqtt5_4_1_0_1_mqtt311_4_1_0_1_mqtt311_4_1_0_2_a_session_lasts_as_long_as_its_connection(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """Session state is not discarded while the connection is open."""
    client = broker.service("client", version=version, clean_start=True, keep_alive=0)
    client.subscribe("t", qos=1)
    for _ in range(10):
        broker.advance(500)
        client.send(Pingreq())
        publisher.send(Pingreq())
    client.received()
    publisher.received()
    publisher.publish("t", b"1", qos=1)
    assert client.payloads() == [b"1"]


def test_mqtt5_4_1_0_2_a_session_is_discarded_when_it_has_expired(broker: MemoryBroker) -> None:
    """Session state is discarded when the connection is closed and its expiry interval has passed."""
    client = broker.service("client", session_expiry_interval=60)
    client.subscribe("t", qos=1)
    broker.advance(120)
    assert len(broker.engine.registry) == 1
    client.vanish()
    broker.advance(61)
    assert len(broker.engine.registry) == 0
    assert broker.engine.routes.subscription_count == 0
    assert not stranger(broker, V5).connect(client_id="client", clean_start=False).session_present


def test_mqtt5_4_3_1_1_mqtt311_4_3_1_1_qos_0_goes_out_plain(publisher: WireClient, subscriber: WireClient) -> None:
    """QoS 0 goes out with QoS 0 and DUP 0."""
    subscriber.subscribe("t", qos=2)
    publisher.publish("t", b"x")
    assert subscriber.transport.packets[0][0] == 0x30


def test_mqtt5_4_3_1_1_mqtt311_4_3_1_1_qos_0_goes_out_plain_on_every_way(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """QoS 0 goes out with QoS 0 and DUP 0."""
    publisher.publish("kept", b"x", retain=True)
    client = broker.service("client", version=version, **({"topic_alias_maximum": 1} if version is V5 else {}))
    client.subscribe("kept", "t", "u", qos=2, identifier=7 if version is V5 else None)
    for topic in ("t", "u", "t"):
        publisher.publish(topic, b"x")
    assert [each[0] for each in client.transport.packets] == [0x31, 0x30, 0x30, 0x30]  # The first was retained.


def test_mqtt5_4_3_2_1_mqtt5_4_3_3_1_mqtt311_4_3_2_1_mqtt311_4_3_3_1_each_message_has_an_unused_identifier(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """QoS 1 takes an unused identifier for each new message."""
    client = kept(broker, version)
    for _ in range(3):
        publisher.publish("t", qos=1)
        exactly_once(publisher, "t")
    messages = client.messages()
    assert len({identifier(message) for message in messages}) == 6
    client.acknowledge(messages[0])
    client.session.inflight._last_id = 0
    publisher.publish("t", qos=1)
    exactly_once(publisher, "t")
    fresh = {identifier(message) for message in client.messages()}
    assert not fresh & {identifier(message) for message in messages[1:]}
    assert 0 not in fresh


def test_mqtt5_4_3_2_2_mqtt311_4_3_2_1_qos_1_goes_out_without_dup(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """QoS 1 goes out with its identifier and DUP 0."""
    subscriber.subscribe("t", qos=1)
    publisher.send(publication("t", qos=1, packet_id=1, dup=True))
    (message,) = subscriber.messages()
    assert (message.qos, message.dup, message.packet_id) == (1, False, 1)


def test_mqtt5_4_3_2_3_mqtt311_4_3_2_1_qos_1_is_unacknowledged_until_puback(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """A QoS 1 PUBLISH is unacknowledged until its PUBACK."""
    client = kept(broker, version)
    publisher.publish("t", b"1", qos=1)
    client = back(client)
    for answer in (Pubcomp(1), Pubrec(1), Pubrec(1, FAILED), Pubrel(1)):  # No answer to a QoS 1 message.
        client.send(answer)
        client = back(client)
        (message,) = client.messages()
        assert (message.payload, message.packet_id, message.dup) == (b"1", 1, True)
    client.acknowledge(message)
    assert back(client).received() == []


def test_mqtt311_4_3_2_1_qos_1_is_sent_and_kept_until_puback(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """QoS 1 goes out with an unused identifier and DUP 0, and is unacknowledged until PUBACK."""
    client = kept(broker, version)
    publisher.publish("t", b"1", qos=1)
    publisher.publish("t", b"2", qos=1)
    first, second = client.messages()
    assert (first.qos, first.dup, second.dup) == (1, False, False)
    assert identifier(first) != identifier(second)
    client.acknowledge(first)
    client = back(client)
    (again,) = client.messages()
    assert (again.payload, again.packet_id) == (b"2", second.packet_id)
    client.acknowledge(again)
    assert back(client).received() == []


def test_mqtt5_4_3_2_4_mqtt311_4_3_2_2_qos_1_is_answered_with_its_identifier(publisher: WireClient) -> None:
    """QoS 1 is answered with PUBACK and its identifier."""
    publisher.send(*(publication("t", qos=1, packet_id=number) for number in (1, 65_535, 256)))
    assert publisher.received() == [Puback(1), Puback(65_535), Puback(256)]


def test_mqtt5_4_3_2_5_mqtt311_4_3_2_2_the_same_identifier_is_a_new_message(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """Behind PUBACK, the same identifier is a new message, whatever its DUP."""
    subscriber.subscribe("t", qos=1)
    for dup in (False, False, True):
        publisher.send(publication("t", b"x", 1, packet_id=9, dup=dup))
        assert publisher.received() == [Puback(9)]
    assert subscriber.payloads() == [b"x"] * 3


def test_mqtt5_4_3_3_2_mqtt311_4_3_3_1_qos_2_goes_out_without_dup(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """QoS 2 goes out with its identifier and DUP 0."""
    subscriber.subscribe("t", qos=2)
    publisher.send(publication("t", qos=2, packet_id=1, dup=True))
    (message,) = subscriber.messages()
    assert (message.qos, message.dup) == (2, False)


def test_mqtt5_4_3_3_3_mqtt311_4_3_3_1_qos_2_is_unacknowledged_until_pubrec(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """A QoS 2 PUBLISH is unacknowledged until its PUBREC."""
    client = kept(broker, version)
    exactly_once(publisher, "t", b"1")
    (first,) = client.messages()
    for answer in (Puback, Pubcomp, Pubrel):  # No answer to a QoS 2 message.
        client.send(answer(identifier(first)))
        client = back(client)
        (again,) = client.messages()
        assert (again.payload, again.dup, again.packet_id) == (b"1", True, first.packet_id)
    client.send(Pubrec(identifier(first)))
    assert back(client).received() == [Pubrel(identifier(first))]


def test_mqtt5_4_3_3_4_pubrec_is_answered_with_pubrel(broker: MemoryBroker, publisher5: WireClient) -> None:
    """PUBREC below 0x80 is answered with PUBREL and the same identifier."""
    client = kept(broker)
    exactly_once(publisher5, "t", b"1")
    exactly_once(publisher5, "t", b"2")
    first, second = client.messages()
    client.send(Pubrec(identifier(first), ReasonCode.NO_MATCHING_SUBSCRIBERS), Pubrec(identifier(second), FAILED))
    assert client.received() == [Pubrel(identifier(first))]


def test_mqtt5_4_3_3_5_mqtt5_4_3_3_6_mqtt311_4_3_3_1_pubrel_comes_again_until_pubcomp(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """A PUBREL is unacknowledged until its PUBCOMP."""
    client = kept(broker, version)
    exactly_once(publisher, "t")
    (message,) = client.messages()
    client.send(Pubrec(identifier(message)))
    for answer in (Pingreq(), Puback(identifier(message)), Pubrec(identifier(message)), Pubrec(999)):
        client = back(client)
        assert client.received() == [Pubrel(identifier(message))]
        client.send(answer)
        assert not any(isinstance(packet, Publish) for packet in client.received())
    client = back(client)
    assert client.received() == [Pubrel(identifier(message))]
    client.send(Pubcomp(identifier(message)))
    assert back(client).received() == []


def test_mqtt311_4_3_3_1_qos_2_is_sent_released_and_completed(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """QoS 2 goes out with an unused identifier and DUP 0; PUBREC is answered with PUBREL, no PUBLISH."""
    client = kept(broker, version)
    exactly_once(publisher, "t", b"1")
    (first,) = client.messages()
    assert (first.qos, first.dup) == (2, False)
    client = back(client)
    (again,) = client.messages()
    assert (again.packet_id, again.dup) == (first.packet_id, True)
    client.send(Pubrec(identifier(first)))
    assert client.received() == [Pubrel(identifier(first))]
    client = back(client)
    assert client.received() == [Pubrel(identifier(first))]
    client.send(Pubcomp(identifier(first)))
    assert back(client).received() == []


def test_mqtt5_4_3_3_7_what_was_sent_does_not_expire(broker: MemoryBroker, publisher5: WireClient) -> None:
    """A PUBLISH that has been sent does not expire."""
    client = kept(broker)
    exactly_once(publisher5, "t", b"1", message_expiry_interval=10)
    client.vanish()
    broker.advance(60)
    (message,) = back(client).messages()
    assert (message.payload, message.dup) == (b"1", True)


def test_mqtt5_4_3_3_8_mqtt311_4_3_3_2_qos_2_is_answered_with_its_identifier(publisher: WireClient) -> None:
    """QoS 2 is answered with PUBREC and its identifier."""
    publisher.send(*(publication("t", qos=2, packet_id=number) for number in (1, 65_535, 256)))
    assert publisher.received() == [Pubrec(1), Pubrec(65_535), Pubrec(256)]


def test_mqtt5_4_3_3_9_behind_a_refusal_the_identifier_is_free() -> None:
    """Behind PUBREC of 0x80 or above, the same identifier is a new message."""
    broker = MemoryBroker()  # With the real policy, which refuses.
    watcher = broker.service("watcher")
    watcher.subscribe("fleet/#")
    meter = broker.device("meter-1")
    meter.send(publication("elsewhere", qos=2, packet_id=5))
    assert meter.next_packet(Pubrec).reason_code is ReasonCode.NOT_AUTHORIZED
    meter.send(publication("fleet/meters/meter-1/event", b"new", qos=2, packet_id=5))
    assert meter.next_packet(Pubrec).reason_code is ReasonCode.SUCCESS
    assert watcher.payloads() == [b"new"]


def test_mqtt5_4_3_3_10_mqtt311_4_3_3_2_until_pubrel_a_message_is_delivered_once(
    broker: MemoryBroker, version: ProtocolVersion, subscriber: WireClient
) -> None:
    """Until PUBREL, the same identifier is answered with PUBREC, and delivered only once."""
    subscriber.subscribe("t", qos=2)
    client = broker.service("client", version=version, **keeping(version))
    for _ in range(2):
        client.send(publication("t", b"once", qos=2, packet_id=5), publication("t", b"once", 2, packet_id=5, dup=True))
        assert client.received() == [Pubrec(5), Pubrec(5)]
        client = back(client)
    assert subscriber.payloads() == [b"once"]


def test_mqtt5_4_3_3_11_mqtt311_4_3_3_2_pubrel_is_answered_with_pubcomp(publisher: WireClient) -> None:
    """PUBREL is answered with PUBCOMP and the same identifier."""
    publisher.send(publication("t", qos=2, packet_id=5), Pubrel(5), Pubrel(5))
    assert [(type(packet), packet.packet_id) for packet in publisher.received()] == [  # type: ignore[union-attr]
        (Pubrec, 5),
        (Pubcomp, 5),
        (Pubcomp, 5),
    ]


def test_mqtt5_4_3_3_12_mqtt311_4_3_3_2_behind_pubcomp_the_identifier_is_a_new_message(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """Behind PUBCOMP, the same identifier is a new message."""
    subscriber.subscribe("t", qos=2)
    for payload in (b"1", b"2"):
        message = publication("t", payload, 2, packet_id=5)
        publisher.send(message, message, Pubrel(5))
        assert publisher.received() == [Pubrec(5), Pubrec(5), Pubcomp(5)]
    assert subscriber.payloads() == [b"1", b"2"]


def test_mqtt5_4_3_3_13_an_expired_message_is_exchanged_to_the_end(
    broker: MemoryBroker, publisher5: WireClient
) -> None:
    """The exchange goes on even if the message has expired."""
    client = kept(broker)
    publisher5.send(publication("t", b"sent", qos=2, packet_id=4, message_expiry_interval=5), Pubrel(4))
    (sent,) = client.messages()
    broker.advance(60)
    client.send(Pubrec(identifier(sent)))  # This exchange goes on after the message's end.
    assert client.received() == [Pubrel(identifier(sent))]
    client.send(Pubcomp(identifier(sent)))
    assert publisher5.received() == [Pubrec(4), Pubcomp(4)]
    client.vanish()
    publisher5.send(publication("t", qos=2, packet_id=5, message_expiry_interval=5))
    broker.advance(60)
    publisher5.send(publication("t", qos=2, packet_id=5, message_expiry_interval=5, dup=True), Pubrel(5))
    assert publisher5.received() == [Pubrec(5), Pubrec(5), Pubcomp(5)]
    assert back(client).received() == []


def test_mqtt5_4_4_0_1_mqtt311_4_4_0_1_unacknowledged_packets_come_again_on_reconnection_only(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """Unacknowledged PUBLISH and PUBREL packets are sent again on reconnection, and at no other time."""
    client = kept(broker, version)
    publisher.publish("t", b"1", qos=1)
    exactly_once(publisher, "t", b"2")
    exactly_once(publisher, "t", b"3")
    first, second, third = client.messages()
    client.send(Pubrec(identifier(second)))
    assert client.received() == [Pubrel(identifier(second))]
    broker.advance(600)
    broker.keep_fresh()
    assert client.received() == []
    client = back(client)
    again = client.received()
    assert [(type(packet), packet.packet_id) for packet in again] == [  # type: ignore[union-attr]
        (Publish, first.packet_id),
        (Pubrel, second.packet_id),
        (Publish, third.packet_id),
    ]


def test_mqtt5_4_4_0_2_a_refused_message_does_not_come_again(broker: MemoryBroker, publisher5: WireClient) -> None:
    """A PUBACK or PUBREC of 0x80 or above acknowledges the PUBLISH, which is not sent again."""
    client = kept(broker)
    publisher5.publish("t", b"1", qos=1)
    exactly_once(publisher5, "t", b"2")
    first, second = client.messages()
    client.send(Puback(identifier(first), FAILED), Pubrec(identifier(second), FAILED))
    assert client.received() == []
    assert back(client).received() == []


def test_mqtt5_4_5_0_1_mqtt311_4_5_0_1_every_matching_session_gets_the_message(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """A message is added to the state of every session with a matching subscription."""
    client = kept(broker, version)
    other = broker.service("other", version=version)
    other.subscribe("+", qos=1)
    client.vanish()
    publisher.publish("t", b"1", qos=1)
    exactly_once(publisher, "t", b"2")
    publisher.publish("elsewhere/t", b"3", qos=1)
    assert other.payloads() == [b"1", b"2"]
    client = back(client)
    assert [(message.payload, message.qos) for message in client.messages()] == [(b"1", 1), (b"2", 2)]
    client.subscribe("t/+", qos=1)
    client.subscribe("#", qos=0)
    client.vanish()
    publisher.publish("t/u", b"4", qos=1)  # Added through one of three subscriptions.
    assert back(client).payloads()[-1] == b"4"


def test_mqtt5_4_6_0_1_mqtt311_4_6_0_1_messages_come_again_in_their_first_order(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """PUBLISH packets are sent again in their first order."""
    client = kept(broker, version)
    client.session.inflight = None
    publisher.publish("t", b"0", qos=1)
    client.session.inflight._last_id = 65_533  # The identifiers begin again in the middle.
    for number in range(1, 7):
        publisher.send(publication("t", b"%d" % number, 1 + number % 2, packet_id=number))
    first, *_ = client.messages()
    client.acknowledge(first)
    assert back(client).payloads() == [b"1", b"2", b"3", b"4", b"5", b"6"]


def test_mqtt5_4_6_0_2_mqtt311_4_6_0_2_puback_packets_keep_the_order(publisher: WireClient) -> None:
    """PUBACK packets have the order of their PUBLISH packets."""
    order = [5, 2, 9, 1]
    publisher.send(*(publication(f"t/{number % 2}", qos=1, packet_id=number) for number in order))
    assert publisher.received() == [Puback(number) for number in order]


def test_mqtt5_4_6_0_3_mqtt311_4_6_0_3_pubrec_packets_keep_the_order(publisher: WireClient) -> None:
    """PUBREC packets have the order of their PUBLISH packets."""
    order = [5, 2, 9, 1]
    publisher.send(*(publication("t", qos=2, packet_id=number) for number in order))
    assert publisher.received() == [Pubrec(number) for number in order]


def test_mqtt5_4_6_0_4_mqtt311_4_6_0_4_pubrel_packets_keep_the_order(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """PUBREL packets have the order of their PUBREC packets."""
    client = kept(broker, version)
    for _ in range(4):
        exactly_once(publisher, "t")
    order = [identifier(message) for message in client.messages()][::-1]
    client.send(*map(Pubrec, order))
    assert client.received() == [Pubrel(number) for number in order]


def test_mqtt5_4_9_0_1_mqtt5_3_3_4_9_a_smaller_receive_maximum_holds_for_what_comes_again(
    broker: MemoryBroker, publisher5: WireClient
) -> None:
    """The first send quota is not 0, and not over the receive maximum."""
    client = kept(broker)
    for number in range(4):
        publisher5.publish("t", b"%d" % number, qos=1 + number % 2)
    assert len(client.messages()) == 4
    client.vanish()
    publisher5.publish("t", b"4", qos=1)
    smaller = broker.service("client", receive_maximum=1, **keeping(V5))
    seen = []
    while messages := smaller.messages():
        (message,) = messages  # One at a time, and each before what was never sent.
        seen.append(message.payload)
        if message.qos == 1:
            smaller.acknowledge(message)
        else:
            finish(smaller, message)
    assert seen == [b"0", b"1", b"2", b"3", b"4"]


def test_mqtt5_4_6_0_5_mqtt311_4_6_0_6_messages_keep_the_order_in_which_they_came(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """Messages of one client go out in the order in which they came, for each topic and QoS."""
    wide = broker.service("wide", version=version)
    wide.subscribe("t", qos=2)
    narrow = kept(broker, version)
    payloads = [b"%d" % number for number in range(30)]
    for number, payload in enumerate(payloads):
        if number == 10:
            narrow.vanish()  # Some wait for it.
        publisher.send(publication("t", payload, 1, packet_id=number + 1))
    assert wide.payloads() == payloads
    narrow = back(narrow)
    assert narrow.payloads() == payloads


def test_mqtt5_4_6_0_6_mqtt311_4_6_0_5_every_topic_is_ordered(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """Every topic is an ordered topic for subscriptions that are not shared."""
    client = broker.service("client", version=version, **durable(broker, version))
    client.subscribe("#", qos=2)
    sent = [(f"t/{number % 3}", b"%d" % number) for number in range(30)]
    for qos in (0, 1, 2):
        for number, (topic, payload) in enumerate(sent):
            publisher.send(publication(topic, payload, qos, packet_id=number + 1 if qos else None))
        messages = client.messages()
        assert [(message.topic, message.payload) for message in messages] == sent
        if qos == 1:
            client.acknowledge(*messages)
        elif qos == 2:
            finish(client, *messages)
        publisher.send(*(Pubrel(number + 1) for number in range(30) if qos == 2))
    mixed = [(topic, payload, 1 + number * number % 3) for number, (topic, payload) in enumerate(sent)]
    publisher.send(*(publication(*each, packet_id=number + 1) for number, each in enumerate(mixed)))  # Of either QoS.
    assert [(message.topic, message.payload, message.qos) for message in client.messages()] == mixed


def test_mqtt5_3_3_1_1_mqtt5_4_4_0_1_mqtt311_2_3_1_4_mqtt311_3_3_1_1_mqtt311_4_4_0_1_qos_1_is_the_same_after_a_restart(
    tmp_path: Path, version: ProtocolVersion
) -> None:
    """DUP is 1 when a PUBLISH is delivered again."""
    with contextlib.closing(StoredBroker(tmp_path, policy=OPEN_POLICY)) as broker:
        client = kept(broker, version)
        publisher = broker.service("publisher")
        for payload in (b"1", b"2", b"3"):
            publisher.publish("t", payload, qos=1)
        first = client.messages()[0]
        client.acknowledge(first)
        again = broker.killed().service("client", version=version, **keeping(version)).messages()
        assert [(message.packet_id, message.payload, message.dup) for message in again] == [
            (2, b"2", True),
            (3, b"3", True),
        ]
