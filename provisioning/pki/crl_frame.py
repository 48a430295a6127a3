"""A CRL taken apart before anybody parses it: what is signed, its entries, and the rest, a list without entries.

Theory
------
::

    SEQUENCE ─ signed: SEQUENCE ─ version? algorithm issuer thisUpdate nextUpdate?   frame
             │                  ├ SEQUENCE ─ entry, entry, …                         cut out
             │                  └ [0] extensions?                                    frame
             └ algorithm, signature                                                  frame

(RFC 5280 §5.1). Only the lengths are looked at. What is in the frame, and in each entry, is for the library to say; it
is given the frame as a list without entries, and some entries at a time as a list of nothing else.

Rules
-----
1. Lengths are those of DER, the shortest ones, and nothing is behind the list: as the library demands of a whole one.
2. Nothing is allocated for a length that is only claimed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

LARGEST_FRAME: Final = 64 * 1024
_SEQUENCE, _INTEGER = 0x30, 0x02
_TIMES: Final = (0x17, 0x18)
_LONG_FORM: Final = 0x80
_MOST_OCTETS: Final = 4
"""Of a length."""
_ALGORITHM: Final = bytes.fromhex("300a06082a8648ce3d040302")
_BEFORE: Final = bytes.fromhex("020101") + _ALGORITHM + bytes.fromhex("3000") + b"\x17\x0d250101000000Z"
_BEHIND: Final = _ALGORITHM + bytes.fromhex("030100")


def cut_out(der: bytes) -> tuple[bytes, tuple[int, int], bytes]:
    """Return what is signed of the list *der*, where in that its entries are, and the list without them.

    Raises ValueError if it is no list, or very large without its entries.
    """
    begin, end = _inside(der, 0, _SEQUENCE)
    if end != len(der):
        raise ValueError("something is behind it")
    at, signed_end = _inside(der, begin, _SEQUENCE)
    if der[at : at + 1] == bytes([_INTEGER]):
        at = _inside(der, at, _INTEGER)[1]
    for _ in ("algorithm", "issuer"):
        at = _inside(der, at, _SEQUENCE)[1]
    for _ in ("thisUpdate", "nextUpdate"):
        if at < signed_end and der[at] in _TIMES:
            at = _inside(der, at, der[at])[1]
    first = last = behind = at
    if at < signed_end and der[at] == _SEQUENCE:
        first, last = _inside(der, at, _SEQUENCE)
        behind = last
    if behind > signed_end:
        raise ValueError("its entries end behind it")
    if at < behind < signed_end and der[behind] == _SEQUENCE:  # Without the first of them, the list would look right.
        raise ValueError("its entries are in two parts")
    if len(der) - (last - first) > LARGEST_FRAME:
        raise ValueError(f"it has more than {LARGEST_FRAME} bytes besides its entries")
    inner = _element(_SEQUENCE, der[_inside(der, begin, _SEQUENCE)[0] : at] + der[behind:signed_end])
    return der[begin:signed_end], (first - begin, last - begin), _element(_SEQUENCE, inner + der[signed_end:end])


def portions(signed: bytes, first: int, last: int, most: int, most_bytes: int) -> Iterator[bytes]:
    """Yield the entries in *signed*, from *first* to *last*, as lists of *most* entries, and *most_bytes*, at most.

    Raises ValueError where there is no entry, or one that alone has more.
    """
    begin = at = first
    number = 0
    while at < last:
        end = _inside(signed, at, _SEQUENCE)[1]
        if end > last or end - at > most_bytes:
            raise ValueError(f"an entry ends behind the others, or has more than {most_bytes} bytes")
        if number == most or end - begin > most_bytes:
            yield _list_of(signed[begin:at])
            begin, number = at, 0
        at = end
        number += 1
    if number:
        yield _list_of(signed[begin:at])


def _list_of(entries: bytes) -> bytes:
    return _element(_SEQUENCE, _element(_SEQUENCE, _BEFORE + _element(_SEQUENCE, entries)) + _BEHIND)


def _inside(der: bytes, at: int, tag: int) -> tuple[int, int]:
    """Return where the content of the element at *at* begins and ends; raise ValueError if it is no *tag*."""
    if len(der) < at + 2 or der[at] != tag:
        raise ValueError(f"no element {tag:#x} at {at}")
    size, begin = der[at + 1], at + 2
    if size >= _LONG_FORM:
        octets = size - _LONG_FORM
        begin += octets
        size = int.from_bytes(der[begin - octets : begin], "big")
        shortest = 1 if size < 1 << 8 else (size.bit_length() + 7) // 8
        if size < _LONG_FORM or not 0 < octets <= _MOST_OCTETS or octets != shortest:
            raise ValueError(f"the length at {at} is not in DER")
    if begin + size > len(der):
        raise ValueError(f"the element at {at} ends behind the list")
    return begin, begin + size


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < _LONG_FORM:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, _LONG_FORM + len(length)]) + length + content
