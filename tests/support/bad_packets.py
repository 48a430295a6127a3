"""Packets that break one rule of the standard each, named by the rule: for the codec, and to throw at a broker."""

from __future__ import annotations

from dataclasses import dataclass

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.wire import encode_frame

V31, V311, V5 = ProtocolVersion.V31, ProtocolVersion.V311, ProtocolVersion.V5
MALFORMED, PROTOCOL = ReasonCode.MALFORMED_PACKET, ReasonCode.PROTOCOL_ERROR


@dataclass(frozen=True)
class BadPacket:
    """One packet that breaks one rule, and what answers it."""

    rule: str
    version: ProtocolVersion
    first_byte: int
    body: bytes
    reason_code: ReasonCode
    text: str

    @property
    def data(self) -> bytes:
        """The whole packet."""
        return encode_frame(self.first_byte, self.body)


CONNECT_V311 = b"\x00\x04MQTT\x04"
CONNECT_V5 = b"\x00\x04MQTT\x05"

BAD_PACKETS = (
    # Fixed header
    BadPacket("packet type 0 is reserved", V5, 0x00, b"", MALFORMED, "packet type 0 is reserved"),
    BadPacket(
        "packet type 15 is reserved before MQTT 5",
        V311,
        0xF0,
        b"",
        MALFORMED,
        "packet type 15 is reserved before MQTT 5",
    ),
    BadPacket(
        "a SUBSCRIBE has the flags 0010",
        V5,
        0x80,
        b"\x00\x01\x00\x00\x01a\x00",
        MALFORMED,
        "SUBSCRIBE: the flags 0b0000 should be 0b0010",
    ),
    BadPacket(
        "only MQTT 3.1 sends a SUBSCRIBE with DUP",
        V311,
        0x8A,
        b"\x00\x01\x00\x01a\x00",
        MALFORMED,
        "SUBSCRIBE: the flags 0b1010 should be 0b0010",
    ),
    BadPacket(
        "not even MQTT 3.1 sends a PINGREQ with DUP",
        V31,
        0xC8,
        b"",
        MALFORMED,
        "PINGREQ: the flags 0b1000 should be 0b0000",
    ),
    BadPacket("a PINGREQ is empty", V311, 0xC0, b"\x00", MALFORMED, "PINGREQ: 1 bytes behind the last field"),
    BadPacket(
        "a 3.1.1 DISCONNECT is empty", V311, 0xE0, b"\x00", MALFORMED, "DISCONNECT: 1 bytes behind the last field"
    ),
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
        "a password is present when its flag is set",
        V31,
        0x10,
        b"\x00\x06MQIsdp\x03\xc2\x00\x00\x00\x01a\x00\x01u",
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
    # PUBLISH
    BadPacket("QoS 3 does not exist", V311, 0x36, b"\x00\x01a\x00\x01", MALFORMED, "QoS 3 does not exist"),
    BadPacket("QoS 0 is never sent again", V311, 0x38, b"\x00\x01a", MALFORMED, "DUP is not allowed with QoS 0"),
    BadPacket(
        "a topic name has no single-level wildcard",
        V311,
        0x30,
        b"\x00\x03a/+",
        MALFORMED,
        "topic name 'a/+': a wildcard may only be in a topic filter",
    ),
    BadPacket(
        "a 3.1.1 topic name is not empty",
        V311,
        0x30,
        b"\x00\x00",
        MALFORMED,
        "topic name: must be at least one character long",
    ),
    BadPacket(
        "an MQTT 5 topic name is empty only behind a topic alias",
        V5,
        0x30,
        b"\x00\x00\x00",
        PROTOCOL,
        "topic name: empty, and there is no topic alias",
    ),
    BadPacket(
        "a topic name ends within the packet",
        V311,
        0x30,
        b"\x00\x04a",
        MALFORMED,
        "topic name: 4 bytes needed, 1 left in the packet",
    ),
    BadPacket(
        "a packet identifier is not 0",
        V311,
        0x32,
        b"\x00\x01a\x00\x00",
        PROTOCOL,
        "packet identifier: 0 is not allowed",
    ),
    BadPacket(
        "a topic alias is not 0",
        V5,
        0x30,
        b"\x00\x01a\x03\x23\x00\x00",
        ReasonCode.TOPIC_ALIAS_INVALID,
        "topic alias: 0 is not allowed",
    ),
    BadPacket(
        "a response topic has no wildcard",
        V5,
        0x30,
        b"\x00\x01a\x04\x08\x00\x01#",
        PROTOCOL,
        "response topic: topic name '#': a wildcard may only be in a topic filter",
    ),
    # Acknowledgements
    BadPacket(
        "an acknowledgement has a packet identifier",
        V5,
        0x40,
        b"\x00",
        MALFORMED,
        "packet identifier: 2 bytes needed, 1 left in the packet",
    ),
    BadPacket(
        "an acknowledged packet identifier is not 0",
        V5,
        0x62,
        b"\x00\x00",
        PROTOCOL,
        "packet identifier: 0 is not allowed",
    ),
    BadPacket(
        "a 3.1.1 PUBACK has two bytes", V311, 0x40, b"\x00\x01\x00", MALFORMED, "PUBACK: 1 bytes behind the last field"
    ),
    BadPacket(
        "a PUBACK has one of its own reason codes",
        V5,
        0x40,
        b"\x00\x01\x92",
        PROTOCOL,
        "reason code: 0x92 is not one of a PUBACK packet",
    ),
    BadPacket(
        "a PUBREL has one of its own reason codes",
        V5,
        0x62,
        b"\x00\x01\x10",
        PROTOCOL,
        "reason code: 0x10 is not one of a PUBREL packet",
    ),
    BadPacket(
        "a reason code exists", V5, 0x40, b"\x00\x01\x7f", PROTOCOL, "reason code: 0x7f is not one of a PUBACK packet"
    ),
    # SUBSCRIBE, UNSUBSCRIBE
    BadPacket(
        "a SUBSCRIBE has a topic filter", V5, 0x82, b"\x00\x01\x00", PROTOCOL, "SUBSCRIBE without a topic filter"
    ),
    BadPacket(
        "an UNSUBSCRIBE has a topic filter", V311, 0xA2, b"\x00\x01", PROTOCOL, "UNSUBSCRIBE without a topic filter"
    ),
    BadPacket(
        "a topic filter has its options",
        V311,
        0x82,
        b"\x00\x01\x00\x01a",
        MALFORMED,
        "subscription options: 1 bytes needed, 0 left in the packet",
    ),
    BadPacket(
        "a topic filter is not empty",
        V311,
        0x82,
        b"\x00\x01\x00\x00\x00",
        MALFORMED,
        "topic filter: must be at least one character long",
    ),
    BadPacket(
        "a multi-level wildcard is the last level",
        V311,
        0x82,
        b"\x00\x01\x00\x05a/#/b\x00",
        MALFORMED,
        "topic filter 'a/#/b': '#' is only allowed as the last level",
    ),
    BadPacket(
        "a subscription's QoS is 2 at most",
        V5,
        0x82,
        b"\x00\x01\x00\x00\x01a\x03",
        PROTOCOL,
        "subscription options: QoS 3 does not exist",
    ),
    BadPacket(
        "retain handling is 2 at most",
        V5,
        0x82,
        b"\x00\x01\x00\x00\x01a\x30",
        PROTOCOL,
        "subscription options: retain handling 3 does not exist",
    ),
    BadPacket(
        "the reserved subscription options are 0",
        V5,
        0x82,
        b"\x00\x01\x00\x00\x01a\x40",
        MALFORMED,
        "subscription options: a reserved bit is set",
    ),
    BadPacket(
        "3.1.1 has no subscription options but QoS",
        V311,
        0x82,
        b"\x00\x01\x00\x01a\x04",
        MALFORMED,
        "subscription options: a reserved bit is set",
    ),
    BadPacket(
        "a shared subscription has no No Local",
        V5,
        0x82,
        b"\x00\x01\x00\x00\x0a$share/a/b\x04",
        PROTOCOL,
        "subscription options: no local is not allowed on a shared subscription",
    ),
    BadPacket(
        "a share name is not empty",
        V5,
        0x82,
        b"\x00\x01\x00\x00\x09$share//b\x00",
        MALFORMED,
        "topic filter '$share//b': the share name is empty",
    ),
    BadPacket(
        "a shared subscription has a topic filter",
        V5,
        0xA2,
        b"\x00\x01\x00\x00\x09$share/a/",
        MALFORMED,
        "topic filter '$share/a/': a topic filter must follow the share name",
    ),
    BadPacket(
        "a SUBSCRIBE has one subscription identifier",
        V5,
        0x82,
        b"\x00\x01\x04\x0b\x01\x0b\x02\x00\x01a\x00",
        PROTOCOL,
        "subscription identifiers: more than once",
    ),
    # SUBACK, UNSUBACK
    BadPacket("a SUBACK has a reason code", V311, 0x90, b"\x00\x01", MALFORMED, "SUBACK without a reason code"),
    BadPacket(
        "a 3.1.1 SUBACK knows one failure",
        V311,
        0x90,
        b"\x00\x01\x87",
        PROTOCOL,
        "reason code: 0x87 is not one of a SUBACK packet",
    ),
    BadPacket("an UNSUBACK has a reason code", V5, 0xB0, b"\x00\x01\x00", MALFORMED, "UNSUBACK without a reason code"),
    BadPacket(
        "a 3.1.1 UNSUBACK has two bytes",
        V311,
        0xB0,
        b"\x00\x01\x00",
        MALFORMED,
        "UNSUBACK: 1 bytes behind the last field",
    ),
    # DISCONNECT, AUTH
    BadPacket(
        "a DISCONNECT has one of its own reason codes",
        V5,
        0xE0,
        b"\x01",
        PROTOCOL,
        "reason code: 0x01 is not one of a DISCONNECT packet",
    ),
    BadPacket(
        "an AUTH has a property length behind its reason code",
        V5,
        0xF0,
        b"\x18",
        MALFORMED,
        "property length: 1 bytes needed, 0 left in the packet",
    ),
    BadPacket(
        "an AUTH names its method",
        V5,
        0xF0,
        b"\x18\x00",
        PROTOCOL,
        "authentication method: missing in an AUTH packet",
    ),
)
