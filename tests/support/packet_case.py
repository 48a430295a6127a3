"""A golden packet: a name, the bytes, and the packet they represent."""

from __future__ import annotations

from dataclasses import dataclass

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.packets import Packet
from broker.mqtt.wire import Reader

V31, V311, V5 = ProtocolVersion.V31, ProtocolVersion.V311, ProtocolVersion.V5


@dataclass(frozen=True)
class PacketCase:
    """One packet in one version of the protocol."""

    name: str
    version: ProtocolVersion
    data: bytes
    packet: Packet
    canonical: bool = True

    @property
    def body(self) -> bytes:
        """The bytes after the fixed header."""
        return split_packet(self.data)[1]


def split_packet(data: bytes) -> tuple[int, bytes]:
    """Return the first byte and the body of *data*, a single packet."""
    reader = Reader(data)
    first_byte, length = reader.byte("first byte"), reader.variable_integer("remaining length")
    assert length == reader.remaining, f"remaining length {length}, body {reader.remaining} bytes"
    return first_byte, reader.rest()
