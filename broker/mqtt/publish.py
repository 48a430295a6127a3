"""PUBLISH and PUBACK by offsets and prepared bytes: the part of the codec that runs once per message.

Hot. Budget: part of that of `broker.connection.connection`, measured with it by benchmarks/receive_loop.py. Slow twin:
`broker.mqtt.packets`; tests/properties/test_codec_properties.py requires the same bytes from both.

Rules
-----
1. No I/O, no clock, no validation: the caller has checked lengths and UTF-8.
2. ``None`` for properties means MQTT 3.1.1, which has none; ``b""`` means MQTT 5 without any.
"""

from __future__ import annotations

from typing import Final

from broker.mqtt.wire import encode_remaining_length

PUBACK_HEAD: Final = b"\x40\x02"
"""PUBACK of any version when the reason is Success: type, length; the packet identifier follows (MQTT 5 §3.4.2.1)."""

PUBREL_HEAD: Final = b"\x62\x02"
"""PUBREL likewise."""

PINGREQ: Final = b"\xc0\x00"
PINGRESP: Final = b"\xd0\x00"


def encode_publish(first: int, topic: bytes, packet_id: bytes, properties: bytes | None, payload: bytes) -> bytes:
    """Return a whole PUBLISH packet; *packet_id* is two bytes, or empty for QoS 0."""
    head, tail = split_publish(first, topic, properties, payload, len(packet_id))
    return head + packet_id + tail


def split_publish(
    first: int, topic: bytes, properties: bytes | None, payload: bytes, packet_id_size: int = 2
) -> tuple[bytes, bytes]:
    """Return what comes before and after the packet identifier in a PUBLISH packet."""
    tail = payload if properties is None else encode_remaining_length(len(properties)) + properties + payload
    length = 2 + len(topic) + packet_id_size + len(tail)
    head = b"%c%b%b%b" % (first, encode_remaining_length(length), len(topic).to_bytes(2, "big"), topic)
    return head, tail
