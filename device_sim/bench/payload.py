"""A benchmark's payload: a stamp, padded with zeros to the requested size.

The stamp says when the message was due, in `time.monotonic_ns`: one clock for all processes of a machine, so that a
subscriber in another terminal can compute the latency. Between machines it is meaningless; the magic mark sets foreign
payloads apart. With at least 32 bytes it also identifies the message: the benchmark (a random number), the client, the
sequence number, and the QoS, so that a subscriber sees what is lost, duplicated or overtaken.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SHORT = 16
"""Bytes of a stamp that only says when its message was due."""
NUMBERED = 32
"""Bytes of a stamp that also identifies the message."""
_TIME = struct.Struct("!8sQ")
_NUMBERED = struct.Struct("!8sQIIQ")
_MARK, _NUMBERED_MARK = b"fleetsim", b"fleetseq"
_QOS_BITS = 2


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
    return _NUMBERED.pack(_NUMBERED_MARK, due, stamp.benchmark, stamp.client, number).ljust(size, b"\0")


def stamp_of(body: bytes) -> Stamp | None:
    """Return the stamp of *body*; None if it is not a benchmark payload."""
    if body.startswith(_NUMBERED_MARK) and len(body) >= NUMBERED:
        _, due, benchmark, client, number = _NUMBERED.unpack_from(body)
        return Stamp(float(due) / 1e9, benchmark, client, number >> _QOS_BITS, number & 3)
    if body.startswith(_MARK) and len(body) >= SHORT:
        return Stamp(float(_TIME.unpack_from(body)[1]) / 1e9)
    return None
