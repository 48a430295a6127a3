"""The encoding of a reading: JSON, CBOR or raw bytes; the receiver recognises it by the first byte.

Theory
------
Whatever the format, a payload states which message it is (`sequence`), when it was due and when it was sent, both
`time.monotonic_ns`, and what was measured. At its end is a seal (`seal`). Raw is what a device without a parser sends::

    magic "F", version 2, count of values             4 bytes
    sequence, due, sent                               3 x 8 bytes, big endian
    values in the model's order                       count x 4 bytes, IEEE 754 single; a text is a NaN
    seal                                              4 bytes

Rules
-----
1. At most `LARGEST` bytes of payload are ever decoded; anything that is not ours raises `UnreadableTelemetry`.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import cbor2

from device_sim.telemetry import seal
from device_sim.telemetry.reading import Reading, Value

LARGEST = 64 * 1024
_RAW = struct.Struct("!cBHQqq")
_MAGIC, _VERSION = b"F", 2
_JSON_OBJECT = 0x7B
_CBOR_MAP, _CBOR_MAP_END = 0xA0, 0xC0
_LEAST, _MOST = -(2**63), 2**64 - 1


class Format(StrEnum):
    """How a payload is written."""

    JSON = "json"
    CBOR = "cbor"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A received reading: its number, when it was due and when sent (`time.monotonic_ns`), and its values."""

    sequence: int
    due_ns: int
    sent_ns: int
    values: dict[str, Value]


class UnreadableTelemetry(ValueError):
    """The payload was not made by `encode`."""


def encode(
    reading: Reading, sequence: int, due_ns: int, sent_ns: int, form: Format = Format.JSON, *, key: int
) -> bytes:
    """Return the payload that carries *reading*, sealed with *key* (`seal.key_of`)."""
    if form is Format.RAW:
        numbers = [math.nan if isinstance(value, str) or value is None else value for value in reading.values.values()]
        head = _RAW.pack(_MAGIC, _VERSION, len(numbers), sequence, due_ns, sent_ns)
        return seal.sealed_bytes(head + struct.pack(f"!{len(numbers)}f", *numbers), key)
    fields: dict[str, Any] = {"seq": sequence, "due_ns": due_ns, "sent_ns": sent_ns, **reading.values}
    if form is Format.CBOR:
        fields[seal.NAME] = seal.BLANK
        return seal.sealed_bytes(cbor2.dumps(fields)[: -seal.WIDTH], key)
    return seal.sealed_object(json.dumps(fields, separators=(",", ":")).encode(), key)


def decode(payload: bytes) -> Telemetry:
    """Return the content of *payload*, whatever its seal; raise `UnreadableTelemetry` if it is not ours."""
    if not payload or len(payload) > LARGEST:
        raise UnreadableTelemetry(f"a payload of {len(payload)} bytes is no telemetry")
    try:
        first = payload[0]
        if first == _JSON_OBJECT:
            return _of(json.loads(payload))
        if _CBOR_MAP <= first < _CBOR_MAP_END:
            return _of(cbor2.loads(payload))
        return _of_raw(payload)
    except (ValueError, KeyError, TypeError, OverflowError, struct.error, RecursionError, cbor2.CBORError) as error:
        raise UnreadableTelemetry(f"payload {payload[:80]!r} is no telemetry: {error!r}") from error


def _of(fields: dict[Any, Any]) -> Telemetry:
    if not all(isinstance(name, str) for name in fields):
        raise TypeError("a reading's names are texts")
    sequence, due, sent = (int(fields.pop(name)) for name in ("seq", "due_ns", "sent_ns"))
    if not all(_LEAST <= number <= _MOST for number in (sequence, due, sent)):
        raise ValueError("a number or a time has 64 bits")  # A larger one is no float: nothing could be measured.
    fields.pop(seal.NAME, None)
    for name, value in fields.items():
        if not (value is None or isinstance(value, str | int | float)):
            raise TypeError(f"{name!r}: {value!r} is no reading")
    return Telemetry(sequence, due, sent, fields)


def _of_raw(payload: bytes) -> Telemetry:
    magic, version, count, sequence, due, sent = _RAW.unpack_from(payload)
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError(f"it begins with {payload[:2]!r}")
    numbers = struct.unpack(f"!{count}f", payload[_RAW.size : -seal.WIDTH])
    return Telemetry(sequence, due, sent, {f"value_{index}": number for index, number in enumerate(numbers, 1)})
