"""Sections 3.8 to 3.11: SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.packets import Publish, Suback, Unsuback
from broker.mqtt.wire import encode_frame
from tests.conformance.scene import (
    ILL_FORMED,
    OPEN_POLICY,
    PROTOCOL_ERROR,
    assert_ended,
    durable,
    exactly_once,
    finish,
    keeping,
    late,
    raw_subscribe,
    raw_unsubscribe,
    section,
    text,
    unlike_31,
)
from tests.support.wire import V5, V311, MemoryBroker, WireClient, publication, request

QOS_0, QOS_1, QOS_2 = ReasonCode.GRANTED_QOS_0, ReasonCode.GRANTED_QOS_1, ReasonCode.GRANTED_QOS_2


@pytest.fixture
def meter(version: ProtocolVersion) -> WireClient:
    """A device under the real policy, which permits it only its own commands."""
    return MemoryBroker().device("meter-1", version=version)


@unlike_31
@pytest.mark.parametrize("first", [0x80, 0x81, 0x84, 0x8A])
def test_mqtt5_3_8_1_1_mqtt311_3_8_1_1_wrong_flags_of_subscribe_close(publisher: WireClient, first: int) -> None:
    """SUBSCRIBE has the flags 0010; anything else closes the connection."""
    publisher.send_bytes(raw_subscribe(publisher.version, "t", first=first))
    assert_ended(publisher)


@pytest.mark.parametrize("bad", [*ILL_FORMED, b"a\0"])
def test_mqtt5_3_8_3_1_mqtt311_3_8_3_1_filters_of_subscribe_are_text(publisher: WireClient, bad: bytes) -> None:
    """The filters of SUBSCRIBE are UTF-8 strings."""
    publisher.send_bytes(raw_subscribe(publisher.version, bad))
    assert_ended(publisher)


def test_mqtt5_3_8_3_2_mqtt311_3_8_3_3_subscribe_without_a_filter_closes(publisher: WireClient) -> None:
    """SUBSCRIBE has at least one filter."""
    publisher.send_bytes(encode_frame(0x82, b"\0\1" + section(publisher.version)))
    assert_ended(publisher, PROTOCOL_ERROR)


def test_mqtt5_3_8_3_3_no_local_keeps_a_clients_own_messages_away(broker: MemoryBroker, publisher5: WireClient) -> None:
    """No Local: a message is not forwarded to a connection with its publisher's client identifier."""
    client = broker.service("client", **keeping(V5))
    client.subscribe(request("t", 1, no_local=True))
    for qos in (0, 1):
        client.send(publication("t", b"own", qos, packet_id=qos or None))
        publisher5.publish("t", b"other", qos=qos)
    assert [packet.payload for packet in client.received() if isinstance(packet, Publish)] == [b"other", b"other"]
    client.vanish()
    back = broker.service("client", **keeping(V5))  # Another connection, the same client identifier.
    back.received()
    back.send(publication("t", b"own"))
    assert back.received() == []


@pytest.mark.parametrize("known", [False, True])
def test_mqtt5_3_8_3_3_an_own_message_comes_only_through_the_other_subscription(
    broker: MemoryBroker, publisher5: WireClient, known: bool
) -> None:
    """No Local: a message is not forwarded to a connection with its publisher's client identifier."""
    client = broker.service("client")
    client.send_bytes(raw_subscribe(V5, "#", 0x05, packet_id=1, properties=b"\x0b\x07"))  # No Local, QoS 1.
    client.send_bytes(raw_subscribe(V5, "t", 0x00, packet_id=2))
    if known:
        client.publish("t")  # From here on the data path knows the topic.
    client.received()
    client.send(publication("t", b"own", 1, packet_id=1))
    publisher5.publish("t", b"other", qos=1)
    own, other = [packet for packet in client.received() if isinstance(packet, Publish)]
    assert (own.payload, own.qos, own.properties.subscription_identifiers) == (b"own", 0, ())
    assert (other.payload, other.qos, other.properties.subscription_identifiers) == (b"other", 1, (7,))


