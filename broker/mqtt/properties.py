"""MQTT 5 properties: one table with the name, the encoding and the allowed packets of each.

Theory
------
A property section is a length and a sequence of (identifier, value) in any order (MQTT 5 §2.2.2). `Properties` has a
field for each property; absent ones are None, or an empty tuple where a property may be repeated. Most packets have
none at all: they share `NO_PROPERTIES`.

Rules
-----
1. `PROPERTY_RULES` is Table 2-4 of the standard; nothing about a property is defined anywhere else.
2. A property in the wrong packet, of a wrong type or unknown: `MalformedPacket` (§2.2.2.2). Twice where once is
   allowed, or out of range: `ProtocolError`.
3. User Properties keep their order [MQTT-3.3.2-18].
4. The encoder writes what it is given, so that a test or a simulated bad device can send a forbidden value; only a
   property that the packet has no place for is a `ValueError`.

Does not handle: which side may send it (a client's PUBLISH with a Subscription Identifier [MQTT-3.3.4-6], a server's
DISCONNECT with a Session Expiry Interval [MQTT-3.14.2-2]); what a value means to a session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from broker.mqtt.codes import PacketType, ReasonCode
from broker.mqtt.errors import MalformedPacket, PacketError, ProtocolError
from broker.mqtt.topics import check_topic_name
from broker.mqtt.wire import (
    Reader,
    encode_binary,
    encode_byte,
    encode_four_byte_integer,
    encode_string,
    encode_string_pair,
    encode_two_byte_integer,
    encode_variable_integer,
)

WILL: Final = "WILL"
Owner = PacketType | Literal["WILL"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Properties:
    """The properties of one packet, or of a Will."""

    payload_format_indicator: int | None = None
    message_expiry_interval: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    subscription_identifiers: tuple[int, ...] = ()
    session_expiry_interval: int | None = None
    assigned_client_identifier: str | None = None
    server_keep_alive: int | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = field(default=None, repr=False)
    request_problem_information: bool | None = None
    will_delay_interval: int | None = None
    request_response_information: bool | None = None
    response_information: str | None = None
    server_reference: str | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    maximum_qos: int | None = None
    retain_available: bool | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    maximum_packet_size: int | None = None
    wildcard_subscription_available: bool | None = None
    subscription_identifier_available: bool | None = None
    shared_subscription_available: bool | None = None

    def __bool__(self) -> bool:
        return self is not NO_PROPERTIES and self != NO_PROPERTIES

    def __repr__(self) -> str:
        """Show what is present; of a secret only that it is there."""
        parts = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and value != ():
                parts.append(f"{each.name}={value!r}" if each.repr else f"{each.name}=<hidden>")
        return f"Properties({', '.join(parts)})"


NO_PROPERTIES: Final = Properties()


def _zero_or_one(name: str, value: int) -> int:
    if value > 1:
        raise ProtocolError(f"{name}: {value} is neither 0 nor 1")
    return value


def _boolean(name: str, value: int) -> bool:
    return bool(_zero_or_one(name, value))


def _positive(name: str, value: int) -> int:
    if value == 0:
        raise ProtocolError(f"{name}: 0 is not allowed")
    return value


def _alias(_name: str, value: int) -> int:
    if value == 0:  # [MQTT-3.3.2-8]
        raise ProtocolError("topic alias: 0 is not allowed", ReasonCode.TOPIC_ALIAS_INVALID)
    return value


def _topic(name: str, value: str) -> str:
    try:
        return check_topic_name(value)  # [MQTT-3.3.2-14]
    except PacketError as error:
        raise ProtocolError(f"{name}: {error}") from None


def _anything(_name: str, value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class WireType:
    """A data type of the wire: how to read and write one value of it."""

    read: Callable[[Reader, str], Any]
    encode: Callable[[Any], bytes]


BYTE: Final = WireType(Reader.byte, encode_byte)
TWO_BYTE_INTEGER: Final = WireType(Reader.two_byte_integer, encode_two_byte_integer)
FOUR_BYTE_INTEGER: Final = WireType(Reader.four_byte_integer, encode_four_byte_integer)
VARIABLE_BYTE_INTEGER: Final = WireType(Reader.variable_integer, encode_variable_integer)
STRING: Final = WireType(Reader.string, encode_string)
BINARY: Final = WireType(Reader.binary, encode_binary)
STRING_PAIR: Final = WireType(Reader.string_pair, encode_string_pair)


@dataclass(frozen=True, slots=True)
class PropertyRule:
    """One row of the table."""

    identifier: int
    attribute: str
    wire_type: WireType
    allowed_in: frozenset[Owner]
    repeats_in: frozenset[Owner]
    accept: Callable[[str, Any], Any]

    @property
    def name(self) -> str:
        """The property's name, as used in errors."""
        return self.attribute.replace("_", " ")

    @property
    def repeats(self) -> bool:
        """Whether the property may ever be repeated: then its field is a tuple."""
        return bool(self.repeats_in)


def _rule(
    identifier: int,
    attribute: str,
    wire_type: WireType,
    *allowed_in: Owner,
    repeats_in: tuple[Owner, ...] = (),
    accept: Callable[[str, Any], Any] = _anything,
) -> PropertyRule:
    return PropertyRule(identifier, attribute, wire_type, frozenset(allowed_in), frozenset(repeats_in), accept)


_P = PacketType
_ACKNOWLEDGEMENTS = (_P.PUBACK, _P.PUBREC, _P.PUBREL, _P.PUBCOMP, _P.SUBACK, _P.UNSUBACK)
_ALL: tuple[Owner, ...] = (*(set(_P) - {_P.PINGREQ, _P.PINGRESP}), WILL)

