"""What can be wrong with a packet that the peer sent; each error carries the reason code to answer with.

``PacketError`` is the peer's doing, always. A packet of our own that does not fit the wire (a string over 65,535
bytes, a packet identifier of 0) is a `ValueError` of the encoder: our defect, never an answer to the peer.
"""

from __future__ import annotations

from broker.mqtt.codes import ProtocolVersion, ReasonCode


class PacketError(Exception):
    """The peer broke the protocol; close the Network Connection with `reason_code` (MQTT 5 §4.13.1)."""

    def __init__(self, text: str, reason_code: ReasonCode) -> None:
        super().__init__(text)
        self.reason_code = reason_code
        self.version: ProtocolVersion | None = None
        """That of a CONNECT whose version can be read, though the rest is bad; None for every other packet."""


class MalformedPacket(PacketError):
    """The bytes cannot be parsed as the packet they claim to be."""

    def __init__(self, text: str) -> None:
        super().__init__(text, ReasonCode.MALFORMED_PACKET)


class ProtocolError(PacketError):
    """The packet was parsed, and says what the protocol does not allow."""

    def __init__(self, text: str, reason_code: ReasonCode = ReasonCode.PROTOCOL_ERROR) -> None:
        super().__init__(text, reason_code)
