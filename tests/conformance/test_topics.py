"""Sections 4.7 and 4.8: topic names and filters, shared subscriptions."""

from __future__ import annotations

import pytest

from broker.mqtt.acks import Puback, Pubrec
from broker.mqtt.codes import ReasonCode
from broker.mqtt.message import Message
from tests.conformance.scene import (
    assert_ended,
    exactly_once,
    finish,
    keeping,
    raw_publish,
    raw_subscribe,
    raw_unsubscribe,
)
from tests.support.wire import V5, MemoryBroker, WireClient, publication

FAILED = ReasonCode.UNSPECIFIED_ERROR


@pytest.mark.parametrize("topic", ["sport/#", "sport/+/player1", "+"])
def test_mqtt5_4_7_0_1_mqtt311_4_7_1_1_wildcards_are_for_filters(publisher: WireClient, topic: str) -> None:
    """Wildcards may be in filters, never in topic names."""
    assert not publisher.subscribe(topic).reason_codes[0].is_failure
    publisher.send_bytes(raw_publish(publisher.version, topic, first=0x32, packet_id=1))
    assert_ended(publisher)


@pytest.mark.parametrize("bad", ["sport/tennis#", "sport/tennis/#/ranking", "##", "#/", "a/#b"])
def test_mqtt5_4_7_1_1_mqtt311_4_7_1_2_the_multi_level_wildcard_stands_last(publisher: WireClient, bad: str) -> None:
    """'#' stands alone or behind a separator, and last."""
    for good in ("#", "sport/#", "/#"):
        assert not publisher.subscribe(good).reason_codes[0].is_failure
    publisher.send_bytes(raw_subscribe(publisher.version, bad))
    assert_ended(publisher)


@pytest.mark.parametrize("bad", ["sport+", "sport/+a", "++", "a+/b"])
def test_mqtt5_4_7_1_2_mqtt311_4_7_1_3_the_single_level_wildcard_is_a_level(publisher: WireClient, bad: str) -> None:
    """'+' is a whole level."""
    for good in ("+", "+/tennis/#", "sport/+/player1", "/+"):
        assert not publisher.subscribe(good).reason_codes[0].is_failure
    publisher.send_bytes(raw_subscribe(publisher.version, bad))
    assert_ended(publisher)


def test_mqtt5_4_7_2_1_mqtt311_4_7_2_1_wildcards_do_not_reach_the_brokers_own_topics(
    broker: MemoryBroker, publisher: WireClient, subscriber: WireClient
) -> None:
    """A filter that begins with a wildcard does not match a topic name that begins with '$'."""
    subscriber.subscribe("#", "+/x", "+/#")
    broker.engine.publish_own(Message(b"$SYS/x", b"1", retain=True), broker.now)
    publisher.publish("$SYS/x")
    subscriber.subscribe("#")
    assert subscriber.received() == []
    subscriber.subscribe("$SYS/#")
    assert subscriber.payloads() == [b"1"]


def test_mqtt5_4_7_3_1_mqtt311_4_7_3_1_nothing_is_no_topic(broker: MemoryBroker, publisher: WireClient) -> None:
    """Topic names and filters have at least one character."""
    version = publisher.version
    for packet in (raw_subscribe(version, ""), raw_unsubscribe(version, ""), raw_publish(version, "")):
        client = broker.service("client", version=version)
        client.send_bytes(packet)
        assert client.closed
    publisher.subscribe("/")
    publisher.publish("/", b"x")
    assert publisher.payloads() == [b"x"]


def test_mqtt5_4_7_3_2_mqtt311_4_7_3_2_the_null_character_is_in_no_topic(
    broker: MemoryBroker, publisher: WireClient
) -> None:
    """Topic names and filters do not hold U+0000."""
    version = publisher.version
    for packet in (raw_subscribe(version, "a\0"), raw_unsubscribe(version, "a\0"), raw_publish(version, "\0")):
        client = broker.service("client", version=version)
        client.send_bytes(packet)
        assert_ended(client)


