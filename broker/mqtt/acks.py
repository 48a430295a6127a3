"""PUBACK, PUBREC, PUBREL, PUBCOMP: four packets of one shape (MQTT 5 §3.4 to §3.7).

Before MQTT 5 they are a Packet Identifier and nothing else; in MQTT 5 a reason code and properties may follow, and
what is left out means success without properties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from broker.mqtt.codes import PacketType, ProtocolVersion, ReasonCode
from broker.mqtt.properties import NO_PROPERTIES, Properties, encode_properties, read_properties
from broker.mqtt.reason import read_reason_code
from broker.mqtt.wire import Reader, encode_byte, encode_frame, encode_packet_id

_RECEIPT_REASONS: Final = frozenset(
    {
        ReasonCode.SUCCESS,
        ReasonCode.NO_MATCHING_SUBSCRIBERS,
        ReasonCode.UNSPECIFIED_ERROR,
        ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
        ReasonCode.NOT_AUTHORIZED,
        ReasonCode.TOPIC_NAME_INVALID,
        ReasonCode.PACKET_IDENTIFIER_IN_USE,
        ReasonCode.QUOTA_EXCEEDED,
        ReasonCode.PAYLOAD_FORMAT_INVALID,
    }
)
_RELEASE_REASONS: Final = frozenset({ReasonCode.SUCCESS, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND})


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What the four have in common; only the subclasses are packets."""

    packet_type: ClassVar[PacketType]
    fixed_flags: ClassVar[int] = 0
    reasons: ClassVar[frozenset[ReasonCode]] = _RECEIPT_REASONS

    packet_id: int
    reason_code: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES

    @classmethod
    def read(cls, reader: Reader, _flags: int, version: ProtocolVersion) -> Self:
        """Take an acknowledgement off *reader*."""
        packet_id = reader.packet_id()
        reason_code, properties = ReasonCode.SUCCESS, NO_PROPERTIES
        if version is ProtocolVersion.V5 and reader.remaining:
            reason_code = read_reason_code(reader, cls.reasons, cls.packet_type)
            if reader.remaining:
                properties = read_properties(reader, cls.packet_type)
        return cls(packet_id, reason_code, properties)

    def encode(self, version: ProtocolVersion) -> bytes:
        """Return the packet, as short as it can be."""
        body = encode_packet_id(self.packet_id)
        if version is ProtocolVersion.V5 and (self.reason_code or self.properties):
            body += encode_byte(self.reason_code)
            if self.properties:
                body += encode_properties(self.properties, self.packet_type)
        return encode_frame(self.packet_type << 4 | self.fixed_flags, body)


class Puback(Acknowledgement):
    """A QoS 1 message has arrived."""

    __slots__ = ()
    packet_type = PacketType.PUBACK


class Pubrec(Acknowledgement):
    """A QoS 2 message has arrived."""

    __slots__ = ()
    packet_type = PacketType.PUBREC


class Pubrel(Acknowledgement):
    """The sender has discarded the QoS 2 message."""

    __slots__ = ()
    packet_type = PacketType.PUBREL
    fixed_flags = 0b0010
    reasons = _RELEASE_REASONS


class Pubcomp(Acknowledgement):
    """The QoS 2 exchange is over."""

    __slots__ = ()
    packet_type = PacketType.PUBCOMP
    reasons = _RELEASE_REASONS