PROPERTY_RULES: Final = (
    _rule(0x01, "payload_format_indicator", BYTE, _P.PUBLISH, WILL, accept=_zero_or_one),
    _rule(0x02, "message_expiry_interval", FOUR_BYTE_INTEGER, _P.PUBLISH, WILL),
    _rule(0x03, "content_type", STRING, _P.PUBLISH, WILL),
    _rule(0x08, "response_topic", STRING, _P.PUBLISH, WILL, accept=_topic),
    _rule(0x09, "correlation_data", BINARY, _P.PUBLISH, WILL),
    _rule(
        0x0B,
        "subscription_identifiers",
        VARIABLE_BYTE_INTEGER,
        _P.PUBLISH,
        _P.SUBSCRIBE,
        repeats_in=(_P.PUBLISH,),
        accept=_positive,
    ),
    _rule(0x11, "session_expiry_interval", FOUR_BYTE_INTEGER, _P.CONNECT, _P.CONNACK, _P.DISCONNECT),
    _rule(0x12, "assigned_client_identifier", STRING, _P.CONNACK),
    _rule(0x13, "server_keep_alive", TWO_BYTE_INTEGER, _P.CONNACK),
    _rule(0x15, "authentication_method", STRING, _P.CONNECT, _P.CONNACK, _P.AUTH),
    _rule(0x16, "authentication_data", BINARY, _P.CONNECT, _P.CONNACK, _P.AUTH),
    _rule(0x17, "request_problem_information", BYTE, _P.CONNECT, accept=_boolean),
    _rule(0x18, "will_delay_interval", FOUR_BYTE_INTEGER, WILL),
    _rule(0x19, "request_response_information", BYTE, _P.CONNECT, accept=_boolean),
    _rule(0x1A, "response_information", STRING, _P.CONNACK),
    _rule(0x1C, "server_reference", STRING, _P.CONNACK, _P.DISCONNECT),
    _rule(0x1F, "reason_string", STRING, _P.CONNACK, *_ACKNOWLEDGEMENTS, _P.DISCONNECT, _P.AUTH),
    _rule(0x21, "receive_maximum", TWO_BYTE_INTEGER, _P.CONNECT, _P.CONNACK, accept=_positive),
    _rule(0x22, "topic_alias_maximum", TWO_BYTE_INTEGER, _P.CONNECT, _P.CONNACK),
    _rule(0x23, "topic_alias", TWO_BYTE_INTEGER, _P.PUBLISH, accept=_alias),
    _rule(0x24, "maximum_qos", BYTE, _P.CONNACK, accept=_zero_or_one),
    _rule(0x25, "retain_available", BYTE, _P.CONNACK, accept=_boolean),
    _rule(0x26, "user_properties", STRING_PAIR, *_ALL, repeats_in=_ALL),
    _rule(0x27, "maximum_packet_size", FOUR_BYTE_INTEGER, _P.CONNECT, _P.CONNACK, accept=_positive),
    _rule(0x28, "wildcard_subscription_available", BYTE, _P.CONNACK, accept=_boolean),
    _rule(0x29, "subscription_identifier_available", BYTE, _P.CONNACK, accept=_boolean),
    _rule(0x2A, "shared_subscription_available", BYTE, _P.CONNACK, accept=_boolean),
)

_RULE_OF: Final = {rule.identifier: rule for rule in PROPERTY_RULES}
_REPEATABLE: Final = {rule.attribute for rule in PROPERTY_RULES if rule.repeats}


def read_properties(reader: Reader, owner: Owner) -> Properties:
    """Take a property section off *reader*: that of packet type *owner*, or of a Will."""
    length = reader.variable_integer("property length")
    if length == 0:
        return NO_PROPERTIES
    section = Reader(reader.take(length, "properties"), reader.items_left)
    found: dict[str, Any] = {}
    while section.remaining:
        section.count("properties")
        identifier = section.variable_integer("property identifier")
        rule = _RULE_OF.get(identifier)
        if rule is None or owner not in rule.allowed_in:
            known = f"property {identifier:#04x}" if rule is None else rule.name
            raise MalformedPacket(f"{known}: not a property of {_place(owner)}")
        value = rule.accept(rule.name, rule.wire_type.read(section, rule.name))
        if rule.attribute in found and owner not in rule.repeats_in:
            raise ProtocolError(f"{rule.name}: more than once")
        if rule.repeats:
            found.setdefault(rule.attribute, []).append(value)
        else:
            found[rule.attribute] = value
    reader.items_left = section.items_left
    for attribute in _REPEATABLE & found.keys():
        found[attribute] = tuple(found[attribute])
    return Properties(**found)


_BY_FIELD: Final = tuple((rule.attribute, rule) for rule in PROPERTY_RULES)


def encode_properties(properties: Properties, owner: Owner) -> bytes:
    """Return the property section of packet type *owner*, or of a Will."""
    if not properties:
        return b"\0"  # [MQTT-2.2.2-1]
    section = bytearray()
    for attribute, rule in _BY_FIELD:
        value = getattr(properties, attribute)
        if value is None or value == ():  # Nearly all of them.
            continue
        for each in value if rule.repeats else (value,):
            if owner not in rule.allowed_in:
                raise ValueError(f"{rule.name}: not a property of {_place(owner)}")
            section += encode_variable_integer(rule.identifier) + rule.wire_type.encode(each)
    return encode_variable_integer(len(section)) + section


def _place(owner: Owner) -> str:
    return "the Will Properties" if owner == WILL else f"a {owner.name} packet"
