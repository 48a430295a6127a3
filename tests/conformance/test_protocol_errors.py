"""Section 4.13, more closely: what the standard calls a Malformed Packet or a Protocol Error, packet by packet."""

from __future__ import annotations

import pytest

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.wire import encode_frame
from tests.conformance.scene import (
    MALFORMED,
    PROTOCOL_ERROR,
    WILL_FLAG,
    assert_bad_connect,
    assert_ended,
    raw_connect,
    raw_publish,
    raw_subscribe,
    raw_unsubscribe,
    stranger,
    text,
)
from tests.support.wire import V5, MemoryBroker, WireClient

ALIAS_INVALID = ReasonCode.TOPIC_ALIAS_INVALID
LONG_ZERO = b"\x80\x00"
"""A Variable Byte Integer of two bytes where one will do."""


def disconnect(properties: bytes) -> bytes:
    return encode_frame(0xE0, bytes((0, len(properties))) + properties)


def publish(properties: bytes) -> bytes:
    return raw_publish(V5, "t", b"x", properties=properties)


def subscribe(properties: bytes = b"", options: int = 0) -> bytes:
    return raw_subscribe(V5, "t", options, properties=properties)


TWICE = {
    "payload format indicator": b"\x01\x00",
    "message expiry interval": b"\x02\0\0\0\x01",
    "content type": b"\x03" + text("a"),
    "response topic": b"\x08" + text("a"),
    "correlation data": b"\x09" + text("a"),
    "topic alias": b"\x23\0\x01",
}
"""The properties that a PUBLISH may have once; the user property is the only one that may be repeated."""


@pytest.mark.parametrize("name", TWICE)
def test_mqtt5_4_13_1_1_a_property_of_publish_comes_once(publisher5: WireClient, name: str) -> None:
    """A malformed packet or protocol error closes the connection."""
    publisher5.send_bytes(publish(TWICE[name]))
    publisher5.send_bytes(publish((b"\x26" + text("k") + text("v")) * 2))
    assert not publisher5.closed
    publisher5.send_bytes(publish(TWICE[name] * 2))
    assert_ended(publisher5, PROTOCOL_ERROR)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (publish(b"\x01\x02"), PROTOCOL_ERROR),  # Payload format indicator 2.
        (publish(b"\x11\0\0\0\x01"), MALFORMED),  # A session expiry interval is no property of PUBLISH.
        (publish(b"\x18\0\0\0\x01"), MALFORMED),  # Nor is a will delay interval.
        (publish(b"\x7f\x01"), MALFORMED),  # No property at all.
        (publish(b"\x02\0\0\x01"), MALFORMED),  # A four byte integer of three bytes.
        (publish(b"\x03\0\x05a"), MALFORMED),  # A string that is longer than the properties.
        (encode_frame(0x30, text("t") + b"\x05\x01\x01"), MALFORMED),  # Properties longer than the packet.
        (encode_frame(0x30, text("t") + LONG_ZERO + b"x"), MALFORMED),
        (encode_frame(0x30, text("t")), MALFORMED),  # No property length.
        (encode_frame(0x32, text("t") + b"\0"), MALFORMED),  # Half an identifier.
        (encode_frame(0x30, b"\0"), MALFORMED),  # Half a topic length.
        (encode_frame(0x30, b"\0\x05abc"), MALFORMED),  # A topic longer than the packet.
        (raw_publish(V5, "", b"x"), PROTOCOL_ERROR),  # Neither a topic nor an alias.
        (raw_publish(V5, "", b"x", properties=b"\x23\0\x01"), PROTOCOL_ERROR),  # An alias that stands for nothing.
        (publish(b"\x23\0\0"), ALIAS_INVALID),
        (subscribe(b"\x0b\x00"), PROTOCOL_ERROR),  # Subscription identifier 0.
        (subscribe(b"\x0b" + LONG_ZERO), MALFORMED),
        (subscribe(b"\x0b\x01\x0b\x01"), PROTOCOL_ERROR),
        (subscribe(b"\x23\0\x01"), MALFORMED),
        (subscribe(options=0x03), PROTOCOL_ERROR),  # QoS 3.
        (subscribe(options=0x30), PROTOCOL_ERROR),  # Retain handling 3.
        (encode_frame(0x82, b"\0\x01\0" + text("t")), MALFORMED),  # No options.
        (raw_unsubscribe(V5, "$share/g"), MALFORMED),
        (encode_frame(0xA2, b"\0\x01\x03\x0b\x01" + text("t")), MALFORMED),
        (disconnect(b"\x11\0\0\0\x01"), PROTOCOL_ERROR),  # The session expiry interval was 0 in CONNECT.
        (disconnect(b"\x11\0\0\0\0" * 2), PROTOCOL_ERROR),
        (disconnect(b"\x21\0\x01"), MALFORMED),
        (encode_frame(0x40, b"\0\x01\0\x02\x1f\0"), MALFORMED),  # Half a reason string.
        (encode_frame(0x40, b"\0\x01\0\0\0"), MALFORMED),  # Something behind the properties.
        (encode_frame(0x40, b"\0"), MALFORMED),
        (encode_frame(0xF0, b"\x18\0"), PROTOCOL_ERROR),  # AUTH without a method.
        (encode_frame(0xC0, b"\0"), MALFORMED),
        (b"\xc0\x80\x00", MALFORMED),
        (b"\x90\x04\0\x01\0\0", PROTOCOL_ERROR),  # SUBACK from a client.
        (b"\xb0\x04\0\x01\0\0", PROTOCOL_ERROR),  # UNSUBACK.
    ],
)
def test_mqtt5_4_13_1_1_each_is_told_which_of_both(broker: MemoryBroker, packet: bytes, reason: ReasonCode) -> None:
    """A malformed packet or protocol error closes the connection."""
    client = broker.service("client")
    client.send_bytes(packet)
    assert_ended(client, reason)