def test_mqtt5_3_8_3_3_an_own_retained_message_does_not_come_either(
    broker: MemoryBroker, publisher5: WireClient
) -> None:
    """No Local: a message is not forwarded to a connection with its publisher's client identifier."""
    client = broker.service("client")
    client.publish("t/own", b"own", retain=True)
    publisher5.publish("t/other", b"other", retain=True)
    client.subscribe(request("t/#", no_local=True))
    assert client.payloads() == [b"other"]
    client.vanish()
    back = broker.service("client")  # Another connection, another session even, the same client identifier.
    back.subscribe(request("t/#", no_local=True))
    assert back.payloads() == [b"other"]
    back.subscribe(request("t/#"))
    assert sorted(back.payloads()) == [b"other", b"own"]


def test_mqtt5_3_8_3_4_no_local_on_a_share_closes(publisher5: WireClient) -> None:
    """No Local on a shared subscription is a protocol error."""
    publisher5.send_bytes(raw_subscribe(V5, "$share/g/t", 0x04))
    assert_ended(publisher5, PROTOCOL_ERROR)


@pytest.mark.parametrize("options", [0x40, 0x80, 0xC1])
def test_mqtt5_3_8_3_5_a_reserved_option_closes(publisher5: WireClient, options: int) -> None:
    """A reserved bit in the subscription options makes SUBSCRIBE malformed."""
    publisher5.send_bytes(raw_subscribe(V5, "t", options))
    assert_ended(publisher5)


@pytest.mark.parametrize("options", [0x03, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80])
def test_mqtt311_3_8_3_4_a_reserved_bit_or_qos_3_closes(broker: MemoryBroker, options: int) -> None:
    """A reserved bit or QoS 3 in SUBSCRIBE closes the connection."""
    client = broker.service("client", version=V311)
    client.send_bytes(raw_subscribe(V311, "t", options))
    assert_ended(client)


def test_mqtt5_3_8_4_1_mqtt311_3_8_4_1_subscribe_is_answered(subscriber: WireClient) -> None:
    """SUBSCRIBE is answered with SUBACK."""
    assert subscriber.subscribe("t").reason_codes == (QOS_0,)


def test_mqtt5_3_8_4_2_mqtt311_3_8_4_2_with_the_same_identifier(subscriber: WireClient) -> None:
    """SUBACK has the identifier of its SUBSCRIBE."""
    for packet_id in (65_535, 1, 256):
        subscriber.send_bytes(raw_subscribe(subscriber.version, "t", packet_id=packet_id))
        assert subscriber.next_packet(Suback).packet_id == packet_id


def test_mqtt5_3_8_4_3_the_same_filter_replaces(publisher5: WireClient, subscriber5: WireClient) -> None:
    """The same filter again replaces the subscription."""
    subscriber5.subscribe("t", qos=0, identifier=1)
    subscriber5.subscribe("t", qos=1, identifier=2)
    publisher5.publish("t", qos=1)
    (message,) = subscriber5.messages()
    assert (message.qos, message.properties.subscription_identifiers) == (1, (2,))
    subscriber5.unsubscribe("t")
    publisher5.publish("t", qos=1)
    assert subscriber5.received() == []


