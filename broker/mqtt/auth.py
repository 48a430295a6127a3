"""AUTH: one step of an extended authentication (MQTT 5 §3.15; the type is reserved in earlier versions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from broker.mqtt.codes import PacketType, ProtocolVersion, ReasonCode
from broker.mqtt.errors import MalformedPacket, ProtocolError
from broker.mqtt.properties import NO_PROPERTIES, Properties, encode_properties, read_properties
from broker.mqtt.reason import read_reason_code
from broker.mqtt.wire import Reader, encode_byte, encode_frame

_REASONS: Final = frozenset({ReasonCode.SUCCESS, ReasonCode.CONTINUE_AUTHENTICATION, ReasonCode.RE_AUTHENTICATE})


@dataclass(frozen=True, slots=True)
class Auth:
    """A challenge, a response, or the end of them."""

    packet_type: ClassVar[PacketType] = PacketType.AUTH

    reason_code: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES

    @classmethod
    def read(cls, reader: Reader, _flags: int, version: ProtocolVersion) -> Self:
        """Take an AUTH off *reader*."""
        if version is not ProtocolVersion.V5:
            raise MalformedPacket("packet type 15 is reserved before MQTT 5")
        if not reader.remaining:  # §3.15.2.1 allows the empty packet, although §3.15.2.2.2 wants a method.
            return cls()
        reason_code = read_reason_code(reader, _REASONS, cls.packet_type)
        properties = read_properties(reader, cls.packet_type)
        if properties.authentication_method is None:  # §3.15.2.2.2
            raise ProtocolError("authentication method: missing in an AUTH packet")
        return cls(reason_code, properties)

    def encode(self, version: ProtocolVersion) -> bytes:
        """Return the packet, as short as it can be."""
        if version is not ProtocolVersion.V5:
            raise ValueError("an AUTH packet needs MQTT 5")
        body = b""
        if self.reason_code or self.properties:
            body = encode_byte(self.reason_code) + encode_properties(self.properties, self.packet_type)
        return encode_frame(self.packet_type << 4, body)
