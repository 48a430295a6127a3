"""SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK (MQTT 5 §3.8 to §3.11).

Rules
-----
1. Filters and reason codes keep their order and number: reason code *n* answers filter *n* [MQTT-3.9.3-1].
2. A SUBACK before MQTT 5 has a single code for every failure, 0x80. MQTT 3.1 defines none, so that a broker sends
   such a client none (`broker.connection.handlers`); it can be read and written all the same: other brokers do.
3. An UNSUBACK before MQTT 5 has no reason codes at all.

Does not handle: whether the client may subscribe; how many filters are too many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from broker.mqtt.codes import PacketType, ProtocolVersion, QoS, ReasonCode, RetainHandling
from broker.mqtt.errors import MalformedPacket, ProtocolError
from broker.mqtt.properties import NO_PROPERTIES, Properties, encode_properties, read_properties
from broker.mqtt.reason import read_reason_code
from broker.mqtt.topics import SharedSubscription, check_topic_filter
from broker.mqtt.wire import Reader, encode_byte, encode_frame, encode_packet_id, encode_string

_NO_LOCAL: Final = 0x04
_RETAIN_AS_PUBLISHED: Final = 0x08
_RETAIN_HANDLING_SHIFT: Final = 4
_RESERVED_OPTIONS: Final = 0xC0
_RESERVED_OPTIONS_V311: Final = 0xFC

_GRANTED: Final = frozenset({ReasonCode.GRANTED_QOS_0, ReasonCode.GRANTED_QOS_1, ReasonCode.GRANTED_QOS_2})
_SUBACK_REASONS_V311: Final = _GRANTED | {ReasonCode.UNSPECIFIED_ERROR}
_SUBACK_REASONS: Final = _SUBACK_REASONS_V311 | {
    ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
    ReasonCode.NOT_AUTHORIZED,
    ReasonCode.TOPIC_FILTER_INVALID,
    ReasonCode.PACKET_IDENTIFIER_IN_USE,
    ReasonCode.QUOTA_EXCEEDED,
    ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED,
    ReasonCode.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED,
    ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED,
}
_UNSUBACK_REASONS: Final = frozenset(
    {
        ReasonCode.SUCCESS,
        ReasonCode.NO_SUBSCRIPTION_EXISTED,
        ReasonCode.UNSPECIFIED_ERROR,
        ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
        ReasonCode.NOT_AUTHORIZED,
        ReasonCode.TOPIC_FILTER_INVALID,
        ReasonCode.PACKET_IDENTIFIER_IN_USE,
    }
)


@dataclass(frozen=True, slots=True)
class SubscriptionRequest:
    """One Topic Filter of a SUBSCRIBE, and its Subscription Options. Before MQTT 5 only ``qos`` is one."""

    filter: str
    qos: QoS = QoS.AT_MOST_ONCE
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: RetainHandling = RetainHandling.SEND

    @classmethod
    def read(cls, reader: Reader, version: ProtocolVersion) -> Self:
        """Take a filter and its options off *reader*."""
        topic_filter = _read_filter(reader, version)
        options = reader.byte("subscription options")
        if version is ProtocolVersion.V31:
            options &= 3  # The others are "x", don't care (MQTT 3.1 §3.8).
        v5 = version is ProtocolVersion.V5
        if options & (_RESERVED_OPTIONS if v5 else _RESERVED_OPTIONS_V311):  # [MQTT-3.8.3-5], 3.1.1 [MQTT-3-8.3-4]
            raise MalformedPacket("subscription options: a reserved bit is set")
        qos, retain_handling = options & 3, options >> _RETAIN_HANDLING_SHIFT
        if qos > QoS.EXACTLY_ONCE:  # §3.8.3.1; 3.1.1 [MQTT-3-8.3-4]
            raise ProtocolError("subscription options: QoS 3 does not exist")
        if retain_handling > RetainHandling.DO_NOT_SEND:  # §3.8.3.1
            raise ProtocolError("subscription options: retain handling 3 does not exist")
        no_local = bool(options & _NO_LOCAL)
        if no_local and SharedSubscription.parse(topic_filter):  # [MQTT-3.8.3-4]
            raise ProtocolError("subscription options: no local is not allowed on a shared subscription")
        return cls(
            topic_filter, QoS(qos), no_local, bool(options & _RETAIN_AS_PUBLISHED), RetainHandling(retain_handling)
        )

    def encode(self, version: ProtocolVersion) -> bytes:
        """Return the filter and its options."""
        options: int = self.qos
        if version is ProtocolVersion.V5:
            options |= _NO_LOCAL if self.no_local else 0
            options |= _RETAIN_AS_PUBLISHED if self.retain_as_published else 0
            options |= self.retain_handling << _RETAIN_HANDLING_SHIFT
        return encode_string(self.filter) + encode_byte(options)


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A client asks for messages."""

    packet_type: ClassVar[PacketType] = PacketType.SUBSCRIBE

    packet_id: int
    requests: tuple[SubscriptionRequest, ...]
    properties: Properties = NO_PROPERTIES

    @classmethod
    def read(cls, reader: Reader, _flags: int, version: ProtocolVersion) -> Self:
        """Take a SUBSCRIBE off *reader*."""
        packet_id = reader.packet_id()
        properties = _read_v5_properties(reader, cls.packet_type, version)
        requests = []
        while reader.remaining:
            requests.append(SubscriptionRequest.read(reader, version))
        if not requests:  # [MQTT-3.8.3-2]
            raise ProtocolError("SUBSCRIBE without a topic filter")
        return cls(packet_id, tuple(requests), properties)

    def encode(self, version: ProtocolVersion) -> bytes:
        """Return the packet; before MQTT 5 without properties."""
        payload = b"".join(request.encode(version) for request in self.requests)
        return _encode(self.packet_type, 0b0010, self.packet_id, self.properties, payload, version)