def test_mqtt311_3_8_4_3_the_same_filter_replaces_and_retained_messages_come_again(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """The same filter again replaces the subscription; retained messages are sent again, and none is missed."""
    publisher.publish("t", b"kept", qos=1, retain=True)
    for qos in (0, 1, 0):
        subscriber.subscribe("t", qos=qos)
        assert [(message.payload, message.qos) for message in subscriber.messages()] == [(b"kept", qos)]
    publisher.publish("t", b"live", qos=1)
    assert [(message.payload, message.qos) for message in subscriber.messages()] == [(b"live", 0)]


def test_mqtt5_3_8_4_4_mqtt311_3_8_4_3_a_replaced_subscription_misses_nothing(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """Replaced with retain handling 0, retained messages are sent again; no message is missed."""
    narrow = type(broker)(policy=OPEN_POLICY, max_inflight=1)  # All but one message wait.
    client = narrow.service("client", version=version, **durable(narrow, version))
    publisher = narrow.service("publisher", version=version)
    client.subscribe("t", qos=1)
    publisher.publish("t", b"1", qos=1, retain=True)
    publisher.publish("t", b"2", qos=1)
    client.send_bytes(raw_subscribe(version, "t", 1))
    publisher.publish("t", b"3", qos=1)
    seen = []
    while messages := [packet for packet in client.received() if isinstance(packet, Publish)]:
        seen += [message.payload for message in messages]
        client.acknowledge(*messages)
    assert seen == [b"1", b"2", b"1", b"3"]  # The second "1" is the retained message.


def test_mqtt5_3_8_4_5_mqtt311_3_8_4_4_several_filters_have_one_answer(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """Several filters in one SUBSCRIBE are as several SUBSCRIBE packets, with one SUBACK."""
    publisher.publish("a", b"kept", retain=True)
    answer = subscriber.subscribe(request("a", 0), request("b", 1), request("a", 2))
    assert answer.reason_codes == (QOS_0, QOS_1, QOS_2)
    assert len(subscriber.messages()) == 2  # As if "a" had been subscribed twice.
    exactly_once(publisher, "a")
    assert [message.qos for message in subscriber.messages()] == [2]  # The last one stands.


def test_mqtt5_3_8_4_6_each_filter_has_a_reason_code(subscriber5: WireClient) -> None:
    """SUBACK has a reason code for each filter."""
    answer = subscriber5.subscribe(*[request(f"t/{number}", number % 3) for number in range(30)])
    assert len(answer.reason_codes) == 30


@unlike_31
def test_mqtt5_3_8_4_7_mqtt311_3_8_4_5_each_is_the_granted_qos_or_a_failure(meter: WireClient) -> None:
    """Each reason code is the QoS that was granted, or a failure."""
    own = "fleet/meters/meter-1/cmd/#"
    answer = meter.subscribe(request(own, 0), request(own, 1), request("elsewhere", 1), request(own, 2))
    denied = ReasonCode.NOT_AUTHORIZED if meter.version is V5 else ReasonCode.UNSPECIFIED_ERROR
    assert answer.reason_codes == (QOS_0, QOS_1, denied, QOS_2)


def test_mqtt5_3_8_4_8_mqtt311_3_8_4_6_the_lower_qos_decides(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """A message goes out at the lower of its QoS and the granted one."""
    seen = []
    for granted in (0, 1, 2):
        client = broker.service(f"client-{granted}", version=version)
        client.subscribe("t", qos=granted)
        publisher.publish("t")
        publisher.publish("t", qos=1)
        exactly_once(publisher, "t")
        seen.append([int(message.qos) for message in client.messages()])
    assert seen == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    for qos in (0, 1, 2):
        publisher.publish(f"kept/{qos}", b"x", qos=qos, retain=True)
    for granted in (0, 1, 2):
        messages = late(broker, "kept/#", version=version, qos=granted).messages()
        assert {(message.topic, int(message.qos)) for message in messages} == {
            (f"kept/{qos}", min(qos, granted)) for qos in (0, 1, 2)
        }


@pytest.mark.parametrize(
    "connect", [{}, {"topic_alias_maximum": 2}, {"maximum_packet_size": 1000}], ids=["plain", "aliases", "size"]
)
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_mqtt5_3_8_4_8_the_lower_qos_decides_whatever_else_a_client_asks_for(
    broker: MemoryBroker, publisher5: WireClient, granted: int, connect: Any
) -> None:
    """A message goes out at the lower of its QoS and the granted one."""
    client = broker.service("client", **connect)
    client.subscribe("identified", qos=granted, identifier=1)
    client.subscribe(request("not/own", granted, no_local=True))
    client.subscribe(request("flagged", granted, retain_as_published=True))
    client.subscribe("$share/g/shared", "plain", qos=granted)
    for topic in ("identified", "not/own", "flagged", "shared", "plain"):
        for qos in (0, 1, 2):
            publisher5.publish(topic, qos=qos)
        assert [int(message.qos) for message in client.messages()] == [min(qos, granted) for qos in (0, 1, 2)]


def test_mqtt5_3_9_2_1_suback_leaves_its_reason_string_out_where_there_is_no_room() -> None:
    """SUBACK leaves out a reason string that would make it too large."""
    roomy = MemoryBroker().device("meter-1").subscribe("elsewhere")
    assert roomy.properties.reason_string
    small = MemoryBroker().device("meter-1", maximum_packet_size=len(roomy.encode(V5)) - 1)
    answer = small.subscribe("elsewhere")
    assert answer.properties.reason_string is None
    assert answer.reason_codes == roomy.reason_codes


def test_mqtt5_3_9_2_2_suback_has_no_user_properties_to_leave_out() -> None:
    """SUBACK leaves out user properties that would make it too large."""
    assert MemoryBroker().device("meter-1").subscribe("elsewhere").properties.user_properties == ()


@unlike_31
def test_mqtt5_3_9_3_1_mqtt311_3_9_3_1_the_codes_of_suback_have_the_order_of_the_filters(meter: WireClient) -> None:
    """The reason codes of SUBACK have the order of the filters."""
    own = "fleet/meters/meter-1/cmd/x"
    answer = meter.subscribe(request("no", 0), request(own, 2), request("no", 1), request(own, 0), request(own, 1))
    assert [code if not code.is_failure else None for code in answer.reason_codes] == [None, QOS_2, None, QOS_0, QOS_1]


def test_mqtt5_3_9_3_2_suback_has_reason_codes_of_its_own() -> None:
    """SUBACK has one of its own reason codes for each filter."""
    meter = MemoryBroker(max_subscriptions=1).device("meter-1")
    own = "fleet/meters/meter-1/cmd/"
    answer = meter.subscribe(own + "a", own + "b", own + "x/" * 80, "elsewhere")
    assert answer.reason_codes == (
        QOS_0,
        ReasonCode.QUOTA_EXCEEDED,
        ReasonCode.TOPIC_FILTER_INVALID,
        ReasonCode.NOT_AUTHORIZED,
    )


def test_mqtt311_3_9_3_2_every_failure_is_0x80() -> None:
    """The return codes of SUBACK are 0, 1, 2 and 0x80, and no others."""
    meter = MemoryBroker(max_subscriptions=1).device("meter-1", version=V311)
    own = "fleet/meters/meter-1/cmd/"
    body = b"".join(text(each) + b"\2" for each in (own + "a", own + "b", own + "x/" * 80, "elsewhere"))
    meter.send_bytes(encode_frame(0x82, b"\0\1" + body))
    assert meter.transport.packets[0][4:] == b"\x02\x80\x80\x80"


@unlike_31
@pytest.mark.parametrize("first", [0xA0, 0xA1, 0xA4, 0xAA])
def test_mqtt5_3_10_1_1_mqtt311_3_10_1_1_wrong_flags_of_unsubscribe_close(publisher: WireClient, first: int) -> None:
    """UNSUBSCRIBE has the flags 0010; anything else closes the connection."""
    publisher.send_bytes(raw_unsubscribe(publisher.version, "t", first=first))
    assert_ended(publisher)


@pytest.mark.parametrize("bad", [*ILL_FORMED, b"a\0"])
def test_mqtt5_3_10_3_1_mqtt311_3_10_3_1_filters_of_unsubscribe_are_text(publisher: WireClient, bad: bytes) -> None:
    """The filters of UNSUBSCRIBE are UTF-8 strings."""
    publisher.send_bytes(raw_unsubscribe(publisher.version, bad))
    assert_ended(publisher)


def test_mqtt5_3_10_3_2_mqtt311_3_10_3_2_unsubscribe_without_a_filter_closes(publisher: WireClient) -> None:
    """UNSUBSCRIBE has at least one filter."""
    publisher.send_bytes(encode_frame(0xA2, b"\0\1" + section(publisher.version)))
    assert_ended(publisher, PROTOCOL_ERROR)


def test_mqtt5_3_10_4_1_mqtt311_3_10_4_1_filters_are_compared_character_by_character(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """UNSUBSCRIBE compares filters character by character; an exact match ends the subscription."""
    subscriber.subscribe("a/+", qos=1)
    subscriber.unsubscribe("a/b", "a/#", "A/+", "a/+/", "+/+", "#")
    publisher.publish("a/b", b"1", qos=1)
    assert subscriber.payloads() == [b"1"]
    subscriber.unsubscribe("a/+")
    publisher.publish("a/b", b"2", qos=1)
    assert subscriber.received() == []


def test_mqtt5_3_10_4_2_mqtt311_3_10_4_2_after_unsubscribe_nothing_new_comes(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """After UNSUBSCRIBE no new message is added."""
    subscriber.subscribe("t", qos=2)
    subscriber.unsubscribe("t")
    publisher.publish("t")
    publisher.publish("t", qos=1)
    exactly_once(publisher, "t")
    assert subscriber.received() == []


def test_mqtt5_3_10_4_2_mqtt311_3_10_4_2_nor_for_a_client_that_is_away(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """After UNSUBSCRIBE no new message is added."""
    client = broker.service("client", version=version, **keeping(version))
    client.subscribe("t", "t/+", "$share/g/u", qos=2)
    publisher.publish("t", b"before", qos=1)
    publisher.publish("u", b"before", qos=1)
    assert client.payloads() == [b"before", b"before"]
    client.unsubscribe("t", "$share/g/u")
    client.vanish()
    for qos in (1, 2):
        publisher.publish("t", b"after", qos=qos)
        publisher.publish("u", b"after", qos=qos)
    publisher.publish("t/other", b"still", qos=1)
    back = broker.service("client", version=version, **keeping(version))
    assert [message.payload for message in back.messages() if not message.dup] == [b"still"]


def test_mqtt5_3_10_4_3_mqtt311_3_10_4_3_what_has_begun_is_completed(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """After UNSUBSCRIBE a delivery that has begun is completed."""
    client = broker.service("client", version=version, **keeping(version))
    client.subscribe("t", qos=2)
    publisher.publish("t", b"1", qos=1)
    exactly_once(publisher, "t", b"2")
    client.send_bytes(raw_unsubscribe(version, "t"))
    assert [type(packet) for packet in client.received()] == [Publish, Publish, Unsuback]
    client.vanish()
    back = broker.service("client", version=version, **keeping(version))
    first, second = back.messages()
    back.acknowledge(first)
    finish(back, second)
    back.vanish()
    assert broker.service("client", version=version, **keeping(version)).received() == []


def test_mqtt5_3_10_4_4_mqtt311_3_10_4_4_unsubscribe_is_answered(subscriber: WireClient) -> None:
    """UNSUBSCRIBE is answered with UNSUBACK."""
    subscriber.subscribe("t")
    subscriber.send_bytes(raw_unsubscribe(subscriber.version, "t", packet_id=777))
    assert subscriber.next_packet(Unsuback).packet_id == 777


def test_mqtt5_3_10_4_5_mqtt311_3_10_4_5_even_where_nothing_was_subscribed(subscriber: WireClient) -> None:
    """UNSUBACK has the identifier of its UNSUBSCRIBE, even where nothing was deleted."""
    subscriber.send_bytes(raw_unsubscribe(subscriber.version, "t", packet_id=778))
    answer = subscriber.next_packet(Unsuback)
    assert answer.packet_id == 778
    assert answer.reason_codes == ((ReasonCode.NO_SUBSCRIPTION_EXISTED,) if subscriber.version is V5 else ())


def test_mqtt5_3_10_4_6_mqtt311_3_10_4_6_several_filters_have_one_unsuback(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """Several filters in one UNSUBSCRIBE are as several UNSUBSCRIBE packets, with one UNSUBACK."""
    subscriber.subscribe("a", "b", "c")
    subscriber.unsubscribe("a", "nothing", "c", "a")
    for topic in ("a", "b", "c"):
        publisher.publish(topic)
    assert [message.topic for message in subscriber.messages()] == ["b"]


def test_mqtt5_3_11_2_1_mqtt5_3_11_2_2_unsuback_has_nothing_to_leave_out(subscriber5: WireClient) -> None:
    """UNSUBACK leaves out a reason string that would make it too large."""
    assert not subscriber5.unsubscribe("t").properties


def test_mqtt5_3_11_3_1_the_codes_of_unsuback_have_the_order_of_the_filters(subscriber5: WireClient) -> None:
    """The reason codes of UNSUBACK have the order of the filters."""
    subscriber5.subscribe("b", "$share/g/d")
    answer = subscriber5.unsubscribe("a", "b", "c", "$share/g/d", "b")
    none, gone = ReasonCode.NO_SUBSCRIPTION_EXISTED, ReasonCode.SUCCESS
    assert answer.reason_codes == (none, gone, none, gone, none)


@pytest.mark.parametrize("filters", [("t",), ("nothing",), ("t", "nothing", "t")])
def test_mqtt5_3_11_3_2_unsuback_has_reason_codes_of_its_own(subscriber5: WireClient, filters: Any) -> None:
    """UNSUBACK has one of its own reason codes for each filter."""
    subscriber5.subscribe("t")
    codes = subscriber5.unsubscribe(*filters).reason_codes  # Its decoder knows those of the table, and no others.
    assert len(codes) == len(filters)
