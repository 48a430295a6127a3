from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.mqtt.errors import MalformedPacket
from broker.mqtt.wire import (
    Reader,
    decode_utf8,
    encode_binary,
    encode_byte,
    encode_four_byte_integer,
    encode_frame,
    encode_packet_id,
    encode_remaining_length,
    encode_string,
    encode_string_pair,
    encode_two_byte_integer,
    encode_variable_integer,
)

# Table 1-1: the first and last value of each size.
VARIABLE_INTEGERS = [
    (0, b"\x00"),
    (127, b"\x7f"),
    (128, b"\x80\x01"),
    (16_383, b"\xff\x7f"),
    (16_384, b"\x80\x80\x01"),
    (2_097_151, b"\xff\xff\x7f"),
    (2_097_152, b"\x80\x80\x80\x01"),
    (268_435_455, b"\xff\xff\xff\x7f"),
]


@pytest.mark.parametrize(("value", "data"), VARIABLE_INTEGERS)
def test_a_variable_byte_integer_is_written_and_read(value: int, data: bytes) -> None:
    assert encode_variable_integer(value) == data
    assert encode_remaining_length(value) == data
    assert Reader(data).variable_integer("length") == value


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xff\x80\x00", b"\x80\x80\x80\x00"])
def test_a_variable_byte_integer_uses_the_minimum_number_of_bytes(data: bytes) -> None:  # [MQTT-1.5.5-1]
    with pytest.raises(MalformedPacket, match="length: variable byte integer is longer than it needs to be"):
        Reader(data).variable_integer("length")


def test_a_variable_byte_integer_has_four_bytes_at_most() -> None:
    with pytest.raises(MalformedPacket, match="length: variable byte integer is longer than four bytes"):
        Reader(b"\x80\x80\x80\x80\x01").variable_integer("length")


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff\xff\xff"])
def test_a_variable_byte_integer_ends_within_the_packet(data: bytes) -> None:
    with pytest.raises(MalformedPacket, match="length: 1 bytes needed, 0 left in the packet"):
        Reader(data).variable_integer("length")


def test_a_string_keeps_what_looks_like_a_byte_order_mark() -> None:  # [MQTT-1.5.4-3]
    assert Reader(b"\x00\x04\xef\xbb\xbfa").string("text") == "\ufeffa"
    assert encode_string("\ufeffa") == b"\x00\x04\xef\xbb\xbfa"


def test_a_string_of_the_standard_reads_as_it_says() -> None:  # Figure 1-2
    assert Reader(b"\x00\x05\x41\xf0\xaa\x9b\x94").string("text") == "A\U0002a6d4"


@pytest.mark.parametrize("data", [b"\xc0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\x80", b"\xe2\x82"])
def test_ill_formed_utf_8_is_malformed(data: bytes) -> None:  # [MQTT-1.5.4-1]
    with pytest.raises(MalformedPacket, match="text: not UTF-8 at byte 0"):
        decode_utf8(data, "text")


def test_fields_are_taken_in_order() -> None:
    reader = Reader(b"\x01\x02\x03\x04\x05\x06\x07\x00\x01x\x00\x00\x00\x01y" + b"tail")

    assert reader.byte("a") == 1
    assert reader.two_byte_integer("b") == 0x0203
    assert reader.four_byte_integer("c") == 0x04050607
    assert reader.binary("d") == b"x"
    assert reader.string_pair("e") == ("", "y")
    assert reader.remaining == 4
    assert reader.rest() == b"tail"
    assert reader.remaining == 0
    assert reader.rest() == b""


def test_a_field_that_overruns_takes_nothing() -> None:
    reader = Reader(b"\x00\x01")

    with pytest.raises(MalformedPacket):
        reader.four_byte_integer("field")

    assert reader.two_byte_integer("field") == 1


@pytest.mark.parametrize(
    ("encode", "value"),
    [
        (encode_byte, 256),
        (encode_byte, -1),
        (encode_two_byte_integer, 65_536),
        (encode_four_byte_integer, 1 << 32),
        (encode_variable_integer, 268_435_456),
        (encode_variable_integer, -1),
        (encode_packet_id, 0),
        (encode_packet_id, None),
        (encode_packet_id, 65_536),
        (encode_binary, bytes(65_536)),
        (encode_string, "é" * 32_768),
        (encode_string, "a\0b"),
        (encode_string, "\ud800"),
        (encode_string_pair, ("a", "\0")),
    ],
)
def test_what_does_not_fit_is_our_error_and_not_the_peers(encode: Callable[[object], bytes], value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode(value)


def test_the_longest_string_fits() -> None:
    assert Reader(encode_string("x" * 65_535)).string("text") == "x" * 65_535


def test_a_frame_is_a_fixed_header_and_a_body() -> None:
    assert encode_frame(0x30, b"x" * 200) == b"\x30\xc8\x01" + b"x" * 200
