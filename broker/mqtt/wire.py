"""The data types of the wire (MQTT 5 §1.5): a reader that cannot overrun, and the encoders.

Rules
-----
1. A `Reader` takes fields from the front of one packet's body. A field that is missing, too long or not UTF-8 raises
   `MalformedPacket` naming the field.
2. Topic filters and properties, of which a packet may hold any number, cost a hundred times their bytes: a `Reader`
   accepts only as many as its creator allows.
3. An encoder raises `ValueError` for a value that its data type cannot hold; it never writes a wrong length.

Does not handle: what a field means, or splitting a stream into packets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.mqtt.codes import ReasonCode
from broker.mqtt.errors import MalformedPacket, ProtocolError

MAXIMUM_STRING: Final = 0xFFFF
MAXIMUM_VARIABLE_INTEGER: Final = 268_435_455
_CONTINUATION: Final = 0x80
_VARIABLE_INTEGER_SHIFTS: Final = (0, 7, 14, 21)


def decode_utf8(data: bytes, field: str) -> str:
    """Return *data* as text; raise `MalformedPacket` for what a UTF-8 Encoded String may not hold.

    Control characters and non-characters are accepted: the standard leaves them to the receiver (§1.5.4), and code that
    prints a string must quote it anyway.
    """
    try:
        text = (
            data.decode()
        )  # Strict: refuses surrogates and overlong forms [MQTT-1.5.4-1], keeps U+FEFF [MQTT-1.5.4-3].
    except UnicodeDecodeError as error:
        raise MalformedPacket(f"{field}: not UTF-8 at byte {error.start}") from None
    if "\0" in text:  # [MQTT-1.5.4-2]
        raise MalformedPacket(f"{field}: holds the null character")
    return text


class Reader:
    """A cursor over the body of one packet."""

    __slots__ = ("_data", "_end", "_position", "items_left")

    def __init__(self, data: bytes, most_items: int = MAXIMUM_VARIABLE_INTEGER) -> None:
        """Read *data*, with at most *most_items* topic filters and properties."""
        self._data = data
        self._position = 0
        self._end = len(data)
        self.items_left = most_items

    @property
    def remaining(self) -> int:
        """Bytes not yet taken."""
        return self._end - self._position

    def take(self, size: int, field: str) -> bytes:
        """Return the next *size* bytes."""
        start = self._position
        end = start + size
        if end > self._end:
            raise MalformedPacket(f"{field}: {size} bytes needed, {self._end - start} left in the packet")
        self._position = end
        return self._data[start:end]

    def count(self, field: str) -> None:
        """Count one more topic filter or property."""
        self.items_left -= 1
        if self.items_left < 0:
            raise ProtocolError(f"{field}: more of them than this server takes in a packet", ReasonCode.QUOTA_EXCEEDED)

    def rest(self) -> bytes:
        """Return everything that is left."""
        return self.take(self.remaining, "rest")

    def byte(self, field: str) -> int:
        """Return one byte."""
        return self.take(1, field)[0]

    def two_byte_integer(self, field: str) -> int:
        """Return a Two Byte Integer."""
        both = self.take(2, field)
        return both[0] << 8 | both[1]

    def four_byte_integer(self, field: str) -> int:
        """Return a Four Byte Integer."""
        return int.from_bytes(self.take(4, field))

    def variable_integer(self, field: str) -> int:
        """Return a Variable Byte Integer: at most four bytes, and no more than it needs."""
        value = 0
        for shift in _VARIABLE_INTEGER_SHIFTS:
            byte = self.byte(field)
            value |= (byte & 0x7F) << shift
            if byte < _CONTINUATION:
                if byte == 0 and shift > 0:  # [MQTT-1.5.5-1]
                    raise MalformedPacket(f"{field}: variable byte integer is longer than it needs to be")
                return value
        raise MalformedPacket(f"{field}: variable byte integer is longer than four bytes")

    def binary(self, field: str) -> bytes:
        """Return Binary Data: a Two Byte Integer and that many bytes."""
        return self.take(self.two_byte_integer(field), field)

    def string(self, field: str) -> str:
        """Return a UTF-8 Encoded String."""
        return decode_utf8(self.binary(field), field)

    def string_pair(self, field: str) -> tuple[str, str]:
        """Return a UTF-8 String Pair [MQTT-1.5.7-1]."""
        return self.string(f"{field} name"), self.string(f"{field} value")

    def packet_id(self) -> int:
        """Return a Packet Identifier."""
        packet_id = self.two_byte_integer("packet identifier")
        if packet_id == 0:  # [MQTT-2.2.1-3], [MQTT-2.2.1-4]
            raise ProtocolError("packet identifier: 0 is not allowed")
        return packet_id


def _integer_encoder(size: int, name: str) -> Callable[[int], bytes]:
    def encode(value: int) -> bytes:
        if not 0 <= value < 1 << 8 * size:
            raise ValueError(f"{value} does not fit a {name}")
        return value.to_bytes(size)

    return encode


encode_byte = _integer_encoder(1, "byte")
encode_two_byte_integer = _integer_encoder(2, "two byte integer")
encode_four_byte_integer = _integer_encoder(4, "four byte integer")


def encode_variable_integer(value: int) -> bytes:
    """Return *value* as a Variable Byte Integer of as few bytes as possible [MQTT-1.5.5-1]."""
    if not 0 <= value <= MAXIMUM_VARIABLE_INTEGER:
        raise ValueError(f"{value} does not fit a variable byte integer")
    encoded = bytearray()
    while value >= _CONTINUATION:
        encoded.append(value & 0x7F | _CONTINUATION)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_remaining_length(length: int) -> bytes:
    """Return the Remaining Length of a fixed header whose packet has a body of *length* bytes."""
    return encode_variable_integer(length)


def encode_binary(data: bytes) -> bytes:
    """Return Binary Data: the length of *data*, then *data*."""
    if len(data) > MAXIMUM_STRING:
        raise ValueError(f"{len(data)} bytes do not fit a field of {MAXIMUM_STRING}")
    return len(data).to_bytes(2) + data


def encode_string(text: str) -> bytes:
    """Return *text* as a UTF-8 Encoded String."""
    if "\0" in text:  # [MQTT-1.5.4-2]
        raise ValueError("a string of MQTT may not hold the null character")
    return encode_binary(text.encode())


def encode_string_pair(pair: tuple[str, str]) -> bytes:
    """Return a UTF-8 String Pair."""
    name, value = pair
    return encode_string(name) + encode_string(value)


def encode_packet_id(packet_id: int | None) -> bytes:
    """Return a Packet Identifier: 1 to 65,535."""
    if not packet_id:  # [MQTT-2.2.1-3]
        raise ValueError(f"packet identifier {packet_id}: use 1 to 65,535")
    return encode_two_byte_integer(packet_id)


def encode_frame(first_byte: int, body: bytes) -> bytes:
    """Return the whole packet: fixed header, then *body*."""
    return bytes((first_byte,)) + encode_remaining_length(len(body)) + body
