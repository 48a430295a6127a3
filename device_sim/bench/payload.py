"""A benchmark's payload: a stamp of 16 bytes, and as many zeros as were asked for.

The stamp says when the message was due, in `time.monotonic_ns`: one clock for all processes of a machine, so that a
subscriber in another terminal can tell how long it took. Between machines it means nothing; the mark keeps others'
payloads apart.
"""

from __future__ import annotations

import struct

_STAMP = struct.Struct("!8sQ")
_MARK = b"fleetsim"


def payload(due: float, size: int) -> bytes:
    """Return *size* bytes that were due at *due* (`time.monotonic`)."""
    return _STAMP.pack(_MARK, int(due * 1e9)).ljust(size, b"\0")


def due_of(body: bytes) -> float | None:
    """Return when *body* was due; None if it is not a payload of a benchmark."""
    if len(body) < _STAMP.size:
        return None
    mark, due = _STAMP.unpack_from(body)
    return float(due) / 1e9 if mark == _MARK else None
