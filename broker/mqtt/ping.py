"""PINGREQ and PINGRESP: two bytes each, in every version (MQTT 5 §3.12, §3.13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from broker.mqtt.codes import PacketType, ProtocolVersion
from broker.mqtt.wire import Reader, encode_frame


@dataclass(frozen=True, slots=True)
class Pingreq:
    """A client shows that it is alive."""

    packet_type: ClassVar[PacketType] = PacketType.PINGREQ

    @classmethod
    def read(cls, _reader: Reader, _flags: int, _version: ProtocolVersion) -> Self:
        """Take nothing off the reader."""
        return cls()

    def encode(self, _version: ProtocolVersion) -> bytes:
        """Return the packet."""
        return encode_frame(self.packet_type << 4, b"")


@dataclass(frozen=True, slots=True)
class Pingresp:
    """The server shows that it is alive."""

    packet_type: ClassVar[PacketType] = PacketType.PINGRESP

    @classmethod
    def read(cls, _reader: Reader, _flags: int, _version: ProtocolVersion) -> Self:
        """Take nothing off the reader."""
        return cls()

    def encode(self, _version: ProtocolVersion) -> bytes:
        """Return the packet."""
        return encode_frame(self.packet_type << 4, b"")
