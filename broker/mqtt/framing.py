"""Split a byte stream into MQTT Control Packets, straight by the standard.

`broker.connection.connection` does the same inline for speed; this is its slow twin in the property tests, and is used
by test clients and the simulator.

Rules
-----
1. No I/O, no clock, no session state: bytes in, offsets out; nothing is copied.
2. A remaining length has at most four bytes, and no more than it needs [MQTT-1.5.5-1].
3. The packet size limit is checked as soon as the length is known, before the body has arrived.
4. An unfinished packet stays in place, for the caller to prepend to the next read.
"""

from __future__ import annotations

from typing import Final

from broker.mqtt.codes import ReasonCode
from broker.mqtt.errors import MalformedPacket, ProtocolError

_SHORTEST: Final = 2
"""Bytes of the shortest packet."""
_CONTINUATION: Final = 0x80

Frame = tuple[int, int, int]
"""First byte, start of the body, end of the body."""


def decode_length(data: bytes, position: int) -> tuple[int, int]:
    """Return the Remaining Length that begins at *position* and where the body begins, or (0, 0) if bytes are missing.

    Raises `MalformedPacket` for a fifth byte or an encoding longer than needed.
    """
    value = 0
    for index in range(4):
        if position + index >= len(data):
            return 0, 0
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < _CONTINUATION:
            if byte == 0 and index > 0:
                raise MalformedPacket("the remaining length uses more bytes than it needs")  # [MQTT-1.5.5-1]
            return value, position + index + 1
    raise MalformedPacket("the remaining length is longer than four bytes")


def split_frames(data: bytes, maximum_packet_size: int) -> tuple[list[Frame], int]:
    """Return the complete frames in *data* and how many bytes they span.

    Raises `MalformedPacket`, or `ProtocolError` with PACKET_TOO_LARGE for a packet over *maximum_packet_size* bytes.
    """
    frames: list[Frame] = []
    start = 0
    while start + 2 <= len(data):
        length, body = decode_length(data, start + 1)
        if body == 0:
            break
        end = body + length
        check_packet_size(end - start, maximum_packet_size)
        if end > len(data):
            break
        frames.append((data[start], body, end))
        start = end
    return frames, start


def bytes_needed(data: bytes, position: int) -> int:
    """Return how many bytes, from *position*, the unfinished packet there needs before another look is worthwhile."""
    if len(data) - position < _SHORTEST:
        return _SHORTEST
    length, body = decode_length(data, position + 1)
    return body - position + length if body else len(data) - position + 1


def check_packet_size(size: int, maximum_packet_size: int) -> None:
    """Raise `ProtocolError` if a packet of *size* bytes is larger than is accepted (MQTT 5 §3.2.2.3.6)."""
    if size > maximum_packet_size:
        raise ProtocolError(
            f"a packet of {size} bytes exceeds the maximum of {maximum_packet_size}", ReasonCode.PACKET_TOO_LARGE
        )
