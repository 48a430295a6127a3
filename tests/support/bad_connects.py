"""CONNECT and CONNACK packets that break one rule of the standard each."""

from __future__ import annotations

from broker.mqtt.codes import ReasonCode
from tests.support.bad_packet import MALFORMED, PROTOCOL, V5, V311, BadPacket

CONNECT_V311 = b"\x00\x04MQTT\x04"
CONNECT_V5 = b"\x00\x04MQTT\x05"

BAD_CONNECTS = (
    # CONNECT: variable header
    BadPacket(
        "the protocol name is MQTT",
        V5,
        0x10,
        b"\x00\x04MQTX\x05\x02\x00\x00\x00\x00\x00",
        ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
        "protocol name 'MQTX' version 5: use 'MQTT' with 5 or 4, or 'MQIsdp' with 3",
    ),
    BadPacket(
        "the protocol version is one that we speak",
        V5,
        0x10,
        b"\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x00",
        ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
        "protocol name 'MQTT' version 6: use 'MQTT' with 5 or 4, or 'MQIsdp' with 3",
    ),
    BadPacket(
        "MQTT 3.1 has its own protocol name",
        V5,
        0x10,
        b"\x00\x04MQTT\x03\x02\x00\x00\x00\x01a",
        ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
        "protocol name 'MQTT' version 3: use 'MQTT' with 5 or 4, or 'MQIsdp' with 3",
    ),
    BadPacket(
        "the reserved connect flag is 0",
        V5,
        0x10,
        CONNECT_V5 + b"\x03\x00\x00\x00\x00\x00",
        MALFORMED,
        "connect flags: the reserved bit is set",
    ),
    BadPacket(
        "a will QoS is 2 at most",
        V5,
        0x10,
        CONNECT_V5 + b"\x1e\x00\x00\x00\x00\x00",
        MALFORMED,
        "connect flags: will QoS 3 does not exist",
    ),
    BadPacket(
        "will QoS needs a will",
        V311,
        0x10,
        CONNECT_V311 + b"\x0a\x00\x00\x00\x00",
        MALFORMED,
        "connect flags: will QoS and will retain must be 0 without a will",
    ),
    BadPacket(
        "will retain needs a will",
        V5,
        0x10,
        CONNECT_V5 + b"\x22\x00\x00\x00\x00\x00",
        MALFORMED,
        "connect flags: will QoS and will retain must be 0 without a will",
    ),
    BadPacket(
        "before MQTT 5 a password needs a user name",
        V311,
        0x10,
        CONNECT_V311 + b"\x42\x00\x00\x00\x00\x00\x01p",
        MALFORMED,
        "connect flags: a password needs a user name",
    ),
    BadPacket(
        "authentication data needs an authentication method",
        V5,
        0x10,
        CONNECT_V5 + b"\x02\x00\x00\x04\x16\x00\x01d\x00\x00",
        PROTOCOL,
        "authentication data: not allowed without an authentication method",
    ),
    # CONNECT: payload
    BadPacket(
        "a client identifier is present",
        V311,
        0x10,
        CONNECT_V311 + b"\x02\x00\x00",
        MALFORMED,
        "client identifier: 2 bytes needed, 0 left in the packet",
    ),
    BadPacket(
        "a client identifier ends within the packet",
        V311,
        0x10,
        CONNECT_V311 + b"\x02\x00\x00\x00\x05abc",
        MALFORMED,
        "client identifier: 5 bytes needed, 3 left in the packet",
    ),
    BadPacket(
        "a client identifier is UTF-8",
        V311,
        0x10,
        CONNECT_V311 + b"\x02\x00\x00\x00\x02a\xff",
        MALFORMED,
        "client identifier: not UTF-8 at byte 1",
    ),
    BadPacket(
        "a client identifier holds no surrogate",
        V311,
        0x10,
        CONNECT_V311 + b"\x02\x00\x00\x00\x03\xed\xa0\x80",
        MALFORMED,
        "client identifier: not UTF-8 at byte 0",
    ),
    BadPacket(
        "a client identifier holds no null character",
        V311,
        0x10,
        CONNECT_V311 + b"\x02\x00\x00\x00\x03a\x00b",
        MALFORMED,
        "client identifier: holds the null character",
    ),
    BadPacket(
        "a will is present when its flag is set",
        V311,
        0x10,
        CONNECT_V311 + b"\x06\x00\x00\x00\x00",
        MALFORMED,
        "will topic: 2 bytes needed, 0 left in the packet",
    ),
    BadPacket(
        "a will topic has no wildcard",
        V311,
        0x10,
        CONNECT_V311 + b"\x06\x00\x00\x00\x00\x00\x03a/#\x00\x00",
        MALFORMED,
        "topic name 'a/#': a wildcard may only be in a topic filter",
    ),
    BadPacket(
        "a user name is present when its flag is set",
        V311,
        0x10,
        CONNECT_V311 + b"\x82\x00\x00\x00\x00",
        MALFORMED,
        "user name: 2 bytes needed, 0 left in the packet",
    ),
    BadPacket(
        "a password is present when its flag is set, but for MQTT 3.1",
        V311,
        0x10,
        b"\x00\x04MQTT\x04\xc2\x00\x00\x00\x01a\x00\x01u",
        MALFORMED,
        "password: 2 bytes needed, 0 left in the packet",
    ),
    BadPacket(
        "a will property is not a property of CONNECT",
        V5,
        0x10,
        CONNECT_V5 + b"\x02\x00\x00\x05\x18\x00\x00\x00\x01\x00\x00",
        MALFORMED,
        "will delay interval: not a property of a CONNECT packet",
    ),
    BadPacket(
        "a property of CONNECT is not a will property",
        V5,
        0x10,
        CONNECT_V5 + b"\x06\x00\x00\x00\x00\x00\x03\x21\x00\x01\x00\x01t\x00\x00",
        MALFORMED,
        "receive maximum: not a property of the Will Properties",
    ),
    # CONNACK
    BadPacket(
        "the reserved connect acknowledge flags are 0",
        V311,
        0x20,
        b"\x02\x00",
        MALFORMED,
        "connect acknowledge flags: a reserved bit is set",
    ),
    BadPacket(
        "a refused connection has no session present",
        V5,
        0x20,
        b"\x01\x87\x00",
        PROTOCOL,
        "session present: must be 0 when the connection is refused",
    ),
    BadPacket(
        "a 3.1.1 return code is 5 at most", V311, 0x20, b"\x00\x06", PROTOCOL, "connect return code: 6 is reserved"
    ),
    BadPacket(
        "a CONNACK has one of its own reason codes",
        V5,
        0x20,
        b"\x00\x8e\x00",
        PROTOCOL,
        "reason code: 0x8e is not one of a CONNACK packet",
    ),
)
