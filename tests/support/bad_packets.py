"""Packets that break one rule of the standard each, named after the rule: for the codec, and to send to a broker."""

from __future__ import annotations

from broker.mqtt.codes import ReasonCode
from tests.support.bad_connects import BAD_CONNECTS
from tests.support.bad_packet import MALFORMED, PROTOCOL, V5, V31, V311, BadPacket

BAD_PACKETS = (
    *BAD_CONNECTS,
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
        "MQTT 3.1 uses the QoS of a SUBSCRIBE, which is 1",
        V31,
        0x84,
        b"\x00\x01\x00\x01a\x00",
        MALFORMED,
        "SUBSCRIBE: the flags 0b0100 should be 0b0010",
    ),
    BadPacket("a PINGREQ is empty", V311, 0xC0, b"\x00", MALFORMED, "PINGREQ: 1 bytes behind the last field"),
    BadPacket(
        "a 3.1.1 DISCONNECT is empty", V311, 0xE0, b"\x00", MALFORMED, "DISCONNECT: 1 bytes behind the last field"
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