@dataclass(frozen=True, slots=True)
class Suback:
    """The server's answers to a SUBSCRIBE."""

    packet_type: ClassVar[PacketType] = PacketType.SUBACK

    packet_id: int
    reason_codes: tuple[ReasonCode, ...]
    properties: Properties = NO_PROPERTIES

    @classmethod
    def read(cls, reader: Reader, _flags: int, version: ProtocolVersion) -> Self:
        """Take a SUBACK off *reader*."""
        packet_id = reader.packet_id()
        properties = _read_v5_properties(reader, cls.packet_type, version)
        allowed = _SUBACK_REASONS if version is ProtocolVersion.V5 else _SUBACK_REASONS_V311
        return cls(packet_id, _read_reason_codes(reader, allowed, cls.packet_type), properties)

    def encode(self, version: ProtocolVersion) -> bytes:
        """Return the packet; before MQTT 5 with 0x80 for every failure, and without properties."""
        codes = self.reason_codes
        if version is not ProtocolVersion.V5:
            codes = tuple(ReasonCode.UNSPECIFIED_ERROR if code.is_failure else code for code in codes)
        return _encode(self.packet_type, 0, self.packet_id, self.properties, bytes(codes), version)


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """A client wants no more of these messages."""

    packet_type: ClassVar[PacketType] = PacketType.UNSUBSCRIBE

    packet_id: int
    filters: tuple[str, ...]
    properties: Properties = NO_PROPERTIES

    @classmethod
    def read(cls, reader: Reader, _flags: int, version: ProtocolVersion) -> Self:
        """Take an UNSUBSCRIBE off *reader*."""
        packet_id = reader.packet_id()
        properties = _read_v5_properties(reader, cls.packet_type, version)
        filters = []
        while reader.remaining:
            filters.append(_read_filter(reader, version))
        if not filters:  # [MQTT-3.10.3-2]
            raise ProtocolError("UNSUBSCRIBE without a topic filter")
        return cls(packet_id, tuple(filters), properties)

    def encode(self, version: ProtocolVersion) -> bytes:
        """Return the packet; before MQTT 5 without properties."""
        payload = b"".join(map(encode_string, self.filters))
        return _encode(self.packet_type, 0b0010, self.packet_id, self.properties, payload, version)


@dataclass(frozen=True, slots=True)
class Unsuback:
    """The server's answers to an UNSUBSCRIBE; before MQTT 5 without reason codes."""

    packet_type: ClassVar[PacketType] = PacketType.UNSUBACK

    packet_id: int
    reason_codes: tuple[ReasonCode, ...] = ()
    properties: Properties = NO_PROPERTIES

    @classmethod
    def read(cls, reader: Reader, _flags: int, version: ProtocolVersion) -> Self:
        """Take an UNSUBACK off *reader*."""
        packet_id = reader.packet_id()
        if version is not ProtocolVersion.V5:
            return cls(packet_id)
        properties = read_properties(reader, cls.packet_type)
        return cls(packet_id, _read_reason_codes(reader, _UNSUBACK_REASONS, cls.packet_type), properties)

    def encode(self, version: ProtocolVersion) -> bytes:
        """Return the packet; before MQTT 5 only its identifier."""
        payload = bytes(self.reason_codes) if version is ProtocolVersion.V5 else b""
        return _encode(self.packet_type, 0, self.packet_id, self.properties, payload, version)


def _read_v5_properties(reader: Reader, packet_type: PacketType, version: ProtocolVersion) -> Properties:
    return read_properties(reader, packet_type) if version is ProtocolVersion.V5 else NO_PROPERTIES


def _read_filter(reader: Reader, version: ProtocolVersion) -> str:
    reader.count("topic filters")
    topic_filter = check_topic_filter(reader.string("topic filter"))  # [MQTT-3.8.3-1], [MQTT-3.10.3-1]
    if version is ProtocolVersion.V5:
        SharedSubscription.parse(topic_filter)  # Refuses a malformed one [MQTT-4.8.2-1], [MQTT-4.8.2-2].
    return topic_filter


def _read_reason_codes(
    reader: Reader, allowed: frozenset[ReasonCode], packet_type: PacketType
) -> tuple[ReasonCode, ...]:
    codes = []
    while reader.remaining:
        codes.append(read_reason_code(reader, allowed, packet_type))
    if not codes:  # [MQTT-3.8.4-6], [MQTT-3.11.3-1]: one for each topic filter, of which there is at least one.
        raise MalformedPacket(f"{packet_type.name} without a reason code")
    return tuple(codes)


def _encode(
    packet_type: PacketType,
    flags: int,
    packet_id: int,
    properties: Properties,
    payload: bytes,
    version: ProtocolVersion,
) -> bytes:
    body = encode_packet_id(packet_id)
    if version is ProtocolVersion.V5:
        body += encode_properties(properties, packet_type)
    return encode_frame(packet_type << 4 | flags, body + payload)
