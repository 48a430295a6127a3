"""DISCONNECT: the last packet of a Network Connection (MQTT 5 §3.14).

Before MQTT 5 it has no content and only a client sends it.

Does not handle: the direction. `CLIENT_REASONS` and `SERVER_REASONS` say which side may use which reason code; both
are well-formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from broker.mqtt.codes import PacketType, ProtocolVersion, ReasonCode
from broker.mqtt.properties import NO_PROPERTIES, Properties, encode_properties, read_properties
from broker.mqtt.reason import read_reason_code
from broker.mqtt.wire import Reader, encode_byte, encode_frame

_EITHER: Final = frozenset(
    {
        ReasonCode.NORMAL_DISCONNECTION,
        ReasonCode.UNSPECIFIED_ERROR,
        ReasonCode.MALFORMED_PACKET,
        ReasonCode.PROTOCOL_ERROR,
        ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
        ReasonCode.BAD_AUTHENTICATION_METHOD,  # Not in §3.14.2.1, but in Table 2-6.
        ReasonCode.TOPIC_NAME_INVALID,
        ReasonCode.RECEIVE_MAXIMUM_EXCEEDED,
        ReasonCode.TOPIC_ALIAS_INVALID,
        ReasonCode.PACKET_TOO_LARGE,
        ReasonCode.MESSAGE_RATE_TOO_HIGH,
        ReasonCode.QUOTA_EXCEEDED,
        ReasonCode.ADMINISTRATIVE_ACTION,
        ReasonCode.PAYLOAD_FORMAT_INVALID,
    }
)
CLIENT_REASONS: Final = _EITHER | {ReasonCode.DISCONNECT_WITH_WILL_MESSAGE}
SERVER_REASONS: Final = _EITHER | {
    ReasonCode.NOT_AUTHORIZED,
    ReasonCode.SERVER_BUSY,
    ReasonCode.SERVER_SHUTTING_DOWN,
    ReasonCode.KEEP_ALIVE_TIMEOUT,
    ReasonCode.SESSION_TAKEN_OVER,
    ReasonCode.TOPIC_FILTER_INVALID,
    ReasonCode.RETAIN_NOT_SUPPORTED,
    ReasonCode.QOS_NOT_SUPPORTED,
    ReasonCode.USE_ANOTHER_SERVER,
    ReasonCode.SERVER_MOVED,
    ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED,
    ReasonCode.CONNECTION_RATE_EXCEEDED,
    ReasonCode.MAXIMUM_CONNECT_TIME,
    ReasonCode.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED,
    ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED,
}
_REASONS: Final = CLIENT_REASONS | SERVER_REASONS


@dataclass(frozen=True, slots=True)
class Disconnect:
    """One side ends the connection, and says why."""

    packet_type: ClassVar[PacketType] = PacketType.DISCONNECT

    reason_code: ReasonCode = ReasonCode.NORMAL_DISCONNECTION
    properties: Properties = NO_PROPERTIES

    @classmethod
    def read(cls, reader: Reader, _flags: int, version: ProtocolVersion) -> Self:
        """Take a DISCONNECT off *reader*."""
        reason_code, properties = ReasonCode.NORMAL_DISCONNECTION, NO_PROPERTIES
        if version is ProtocolVersion.V5 and reader.remaining:
            reason_code = read_reason_code(reader, _REASONS, cls.packet_type)
            if reader.remaining:
                properties = read_properties(reader, cls.packet_type)
        return cls(reason_code, properties)

    def encode(self, version: ProtocolVersion) -> bytes:
        """Return the packet, as short as it can be."""
        body = b""
        if version is ProtocolVersion.V5 and (self.reason_code or self.properties):
            body = encode_byte(self.reason_code)
            if self.properties:
                body += encode_properties(self.properties, self.packet_type)
        return encode_frame(self.packet_type << 4, body)