@pytest.mark.parametrize(
    "properties",
    [
        b"\x11\0\0\0\x01" * 2,  # Session expiry interval.
        b"\x21\0\x01" * 2,  # Receive maximum.
        b"\x21\0\0",
        b"\x27\0\0\0\xff" * 2,  # Maximum packet size.
        b"\x27\0\0\0\0",
        b"\x22\0\x01" * 2,  # Topic alias maximum.
        b"\x19\x01" * 2,  # Request response information.
        b"\x19\x02",
        b"\x17\x01" * 2,  # Request problem information.
        b"\x17\x02",
        b"\x15" + text("m") + b"\x15" + text("m"),  # Authentication method.
        b"\x16" + text("d"),  # Authentication data without a method.
        b"\x1f" + text("because"),  # A reason string is no property of CONNECT.
        b"\x26" + text("k"),  # Half a user property.
        b"\x11\0\0\x01",
        b"\x7f\x01",
    ],
)
def test_mqtt5_4_13_1_1_mqtt5_3_1_4_1_a_bad_property_of_connect_closes(broker: MemoryBroker, properties: bytes) -> None:
    """A malformed packet or protocol error closes the connection."""
    client = stranger(broker, V5)
    client.send_bytes(raw_connect(V5, properties=properties))
    assert_bad_connect(client)


@pytest.mark.parametrize(
    "properties",
    [
        b"\x18\0\0\0\x01" * 2,  # Will delay interval.
        b"\x01\x00" * 2,  # Payload format indicator.
        b"\x01\x02",
        b"\x02\0\0\0\x01" * 2,  # Message expiry interval.
        b"\x03" + text("a") + b"\x03" + text("a"),  # Content type.
        b"\x08" + text("a") + b"\x08" + text("a"),  # Response topic.
        b"\x08" + text("a/#"),
        b"\x09" + text("a") + b"\x09" + text("a"),  # Correlation data.
        b"\x23\0\x01",  # A topic alias is no property of a will.
    ],
)
def test_mqtt5_4_13_1_1_mqtt5_3_1_4_1_a_bad_property_of_a_will_closes(broker: MemoryBroker, properties: bytes) -> None:
    """A malformed packet or protocol error closes the connection."""
    fields = bytes((len(properties),)) + properties + text("will") + text("gone")
    client = stranger(broker, V5)
    client.send_bytes(raw_connect(V5, fields, flags=0x02 | WILL_FLAG))
    assert_bad_connect(client)


@pytest.mark.parametrize(
    "packet",
    [
        b"\x00\x00",
        b"\xf0\x00",  # Type 15 is reserved before MQTT 5.
        b"\x90\x03\0\x01\0",  # SUBACK from a client.
        b"\xb0\x02\0\x01",  # UNSUBACK.
        b"\xd0\x00",  # PINGRESP.
        b"\xc0\x01\0",
        b"\xe0\x01\0",  # DISCONNECT has no body before MQTT 5.
        b"\x40\x03\0\x01\0",  # Nor PUBACK a reason code.
        b"\x50\x01\0",
        b"\x62\x00",
        b"\x70\x01\0",
        b"\x30\x01\0",
        b"\x30\x04\0\x05ab",
        b"\x32\x04\0\x01t\0",
        b"\x82\x04\0\x01\0\x01",  # A filter that is not there.
        b"\x82\x05\0\x01\0\x01t",  # No QoS.
        b"\xa2\x04\0\x01\0\x01",
    ],
)
def test_mqtt311_4_8_0_1_each_violation_closes(broker: MemoryBroker, packet: bytes) -> None:
    """A protocol violation closes the connection it came on."""
    other = broker.service("other", version=ProtocolVersion.V311)
    client = broker.service("client", version=ProtocolVersion.V311)
    client.send_bytes(packet + b"\xc0\0")
    assert_ended(client)
    assert not other.closed
