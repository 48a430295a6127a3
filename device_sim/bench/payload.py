"""A benchmark's payload: a stamp, padded with zeros to the requested size.

The stamp says when the message was due, in `time.monotonic_ns`: one clock for all processes of a machine, so that a
subscriber in another terminal can compute the latency. Between machines it is meaningless; the magic mark sets foreign
payloads apart. With at least 32 bytes it also identifies the message: the benchmark (a random number), the client, the
sequence number, and the QoS, and it has a CRC-32 of all that follows, to the last byte of the payload, so that a
subscriber sees what is lost, duplicated, overtaken or altered. The topic is not part of that: a bridge may change it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

SHORT = 16
"""Bytes of a stamp that only says when its message was due."""
NUMBERED = 32
"""Bytes of a stamp that also identifies the message."""
_TIME = struct.Struct("!8sQ")
_HEAD = struct.Struct("!4sI")
_NUMBERED = struct.Struct("!QIIQ")
_MARK, _NUMBERED_MARK = b"fleetsim", b"fseq"
_QOS_BITS = 2


class AlteredPayload(ValueError):
    """It is a benchmark's, and not as it was published."""


class Stamp(NamedTuple):
    """The content of a payload. *due* is `time.monotonic`; *number* counts from 1, and is 0 in a short one."""

    due: float
    benchmark: int = 0
    client: int = 0
    number: int = 0
    qos: int = 0


def payload(stamp: Stamp, size: int) -> bytes:
    """Return *size* bytes, at least 16, that start with *stamp*; fewer than 32 only say when it was due."""
    due = int(stamp.due * 1e9)
    if size < NUMBERED:
        return _TIME.pack(_MARK, due).ljust(size, b"\0")
    number = stamp.number << _QOS_BITS | stamp.qos
    sealed = _NUMBERED.pack(due, stamp.benchmark, stamp.client, number).ljust(size - _HEAD.size, b"\0")
    return _HEAD.pack(_NUMBERED_MARK, crc32(sealed)) + sealed


def stamp_of(body: bytes) -> Stamp | None:
    """Return the stamp of *body*; None if it is not a benchmark payload. Raises `AlteredPayload`."""
    if body.startswith(_NUMBERED_MARK):
        if len(body) < NUMBERED or _HEAD.unpack_from(body)[1] != crc32(memoryview(body)[_HEAD.size :]):
            raise AlteredPayload(f"{len(body)} bytes: {body[:NUMBERED]!r}")
        due, benchmark, client, number = _NUMBERED.unpack_from(body, _HEAD.size)
        return Stamp(float(due) / 1e9, benchmark, client, number >> _QOS_BITS, number & 3)
    if body.startswith(_MARK) and len(body) >= SHORT:
        return Stamp(float(_TIME.unpack_from(body)[1]) / 1e9)
    return None
