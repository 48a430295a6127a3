from __future__ import annotations

from dataclasses import fields

import pytest

from broker.mqtt.codes import PacketType, ReasonCode
from broker.mqtt.errors import MalformedPacket, PacketError, ProtocolError
from broker.mqtt.properties import (
    BINARY,
    NO_PROPERTIES,
    PROPERTY_RULES,
    STRING,
    WILL,
    Owner,
    Properties,
    PropertyRule,
    encode_properties,
    read_properties,
)
from broker.mqtt.wire import Reader, encode_variable_integer
from tests.support.packet_strategies import is_boolean


def read(section: bytes, owner: Owner) -> Properties:
    return read_properties(Reader(encode_variable_integer(len(section)) + section), owner)


def test_the_table_and_the_class_have_the_same_27_properties_in_the_same_order() -> None:
    assert [rule.attribute for rule in PROPERTY_RULES] == [each.name for each in fields(Properties)]
    assert len(PROPERTY_RULES) == 27
    assert [rule.identifier for rule in PROPERTY_RULES] == sorted({rule.identifier for rule in PROPERTY_RULES})


# How many properties Table 2-4 allows in each place.
@pytest.mark.parametrize(
    ("owner", "count"),
    [
        (PacketType.CONNECT, 9),
        (PacketType.CONNACK, 17),
        (PacketType.PUBLISH, 8),
        (WILL, 7),
        (PacketType.PUBACK, 2),
        (PacketType.PUBREC, 2),
        (PacketType.PUBREL, 2),
        (PacketType.PUBCOMP, 2),
        (PacketType.SUBSCRIBE, 2),
        (PacketType.SUBACK, 2),
        (PacketType.UNSUBSCRIBE, 1),
        (PacketType.UNSUBACK, 2),
        (PacketType.PINGREQ, 0),
        (PacketType.PINGRESP, 0),
        (PacketType.DISCONNECT, 4),
        (PacketType.AUTH, 4),
    ],
)
def test_each_place_allows_the_properties_of_the_standard(owner: Owner, count: int) -> None:
    assert sum(owner in rule.allowed_in for rule in PROPERTY_RULES) == count


def test_an_empty_section_is_the_shared_empty_value() -> None:
    assert read(b"", PacketType.CONNECT) is NO_PROPERTIES
    assert encode_properties(NO_PROPERTIES, PacketType.CONNECT) == b"\0"
    assert encode_properties(Properties(), PacketType.CONNECT) == b"\0"
    assert not Properties()
    assert Properties(topic_alias_maximum=0)


def test_user_properties_keep_their_order_and_their_duplicates() -> None:  # [MQTT-3.3.2-18]
    pairs = (("b", "1"), ("a", "2"), ("b", "1"))
    section = encode_properties(Properties(user_properties=pairs), PacketType.PUBLISH)

    assert read_properties(Reader(section), PacketType.PUBLISH).user_properties == pairs


@pytest.mark.parametrize("rule", [rule for rule in PROPERTY_RULES if not rule.repeats], ids=lambda rule: rule.name)
def test_a_property_that_comes_twice_is_a_protocol_error(rule: PropertyRule) -> None:
    value = True if is_boolean(rule) else {STRING: "a", BINARY: b"a"}.get(rule.wire_type, 1)
    owner = min(rule.allowed_in, key=str)
    properties = Properties(**{rule.attribute: value})  # type: ignore[arg-type]
    once = encode_properties(properties, owner)[1:]

    assert read(once, owner) == properties
    with pytest.raises(ProtocolError, match="more than once"):
        read(once + once, owner)


