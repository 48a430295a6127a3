"""A packet that breaks one rule of the standard, named after the rule, and the expected answer."""

from __future__ import annotations

from dataclasses import dataclass

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.wire import encode_frame

V31, V311, V5 = ProtocolVersion.V31, ProtocolVersion.V311, ProtocolVersion.V5
MALFORMED, PROTOCOL = ReasonCode.MALFORMED_PACKET, ReasonCode.PROTOCOL_ERROR


@dataclass(frozen=True)
class BadPacket:
    """One packet that breaks one rule, and the expected answer."""

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
