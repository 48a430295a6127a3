"""A benchmark's payload: a stamp, and as many zeros as were asked for.

The stamp says when the message was due, in `time.monotonic_ns`: one clock for all processes of a machine, so that a
subscriber in another terminal can tell how long it took. Between machines it means nothing; the mark keeps others'
payloads apart. Where 32 bytes have room, it also says which message it is: of which benchmark (a number drawn for it),
which client, which in its sequence, and at which QoS, so that a subscriber sees what is lost, doubled or overtaken.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SHORT = 16
"""Bytes of a stamp that says only when its message was due."""
NUMBERED = 32
"""Bytes of one that says which message it is."""
_TIME = struct.Struct("!8sQ")
_NUMBERED = struct.Struct("!8sQIIQ")
_MARK, _NUMBERED_MARK = b"fleetsim", b"fleetseq"
_QOS_BITS = 2


class Stamp(NamedTuple):
    """What a payload says. *due* is `time.monotonic`; *number* counts from 1, and is 0 in a short one."""

    due: float
    benchmark: int = 0
    client: int = 0
    number: int = 0
    qos: int = 0


def payload(stamp: Stamp, size: int) -> bytes:
    """Return *size* bytes, 16 at least, that bear *stamp*; fewer than 32 say only when it was due."""
    due = int(stamp.due * 1e9)
    if size < NUMBERED:
        return _TIME.pack(_MARK, due).ljust(size, b"\0")
    number = stamp.number << _QOS_BITS | stamp.qos
    return _NUMBERED.pack(_NUMBERED_MARK, due, stamp.benchmark, stamp.client, number).ljust(size, b"\0")


def stamp_of(body: bytes) -> Stamp | None:
    """Return the stamp of *body*; None if it is not a payload of a benchmark."""
    if body.startswith(_NUMBERED_MARK) and len(body) >= NUMBERED:
        _, due, benchmark, client, number = _NUMBERED.unpack_from(body)
        return Stamp(float(due) / 1e9, benchmark, client, number >> _QOS_BITS, number & 3)
    if body.startswith(_MARK) and len(body) >= SHORT:
        return Stamp(float(_TIME.unpack_from(body)[1]) / 1e9)
    return None
