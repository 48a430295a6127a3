"""Errors in packets from the peer; each carries the reason code to answer with.

A ``PacketError`` is always the peer's fault. A packet of our own that cannot be encoded (a string over 65,535 bytes, a
packet identifier of 0) is a `ValueError` from the encoder: our bug, never an answer to the peer.
"""

from __future__ import annotations

from broker.mqtt.codes import ProtocolVersion, ReasonCode


class PacketError(Exception):
    """The peer broke the protocol; close the Network Connection with `reason_code` (MQTT 5 §4.13.1)."""

    def __init__(self, text: str, reason_code: ReasonCode) -> None:
        super().__init__(text)
        self.reason_code = reason_code
        self.version: ProtocolVersion | None = None
        """The version of a CONNECT if it can be read, though the rest is bad; None for every other packet."""


class MalformedPacket(PacketError):
    """The bytes cannot be parsed as the packet they claim to be."""

    def __init__(self, text: str) -> None:
        super().__init__(text, ReasonCode.MALFORMED_PACKET)


class ProtocolError(PacketError):
    """The packet was parsed, but the protocol does not allow its content."""

    def __init__(self, text: str, reason_code: ReasonCode = ReasonCode.PROTOCOL_ERROR) -> None:
        super().__init__(text, reason_code)
