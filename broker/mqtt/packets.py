"""Every MQTT Control Packet, and the one function that turns a body into one.

Theory
------
Each packet is a frozen dataclass with ``encode(version)`` and a ``read`` classmethod, in the module named after it;
this module gathers them and dispatches by packet type. Versions differ by an argument, not by a class: what a version
cannot express (properties before MQTT 5, say) is left out when writing, and has its default when reading.

Rules
-----
1. Whatever the bytes, `decode_packet` returns a packet that the standard allows, or raises `PacketError`.
2. A body is consumed completely: bytes after the last field are malformed.
3. ``decode_packet(first_byte, body, version).encode(version)`` means the same as the original bytes, and is never
   longer than they were.

Handles: the form of each packet, in both directions.
Does not handle: the order of packets, the direction, the session, limits on size and number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.mqtt.acks import Puback, Pubcomp, Pubrec, Pubrel
from broker.mqtt.auth import Auth
from broker.mqtt.codes import PacketType, ProtocolVersion
from broker.mqtt.connect import Connack, Connect, Will, protocol_version_of
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.errors import MalformedPacket, PacketError
from broker.mqtt.framing import decode_length
from broker.mqtt.ping import Pingreq, Pingresp
from broker.mqtt.publication import Publish
from broker.mqtt.subscribe import Suback, Subscribe, SubscriptionRequest, Unsuback, Unsubscribe
from broker.mqtt.wire import MAXIMUM_VARIABLE_INTEGER, Reader

__all__ = [
    "Auth",
    "Connack",
    "Connect",
    "Disconnect",
    "Packet",
    "Pingreq",
    "Pingresp",
    "Puback",
    "Pubcomp",
    "Publish",
    "Pubrec",
    "Pubrel",
    "Suback",
    "Subscribe",
    "SubscriptionRequest",
    "Unsuback",
    "Unsubscribe",
    "Will",
    "announced_version",
    "decode_packet",
    "protocol_version_of",
]

Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
    | Auth
)

_READERS: Final[dict[int, Callable[[Reader, int, ProtocolVersion], Packet]]] = {
    PacketType.CONNECT: Connect.read,
    PacketType.CONNACK: Connack.read,
    PacketType.PUBLISH: Publish.read,
    PacketType.PUBACK: Puback.read,
    PacketType.PUBREC: Pubrec.read,
    PacketType.PUBREL: Pubrel.read,
    PacketType.PUBCOMP: Pubcomp.read,
    PacketType.SUBSCRIBE: Subscribe.read,
    PacketType.SUBACK: Suback.read,
    PacketType.UNSUBSCRIBE: Unsubscribe.read,
    PacketType.UNSUBACK: Unsuback.read,
    PacketType.PINGREQ: Pingreq.read,
    PacketType.PINGRESP: Pingresp.read,
    PacketType.DISCONNECT: Disconnect.read,
    PacketType.AUTH: Auth.read,
}

# Table 2-2. The flags of a PUBLISH mean something; those of every other packet are reserved.
_FIXED_FLAGS: Final[dict[int, int]] = {
    packet_type: 0b0010 if packet_type in (PacketType.PUBREL, PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE) else 0
    for packet_type in PacketType
    if packet_type is not PacketType.PUBLISH
}
_DUP_AND_RETAIN: Final = 0b1001
_LONGEST_VERSION: Final = 9
"""Bytes of the longest protocol name and version, ``MQIsdp`` and 3."""


def decode_packet(
    first_byte: int, body: bytes, version: ProtocolVersion, most_items: int = MAXIMUM_VARIABLE_INTEGER
) -> Packet:
    """Return the packet with this first byte and body; a CONNECT is read in its own version, regardless of *version*.

    It may have *most_items* topic filters and properties; with more it is refused before the rest is read.
    Raises `PacketError` with the reason code to answer with, and with the version to answer a CONNECT in.
    """
    try:
        return _decode(first_byte, body, version, most_items)
    except PacketError as error:
        if first_byte >> 4 == PacketType.CONNECT:
            error.version = _version_of(body)
        raise


def announced_version(data: bytes, position: int) -> ProtocolVersion | None:
    """Return the version of the CONNECT at *position*, however little of it has arrived; None if there is none."""
    if data[position] >> 4 != PacketType.CONNECT:
        return None
    _, body = decode_length(data, position + 1)
    return _version_of(data[body : body + _LONGEST_VERSION])


def _version_of(body: bytes) -> ProtocolVersion | None:
    try:
        return protocol_version_of(body)
    except PacketError:
        return None


def _decode(first_byte: int, body: bytes, version: ProtocolVersion, most_items: int) -> Packet:
    packet_type, flags = first_byte >> 4, first_byte & 0x0F
    read = _READERS.get(packet_type)
    if read is None:
        raise MalformedPacket(f"packet type {packet_type} is reserved")
    fixed = _FIXED_FLAGS.get(packet_type, flags)
    if flags != fixed:  # [MQTT-2.1.3-1]
        spoken = _version_of(body) if packet_type == PacketType.CONNECT else version
        # MQTT 3.1 uses the QoS where that is 1, and DUP there; its tables have an "x", don't care, for all other flags.
        ignored = 0 if spoken is not ProtocolVersion.V31 else _DUP_AND_RETAIN if fixed else 0b1111
        if (flags ^ fixed) & ~ignored:
            raise MalformedPacket(f"{PacketType(packet_type).name}: the flags {flags:#06b} should be {fixed:#06b}")
    reader = Reader(body, most_items)
    packet = read(reader, flags, version)
    if reader.remaining:
        raise MalformedPacket(f"{packet.packet_type.name}: {reader.remaining} bytes behind the last field")
    return packet
