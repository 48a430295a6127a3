"""A benchmark's payload: a stamp, padded with zeros to the requested size.

The stamp says when the message was due, in `time.monotonic_ns`: one clock for all processes of a machine, so that a
subscriber in another terminal can compute the latency. Between machines, and between two boots of one, it is
meaningless: so the stamp also says whose clock it is (`this_clock`). The magic mark sets foreign payloads apart. With
at least 32 bytes it also identifies the message: the benchmark (a random number), the client, the sequence number, and
the QoS, and it has a CRC-32 of all that follows, to the last byte of the payload, so that a subscriber sees what is
lost, duplicated, overtaken or altered. The topic is not part of that: a bridge may change it.
"""

from __future__ import annotations

import contextlib
import struct
from functools import cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

SHORT = 16
"""Bytes of a stamp that only says when its message was due."""
NUMBERED = 32
"""Bytes of a stamp that also identifies the message."""
_TIME = struct.Struct("!6sHQ")
_HEAD = struct.Struct("!4sI")
_NUMBERED = struct.Struct("!QIIQ")
_MARK, _NUMBERED_MARK = b"fleet\2", b"fsq2"
_QOS_BITS, _NUMBER_BITS = 2, 46
_CLOCKS = 0xFFFF
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/time")


class AlteredPayload(ValueError):
    """It is a benchmark's, and not as it was published."""


class Stamp(NamedTuple):
    """The content of a payload. *due* is `time.monotonic`; *number* counts from 1, and is 0 in a short one."""

    due: float
    benchmark: int = 0
    client: int = 0
    number: int = 0
    qos: int = 0
    clock: int = 0
    """Whose *due* it is, see `this_clock`."""


@cache
def this_clock() -> int:
    """Return a number for the clock of this machine since it was booted: others have another, but for one in 65,536.

    0 where that cannot be known.
    """
    try:
        boot = _BOOT.read_bytes()
    except OSError:
        return 0
    with contextlib.suppress(OSError):  # A kernel without such.
        boot += bytes(_NAMESPACE.readlink())  # A container may have a monotonic clock of its own.
    return crc32(boot) & _CLOCKS


def payload(stamp: Stamp, size: int) -> bytes:
    """Return *size* bytes, at least 16, that start with *stamp*; fewer than 32 only say when it was due."""
    due = int(stamp.due * 1e9)
    if size < NUMBERED:
        return _TIME.pack(_MARK, stamp.clock, due).ljust(size, b"\0")
    number = (stamp.clock << _NUMBER_BITS | stamp.number) << _QOS_BITS | stamp.qos
    sealed = _NUMBERED.pack(due, stamp.benchmark, stamp.client, number).ljust(size - _HEAD.size, b"\0")
    return _HEAD.pack(_NUMBERED_MARK, crc32(sealed)) + sealed


def stamp_of(body: bytes) -> Stamp | None:
    """Return the stamp of *body*; None if it is not a benchmark payload. Raises `AlteredPayload`."""
    if body.startswith(_NUMBERED_MARK):
        if len(body) < NUMBERED or _HEAD.unpack_from(body)[1] != crc32(memoryview(body)[_HEAD.size :]):
            raise AlteredPayload(f"{len(body)} bytes: {body[:NUMBERED]!r}")
        due, benchmark, client, last = _NUMBERED.unpack_from(body, _HEAD.size)
        number = last >> _QOS_BITS & (1 << _NUMBER_BITS) - 1
        return Stamp(float(due) / 1e9, benchmark, client, number, last & 3, last >> _QOS_BITS + _NUMBER_BITS)
    if body.startswith(_MARK) and len(body) >= SHORT:
        _, clock, due = _TIME.unpack_from(body)
        return Stamp(float(due) / 1e9, clock=clock)
    return None