def test_mqtt5_4_7_3_3_mqtt311_4_7_3_3_the_longest_topic_is_taken(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """Topic names and filters are strings of at most 65,535 bytes."""
    longest = "\N{SNOWMAN}" * 21_845
    assert len(longest.encode()) == 65_535
    subscriber.subscribe(longest, qos=1)
    publisher.publish(longest, b"x", qos=1)
    assert [message.topic for message in subscriber.messages()] == [longest]


def test_mqtt5_4_7_3_4_mqtt311_4_7_3_4_nothing_is_normalised(publisher: WireClient, subscriber: WireClient) -> None:
    """Matching normalises nothing and replaces nothing."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    subscriber.subscribe(composed, "a/b", "A/B", "/a", "x ")
    for topic in (decomposed, composed, "a/B", "a/b/", "a//b", "A/B", "a", "x", "x "):
        publisher.publish(topic)
    assert [message.topic for message in subscriber.messages()] == [composed, "A/B", "x "]


@pytest.mark.parametrize("bad", ["$share/", "$share//t"])
def test_mqtt5_4_8_2_1_a_share_has_a_name(publisher5: WireClient, bad: str) -> None:
    """A shared subscription begins with '$share/' and a share name of at least one character."""
    assert not publisher5.subscribe("$share/g/t").reason_codes[0].is_failure
    publisher5.send_bytes(raw_subscribe(V5, bad))
    assert_ended(publisher5)


@pytest.mark.parametrize(
    "bad",
    ["$share/g", "$share/g/", "$share/g+/t", "$share/g#/t", "$share/#/t", "$share/+/t", "$share/g/#/t", "$share/g/a+"],
)
def test_mqtt5_4_8_2_2_a_share_name_is_plain_and_a_filter_follows(publisher5: WireClient, bad: str) -> None:
    """A share name has no '/', '+' or '#', and is followed by '/' and a filter."""
    publisher5.send_bytes(raw_subscribe(V5, bad))
    assert_ended(publisher5)


def test_mqtt5_4_8_2_3_each_member_has_its_own_qos(broker: MemoryBroker, publisher5: WireClient) -> None:
    """A member of a share gets messages at its own granted QoS."""
    members = [broker.service(f"member-{qos}") for qos in (0, 1, 2)]
    for qos, member in enumerate(members):
        member.subscribe("$share/g/t", qos=qos)
    for _ in range(6):
        exactly_once(publisher5, "t")
    assert [[int(message.qos) for message in member.messages()] for member in members] == [[0, 0], [1, 1], [2, 2]]
    for _ in range(3):
        publisher5.publish("t", qos=1)
    assert [[int(message.qos) for message in member.messages()] for member in members] == [[0], [1], [1]]


def share_of_two(broker: MemoryBroker) -> tuple[WireClient, WireClient]:
    """Return two members of a share; the next message goes to the first of them."""
    members = []
    for name in ("first", "second"):
        client = broker.service(name, **keeping(V5))
        client.subscribe("$share/g/t", qos=2)
        members.append(client)
    return members[0], members[1]


def test_mqtt5_4_8_2_4_a_member_that_is_back_completes_its_delivery(
    broker: MemoryBroker, publisher5: WireClient
) -> None:
    """A QoS 2 delivery to a member of a share is completed when the client is back."""
    first, second = share_of_two(broker)
    exactly_once(publisher5, "t", b"1")
    (message,) = first.messages()
    first.vanish()
    broker.advance(60)
    assert second.received() == []
    back = broker.service("first", **keeping(V5))
    (again,) = back.messages()
    assert (again.packet_id, again.dup) == (message.packet_id, True)
    finish(back, again)
    assert second.received() == []


def test_mqtt5_4_8_2_5_a_session_that_ends_takes_its_qos_2_message_with_it(
    broker: MemoryBroker, publisher5: WireClient
) -> None:
    """If its session ends first, that QoS 2 message goes to no other member."""
    first, second = share_of_two(broker)
    exactly_once(publisher5, "t", b"twice")
    assert first.payloads() == [b"twice"]
    first.leave(session_expiry_interval=0)
    assert second.received() == []


def test_mqtt5_4_8_2_6_what_a_member_refuses_goes_to_no_other(broker: MemoryBroker, publisher5: WireClient) -> None:
    """A message that a member refuses with 0x80 or above goes to no other member."""
    first, second = share_of_two(broker)
    publisher5.publish("t", b"1", qos=1)
    publisher5.publish("t", b"for the second", qos=1)
    publisher5.send(publication("t", b"2", 2, packet_id=1))
    one, two = first.messages()
    first.send(Puback(one.packet_id or 0, FAILED), Pubrec(two.packet_id or 0, FAILED))
    first.leave(session_expiry_interval=0)
    assert second.payloads() == [b"for the second"]


@pytest.mark.parametrize("name", ["$SYS/x", "$SYS", "$SYS/x/y"])
def test_mqtt5_4_7_2_1_mqtt311_4_7_2_1_nor_what_is_retained_there(
    publisher: WireClient, subscriber: WireClient, name: str
) -> None:
    """A filter that begins with a wildcard does not match a topic name that begins with '$'."""
    publisher.publish(name, b"kept", qos=1, retain=True)
    wide = ("#", "+", "+/#", "+/x", "+/+", "+/x/#", "+/+/y")
    subscriber.subscribe(*wide, qos=1)
    publisher.publish(name, b"live", qos=1)
    publisher.publish(name, b"live")
    assert subscriber.received() == []
    first, *below = name.split("/")
    subscriber.subscribe("/".join([first, *("+" for _ in below)]))  # A wildcard may stand behind the first level.
    assert subscriber.payloads() == [b"kept"]
    subscriber.subscribe(f"{first}/#")
    assert subscriber.payloads() == [b"kept"]


@pytest.mark.parametrize("bad", ["$share/", "$share//t", "$share/g", "$share/#/t", "$share/g/a/#/b", "$share/g/a+"])
def test_mqtt5_4_8_2_1_mqtt5_4_8_2_2_unsubscribe_knows_a_share_too(publisher5: WireClient, bad: str) -> None:
    """A shared subscription begins with '$share/' and a share name of at least one character."""
    publisher5.subscribe("$share/g/t")
    assert publisher5.unsubscribe("$share/g/t").reason_codes == (ReasonCode.SUCCESS,)
    publisher5.send_bytes(raw_unsubscribe(V5, bad))
    assert_ended(publisher5)


@pytest.mark.parametrize("ends", ["expires", "clean start"])
def test_mqtt5_4_8_2_5_nor_does_it_when_the_session_ends_without_its_client(
    broker: MemoryBroker, publisher5: WireClient, ends: str
) -> None:
    """If its session ends first, that QoS 2 message goes to no other member."""
    first, second = share_of_two(broker)
    exactly_once(publisher5, "t", b"sent")
    assert first.payloads() == [b"sent"]
    first.vanish()
    if ends == "expires":
        broker.advance(3700)
        broker.keep_fresh()
    else:
        broker.service("first", clean_start=True)
    assert second.received() == []
    publisher = broker.service("another")
    exactly_once(publisher, "t", b"next")
    assert second.payloads() == [b"next"]


def test_mqtt5_4_8_2_5_a_released_message_goes_to_no_other_either(broker: MemoryBroker, publisher5: WireClient) -> None:
    """If its session ends first, that QoS 2 message goes to no other member."""
    first, second = share_of_two(broker)
    exactly_once(publisher5, "t", b"received")
    (message,) = first.messages()
    first.send(Pubrec(message.packet_id or 0))
    first.received()
    first.leave(session_expiry_interval=0)
    assert second.received() == []