@pytest.mark.parametrize(
    ("section", "owner", "text", "reason_code"),
    [
        (b"\x01\x02", PacketType.PUBLISH, "payload format indicator: 2 is neither 0 nor 1", 0x82),
        (b"\x17\x02", PacketType.CONNECT, "request problem information: 2 is neither 0 nor 1", 0x82),
        (b"\x19\xff", PacketType.CONNECT, "request response information: 255 is neither 0 nor 1", 0x82),
        (b"\x21\x00\x00", PacketType.CONNECT, "receive maximum: 0 is not allowed", 0x82),
        (b"\x27\x00\x00\x00\x00", PacketType.CONNECT, "maximum packet size: 0 is not allowed", 0x82),
        (b"\x24\x02", PacketType.CONNACK, "maximum qos: 2 is neither 0 nor 1", 0x82),
        (b"\x25\x02", PacketType.CONNACK, "retain available: 2 is neither 0 nor 1", 0x82),
        (b"\x28\x02", PacketType.CONNACK, "wildcard subscription available: 2 is neither 0 nor 1", 0x82),
        (b"\x29\x02", PacketType.CONNACK, "subscription identifier available: 2 is neither 0 nor 1", 0x82),
        (b"\x2a\x02", PacketType.CONNACK, "shared subscription available: 2 is neither 0 nor 1", 0x82),
        (b"\x0b\x00", PacketType.SUBSCRIBE, "subscription identifiers: 0 is not allowed", 0x82),
        (
            b"\x0b\x80\x00",
            PacketType.SUBSCRIBE,
            "subscription identifiers: variable byte integer is longer than it needs to be",
            0x81,
        ),
        (b"\x23\x00\x00", PacketType.PUBLISH, "topic alias: 0 is not allowed", 0x94),
        (b"\x08\x00\x00", WILL, "response topic: topic name: must be at least one character long", 0x82),
        (b"\x7e\x00", PacketType.CONNECT, "property 0x7e: not a property of a CONNECT packet", 0x81),
        (b"\x23\x00\x01", PacketType.CONNECT, "topic alias: not a property of a CONNECT packet", 0x81),
        (b"\x11\x00", PacketType.CONNECT, "session expiry interval: 4 bytes needed, 1 left in the packet", 0x81),
        (b"\x26\x00\x01a", PacketType.CONNECT, "user properties value: 2 bytes needed, 0 left in the packet", 0x81),
        (b"\x26\x00\x01a\x00\x01\x00", PacketType.CONNECT, "user properties value: holds the null character", 0x81),
    ],
)
def test_a_bad_property_is_refused(section: bytes, owner: Owner, text: str, reason_code: int) -> None:
    with pytest.raises(PacketError) as caught:
        read(section, owner)

    assert (str(caught.value), caught.value.reason_code) == (text, reason_code)


def test_a_section_ends_within_the_packet() -> None:
    with pytest.raises(MalformedPacket, match="properties: 5 bytes needed, 3 left in the packet"):
        read_properties(Reader(b"\x05\x21\x00\x01"), PacketType.CONNECT)


def test_a_property_ends_within_its_section() -> None:
    with pytest.raises(MalformedPacket, match="receive maximum: 2 bytes needed, 1 left in the packet"):
        read_properties(Reader(b"\x02\x21\x00\x01"), PacketType.CONNECT)


def test_a_property_without_a_place_in_the_packet_is_our_error() -> None:
    with pytest.raises(ValueError, match="topic alias: not a property of a CONNECT packet"):
        encode_properties(Properties(topic_alias=1), PacketType.CONNECT)


def test_a_forbidden_value_can_be_written_on_purpose() -> None:
    section = encode_properties(Properties(receive_maximum=0), PacketType.CONNECT)

    with pytest.raises(ProtocolError) as caught:
        read_properties(Reader(section), PacketType.CONNECT)
    assert caught.value.reason_code is ReasonCode.PROTOCOL_ERROR


def test_a_repr_shows_what_is_present_and_no_secret() -> None:
    properties = Properties(receive_maximum=5, authentication_data=b"hunter2")

    assert repr(properties) == "Properties(authentication_data=<hidden>, receive_maximum=5)"
