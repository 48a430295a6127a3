"""Chapters 1 and 2: data types, flags, packet identifiers, properties."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mqtt.acks import Puback, Pubcomp, Pubrec, Pubrel
from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.packets import Publish
from broker.mqtt.wire import encode_frame
from tests.conformance.scene import (
    ILL_FORMED,
    PROTOCOL_ERROR,
    assert_bad_connect,
    assert_closed_in_silence,
    assert_ended,
    exactly_once,
    keeping,
    raw_connect,
    raw_publish,
    raw_subscribe,
    raw_unsubscribe,
    raw_will,
    stranger,
    text,
    unlike_31,
)
from tests.support.wire import V5, MemoryBroker, WireClient, connect_packet, publication

STRINGS: dict[str, Any] = {
    "topic name": raw_publish,
    "topic name at QoS 1": lambda version, bad: raw_publish(version, bad, first=0x32, packet_id=1),
    "topic name at QoS 2": lambda version, bad: raw_publish(version, bad, first=0x34, packet_id=1),
    "topic name with RETAIN": lambda version, bad: raw_publish(version, bad, first=0x31),
    "filter of SUBSCRIBE": raw_subscribe,
    "filter of UNSUBSCRIBE": raw_unsubscribe,
}
"""Where strings are in every version."""

STRINGS_OF_PROPERTIES: dict[str, Any] = {
    "content type": lambda bad: raw_publish(V5, "t", properties=b"\x03" + text(bad)),
    "response topic": lambda bad: raw_publish(V5, "t", properties=b"\x08" + text(bad)),
    "user property of SUBSCRIBE": lambda bad: raw_subscribe(V5, "t", properties=b"\x26" + text(bad) + text("v")),
    "reason string of PUBACK": lambda bad: with_reason(0x40, bad),
    "reason string of PUBREC": lambda bad: with_reason(0x50, bad),
    "reason string of PUBREL": lambda bad: with_reason(0x62, bad),
    "reason string of PUBCOMP": lambda bad: with_reason(0x70, bad),
    "reason string of DISCONNECT": lambda bad: with_reason(0xE0, bad, packet_id=b""),
    "authentication method": lambda bad: encode_frame(0xF0, bytes((0, 3 + len(bad), 0x15)) + text(bad)),
}
"""Where they are in MQTT 5 alone."""

STRINGS_OF_CONNECT: dict[str, Any] = {
    "protocol name": lambda version, bad: encode_frame(0x10, text(bad) + bytes((version, 2, 0, 0)) + text("client")),
    "client identifier": lambda version, bad: raw_connect(version, client_id=bad),
    "will topic": lambda version, bad: raw_connect(version, raw_will(version, bad), flags=0x06),
    "user name": lambda version, bad: raw_connect(version, text(bad), flags=0x82),
}


def with_reason(first: int, bad: bytes, packet_id: bytes = b"\0\1") -> bytes:
    return encode_frame(first, packet_id + bytes((0, 3 + len(bad), 0x1F)) + text(bad))


@pytest.mark.parametrize("place", STRINGS)
@pytest.mark.parametrize("bad", ILL_FORMED)
def test_mqtt5_1_5_4_1_mqtt311_1_5_3_1_ill_formed_text_closes(publisher: WireClient, bad: bytes, place: str) -> None:
    """Strings are well-formed UTF-8 without surrogates."""
    publisher.send_bytes(STRINGS[place](publisher.version, b"a/" + bad))
    assert_ended(publisher)


@pytest.mark.parametrize("place", STRINGS)
def test_mqtt5_1_5_4_2_mqtt311_1_5_3_2_the_null_character_closes(publisher: WireClient, place: str) -> None:
    """No string holds U+0000."""
    publisher.send_bytes(STRINGS[place](publisher.version, b"a\0b"))
    assert_ended(publisher)


@pytest.mark.parametrize("place", STRINGS_OF_PROPERTIES)
@pytest.mark.parametrize("bad", [*ILL_FORMED, b"a\0"])
def test_mqtt5_1_5_4_1_mqtt5_1_5_4_2_ill_formed_text_in_a_property_closes(
    publisher5: WireClient, bad: bytes, place: str
) -> None:
    """Strings are well-formed UTF-8 without surrogates."""
    publisher5.send_bytes(STRINGS_OF_PROPERTIES[place](bad))
    assert_ended(publisher5)


@pytest.mark.parametrize("place", STRINGS_OF_CONNECT)
@pytest.mark.parametrize("bad", [*ILL_FORMED, b"a\0"])
def test_mqtt5_1_5_4_1_mqtt311_1_5_3_1_mqtt5_1_5_4_2_mqtt311_1_5_3_2_ill_formed_text_in_connect_closes(
    broker: MemoryBroker, version: ProtocolVersion, bad: bytes, place: str
) -> None:
    """Strings are well-formed UTF-8 without surrogates."""
    client = stranger(broker, version)
    client.send_bytes(STRINGS_OF_CONNECT[place](version, bad))
    if place == "protocol name":  # It could not be read, so the version is not known either.
        assert_closed_in_silence(client)
    else:
        assert_bad_connect(client)


def test_mqtt5_1_5_4_3_mqtt311_1_5_3_3_a_byte_order_mark_is_kept(subscriber: WireClient, publisher: WireClient) -> None:
    """The bytes EF BB BF are U+FEFF wherever they stand, and are not stripped."""
    topics = ["\ufefft", "a/\ufeff", "a\ufeffb"]
    subscriber.subscribe(*topics)
    for topic in ("t", "a/", "ab", *topics):
        for qos in (0, 2):
            publisher.publish(topic, qos=qos)
    assert [message.topic for message in subscriber.messages()] == [topic for topic in topics for _ in range(2)]


def test_mqtt5_1_5_5_1_lengths_are_as_short_as_can_be(publisher5: WireClient, subscriber5: WireClient) -> None:
    """A variable byte integer is as short as it can be."""
    subscriber5.subscribe("t")
    for size in (123, 124, 16_378, 16_379):  # A body of 127 and 128, of 16,383 and 16,384 bytes.
        publisher5.publish("t", bytes(size))
    assert [len(each) - len(each.lstrip(b"\x30")) for each in subscriber5.transport.packets] == [1] * 4
    assert len(subscriber5.messages()) == 4  # Read by a decoder that refuses longer lengths.
    publisher5.send_bytes(b"\xc0\x80\x00")
    assert_ended(publisher5)


@pytest.mark.parametrize(
    "packet",
    [
        encode_frame(0x30, text("t") + b"\x80\x00"),  # Property length.
        encode_frame(0x30, text("t") + b"\x82\x00\x01\x00"),
        encode_frame(0x32, text("t") + b"\0\1\x80\x00"),
        encode_frame(0x30, text("t") + b"\x03\x81\x00\x01"),  # Property identifier.
        encode_frame(0x82, b"\0\1\x03\x0b\x81\x00" + text("t") + b"\0"),  # Subscription identifier.
        encode_frame(0x82, b"\0\1\x06\x0b\xff\xff\xff\xff\x01" + text("t") + b"\0"),
        b"\x30\x84\x00\0\1t\0",  # Remaining length.
        b"\x30\x84\x80\x00\0\1t\0",
    ],
)
def test_mqtt5_1_5_5_1_no_length_is_longer_than_it_needs_to_be(publisher5: WireClient, packet: bytes) -> None:
    """A variable byte integer is as short as it can be."""
    publisher5.publish("t")  # The data path knows the topic.
    publisher5.send_bytes(packet)
    assert_ended(publisher5)


@pytest.mark.parametrize("pair", [text(b"\xff") + text("v"), text("k") + text(b"\xff"), text("k\0") + text("v")])
def test_mqtt5_1_5_7_1_both_strings_of_a_pair_are_checked(publisher5: WireClient, pair: bytes) -> None:
    """Both strings of a pair are UTF-8 strings."""
    publisher5.send_bytes(raw_publish(V5, "t", properties=b"\x26" + pair))
    assert_ended(publisher5)


WRONG_FLAGS: dict[str, Any] = {
    "PUBACK": lambda _version: encode_frame(0x41, b"\0\1"),
    "PUBREC": lambda _version: encode_frame(0x52, b"\0\1"),
    "PUBREL": lambda _version: encode_frame(0x60, b"\0\1"),
    "PUBCOMP": lambda _version: encode_frame(0x72, b"\0\1"),
    "SUBSCRIBE": lambda version: raw_subscribe(version, "t", first=0x80),
    "UNSUBSCRIBE": lambda version: raw_unsubscribe(version, "t", first=0xA0),
    "PINGREQ": lambda _version: encode_frame(0xC1, b""),
    "DISCONNECT": lambda _version: encode_frame(0xE8, b""),
}


@unlike_31
@pytest.mark.parametrize("kind", WRONG_FLAGS)
def test_mqtt5_2_1_3_1_mqtt311_2_2_2_2_wrong_flags_close(publisher: WireClient, kind: str) -> None:
    """Reserved flag bits have the values listed."""
    publisher.send_bytes(WRONG_FLAGS[kind](publisher.version))
    assert_ended(publisher)


@unlike_31
@pytest.mark.parametrize("first", [0x11, 0x12, 0x14, 0x18, 0x1F])
def test_mqtt5_2_1_3_1_mqtt311_2_2_2_2_wrong_flags_of_connect_close(
    broker: MemoryBroker, version: ProtocolVersion, first: int
) -> None:
    """Reserved flag bits have the values listed."""
    client = stranger(broker, version)
    client.send_bytes(bytes((first,)) + raw_connect(version)[1:])
    assert_bad_connect(client)


def test_mqtt311_2_2_2_1_the_brokers_own_flags_are_those_listed(version: ProtocolVersion, broker: MemoryBroker) -> None:
    """Reserved flag bits have the values listed."""
    client = broker.service("client", version=version)
    client.send_bytes(
        raw_subscribe(version, "t", 2)
        + raw_unsubscribe(version, "u", packet_id=2)
        + raw_publish(version, "t", first=0x32, packet_id=3)
        + raw_publish(version, "t", first=0x34, packet_id=4)
        + Pubrel(4).encode(version)
        + b"\xc0\0"
    )
    firsts = [each[0] for each in client.transport.packets]
    assert sorted(firsts) == [0x32, 0x34, 0x40, 0x50, 0x70, 0x90, 0xB0, 0xD0]
    delivered = [each for each in client.received() if isinstance(each, Publish)]
    client.send(*(Pubrec(each.packet_id or 0) for each in delivered if each.qos == 2))
    assert [each[0] for each in client.transport.packets] == [0x62]
    kept = broker.service("kept", version=version, **keeping(version))
    kept.subscribe("t", qos=2)
    for number in (1, 2, 3):
        client.send(publication("t", qos=1 + number % 2, packet_id=number))
    first = next(each for each in kept.messages() if each.qos == 2)
    kept.send(Pubrec(first.packet_id or 0))
    kept.vanish()
    back = stranger(broker, version, "kept")
    back.send(connect_packet(version, client_id="kept", **keeping(version)))
    firsts = sorted(each[0] for each in back.transport.packets)
    assert firsts == [0x20, 0x3A, 0x3C, 0x62]  # What is sent again has DUP, but a PUBREL has none.


def test_mqtt5_2_2_1_2_mqtt311_2_3_1_5_qos_0_has_no_identifier(publisher: WireClient, subscriber: WireClient) -> None:
    """A QoS 0 PUBLISH has no packet identifier."""
    subscriber.subscribe("t")
    publisher.publish("t", b"xy")
    assert list(subscriber.transport.packets) == [raw_publish(publisher.version, "t", b"xy")]


@pytest.mark.parametrize(
    "packet",
    [
        lambda version: raw_publish(version, "t", first=0x32, packet_id=0),
        lambda version: raw_publish(version, "t", first=0x34, packet_id=0),
        lambda version: raw_subscribe(version, "t", packet_id=0),
        lambda version: raw_unsubscribe(version, "t", packet_id=0),
    ],
)
def test_mqtt5_2_2_1_3_mqtt311_2_3_1_1_identifier_0_is_refused(publisher: WireClient, packet: Any) -> None:
    """A client gives each new SUBSCRIBE, UNSUBSCRIBE and PUBLISH above QoS 0 a non-zero unused identifier."""
    publisher.publish("t")  # The topic is known: the data path sees the next one.
    publisher.send_bytes(packet(publisher.version))
    assert_ended(publisher, PROTOCOL_ERROR)


def test_mqtt5_2_2_1_4_mqtt311_2_3_1_4_the_broker_chooses_unused_identifiers(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """A server gives each new PUBLISH above QoS 0 a non-zero unused identifier."""
    subscriber.subscribe("t", qos=2)
    for _ in range(3):
        publisher.publish("t", qos=1)
    used = [message.packet_id for message in subscriber.messages()]
    subscriber.session.inflight._last_id = 65_534
    for _ in range(3):
        publisher.publish("t", qos=1)
    fresh = [message.packet_id for message in subscriber.messages()]
    assert (used, fresh) == ([1, 2, 3], [65_535, 4, 5])


def test_mqtt311_2_3_1_4_an_identifier_is_kept_when_sent_again_and_free_afterwards(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """The same holds for a server that sends PUBLISH above QoS 0."""
    client = broker.service("client", version=version, **keeping(version))
    client.subscribe("t", qos=1)
    publisher.publish("t", qos=1)
    (first,) = client.messages()
    client.vanish()
    back = broker.service("client", version=version, **keeping(version))
    (again,) = back.messages()
    assert (again.packet_id, again.dup) == (first.packet_id, True)
    back.acknowledge(again)
    assert back.session.inflight.get(first.packet_id) is None


def test_mqtt5_2_2_1_5_mqtt311_2_3_1_6_acknowledgements_name_their_publish(
    publisher: WireClient, subscriber: WireClient
) -> None:
    """PUBACK, PUBREC, PUBREL and PUBCOMP have the identifier of their PUBLISH."""
    subscriber.subscribe("t", qos=2)
    publisher.send(publication("t", qos=1, packet_id=77), publication("t", qos=2, packet_id=88), Pubrel(88))
    assert publisher.received() == [Puback(77), Pubrec(88), Pubcomp(88)]
    _, second = subscriber.messages()
    assert second.packet_id is not None
    subscriber.send(Pubrec(second.packet_id))
    assert subscriber.received() == [Pubrel(second.packet_id)]


@pytest.mark.parametrize("first", [0x40, 0x50, 0x62, 0x70])
def test_mqtt5_2_2_1_5_mqtt311_2_3_1_6_no_acknowledgement_names_0(subscriber: WireClient, first: int) -> None:
    """PUBACK, PUBREC, PUBREL and PUBCOMP have the identifier of their PUBLISH."""
    subscriber.send_bytes(encode_frame(first, b"\x02\x09"))  # One that names nothing is no violation.
    assert not subscriber.closed
    subscriber.received()
    subscriber.send_bytes(encode_frame(first, b"\0\0"))
    assert_ended(subscriber, PROTOCOL_ERROR)


def test_mqtt5_2_2_1_6_mqtt311_2_3_1_7_suback_and_unsuback_name_their_request(subscriber: WireClient) -> None:
    """SUBACK and UNSUBACK have the identifier of their SUBSCRIBE or UNSUBSCRIBE."""
    version = subscriber.version
    subscriber.send_bytes(raw_subscribe(version, "t", packet_id=515) + raw_unsubscribe(version, "t", packet_id=516))
    assert [getattr(packet, "packet_id", None) for packet in subscriber.received()] == [515, 516]


def test_mqtt5_2_2_2_1_no_properties_are_a_length_of_0(subscriber5: WireClient, publisher5: WireClient) -> None:
    """No properties are a property length of 0."""
    subscriber5.send_bytes(raw_subscribe(V5, "t", packet_id=7))
    publisher5.publish("t", b"x")
    exactly_once(publisher5, "t", b"y")
    subscriber5.send_bytes(raw_unsubscribe(V5, "t", packet_id=8))
    assert list(subscriber5.transport.packets) == [
        b"\x90\x04\0\x07\0\0",
        b"\x30\x05\0\x01t\0x",
        b"\x30\x05\0\x01t\0y",
        b"\xb0\x04\0\x08\0\0",
    ]
