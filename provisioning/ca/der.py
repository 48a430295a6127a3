"""The few lines of DER that are worth writing by hand: a CRL with a hundred thousand entries in milliseconds.

The library builds such a CRL from one object per entry, which holds the GIL for a second; the entries never change, so
they are encoded once and then only concatenated.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

BIT_STRING: Final = b"\x03"
SEQUENCE: Final = b"\x30"
SET: Final = b"\x31"
OCTET_STRING: Final = b"\x04"
NULL: Final = b"\x05\x00"

_OBJECT_IDENTIFIER: Final = b"\x06"
_INTEGER: Final = b"\x02"
_UTC_TIME: Final = b"\x17"
_GENERALIZED_TIME: Final = b"\x18"
_FIRST_GENERALIZED_YEAR: Final = 2050  # RFC 5280 §5.1.2.6
_SHORT_LENGTH: Final = 0x80
_CONSTRUCTED: Final = 0x20
_COMMON_NAME: Final = bytes.fromhex("06035504030c")  # Its identifier, and the tag of a UTF8String.
_NAME_HEAD: Final = 13
"""Octets before the Common Name in a subject that consists of it alone."""


def element(tag: bytes, content: bytes) -> bytes:
    """Return *content* with its tag and length."""
    return head(tag, len(content)) + content


@functools.lru_cache(4096)
def head(tag: bytes, size: int) -> bytes:
    """Return the tag and length octets for a content of *size* octets, so that a long content need not be copied."""
    if size < _SHORT_LENGTH:
        return tag + bytes((size,))
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return tag + bytes((_SHORT_LENGTH | len(octets),)) + octets


def integer(value: int) -> bytes:
    """Return a non-negative INTEGER."""
    return element(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


def object_identifier(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    content = bytearray()
    for number in (40 * first + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return element(_OBJECT_IDENTIFIER, bytes(content))


def time(moment: datetime) -> bytes:
    """Return a Time as RFC 5280 requires: UTCTime until 2049, then GeneralizedTime; no fractions."""
    moment = moment.astimezone(UTC)
    if moment.year < _FIRST_GENERALIZED_YEAR:
        return element(_UTC_TIME, _digits(moment)[2:])
    return element(_GENERALIZED_TIME, _digits(moment))


def generalized_time(moment: datetime) -> bytes:
    """Return a GeneralizedTime as RFC 5280 §4.1.2.5.2 requires: UTC, to the second."""
    return element(_GENERALIZED_TIME, _digits(moment.astimezone(UTC)))


def _digits(moment: datetime) -> bytes:
    # As strftime's %Y%m%d%H%M%SZ, which takes four times as long.
    date = moment.year * 10_000 + moment.month * 100 + moment.day
    return b"%08d%06dZ" % (date, moment.hour * 10_000 + moment.minute * 100 + moment.second)


def children(encoded: bytes) -> Iterator[bytes]:
    """Yield the elements inside the constructed element *encoded*, which the library has made or parsed."""
    place, end = _content(encoded, 0)
    while place < end:
        _, after = _content(encoded, place)
        yield encoded[place:after]
        place = after


def content(encoded: bytes) -> bytes:
    """Return what is inside the element *encoded*, which the library has made."""
    begin, end = _content(encoded, 0)
    return encoded[begin:end]


def whole_size(encoded: bytes) -> int | None:
    """Return how long the element is that *encoded*, anybody's bytes, begins with; None if its length is missing."""
    try:
        begin, end = _content(encoded, 0)
    except IndexError:
        return None
    return end if begin <= len(encoded) else None


def has_more_parts(encoded: bytes, most: int) -> bool:
    """Whether *encoded*, anybody's bytes, has more than *most* elements, at any depth and inside OCTET STRINGs.

    What is no DER ends the count of what is around it: whoever reads it ends there, too.
    """
    found, inside = 0, [(0, len(encoded))]
    while inside:
        place, end = inside.pop()
        while place + 1 < end:
            tag, size = encoded[place], encoded[place + 1]
            place += 2
            if size >= _SHORT_LENGTH:
                octets = size - _SHORT_LENGTH
                size = int.from_bytes(encoded[place : place + octets])
                place += octets
            if not tag or size > end - place:
                break
            found += 1
            if found > most:
                return True
            if tag & _CONSTRUCTED or tag == OCTET_STRING[0]:
                inside.append((place, place + size))
            place += size
    return False


def only_common_name(subject: bytes) -> bytes | None:
    """Return the Common Name of a *subject* that is nothing else, in UTF-8 and under 115 octets; otherwise None."""
    size = len(subject)
    if not _NAME_HEAD < size < _SHORT_LENGTH:
        return None
    head = bytes((0x30, size - 2, 0x31, size - 4, 0x30, size - 6)) + _COMMON_NAME + bytes((size - _NAME_HEAD,))
    return subject[_NAME_HEAD:] if subject.startswith(head) else None


def _content(encoded: bytes, place: int) -> tuple[int, int]:
    """Return where the content of the element at *place* begins and ends."""
    size = encoded[place + 1]
    begin = place + 2
    if size >= _SHORT_LENGTH:
        octets = size - _SHORT_LENGTH
        size = int.from_bytes(encoded[begin : begin + octets])
        begin += octets
    return begin, begin + size
