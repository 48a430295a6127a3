"""One direction of one connection in trouble: bytes go in, and come out later, slower, in pieces.

Theory
------
A line is a queue of data with arrival times. When data comes out is computed when it is requested, from the trouble at
that moment: so a slow line releases everything as soon as the trouble ends.

Rules
-----
1. The output is the input, in order; the end of the stream comes after the last byte, as ``b""``.
2. No credit: time in which a line was idle, or held back, lets nothing pass faster later.
3. No I/O and no clock: *now* is an argument, and never decreases.

Handles: latency, jitter, bandwidth, slicing, blackhole. Does not handle: sockets and back-pressure; `room` says when to
stop adding data.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

from device_sim.trouble.trouble import NONE, Trouble

CAPACITY = 256 * 1024
"""Bytes that a line holds before it accepts no more: at one second of latency this is the throughput per second."""
_FLOW = 0.01
"""Seconds: at a limited bandwidth, this much data goes out at once."""


@dataclass(slots=True)
class _Chunk:
    data: bytes
    arrived: float
    luck: float
    """From -1 to 1: the part of the jitter applied to this piece."""
    taken: int = 0


class Line:
    """A queue whose far end is late."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._trouble = NONE
        self._chunks: deque[_Chunk] = deque()
        self._free_at = 0.0
        self.held = 0

    @property
    def room(self) -> bool:
        """Whether more may be put in."""
        return self.held < CAPACITY

    @property
    def cut(self) -> bool:
        """Whether nothing comes out, however long one waits."""
        return self._trouble.blackhole

    def set(self, trouble: Trouble, now: float) -> None:
        """Apply *trouble* from *now* on."""
        self._trouble = trouble
        self._free_at = now

    def put(self, data: bytes, now: float) -> None:
        """Put *data* in; ``b""`` is the end of the stream."""
        self._chunks.append(_Chunk(data, now, self._random.uniform(-1.0, 1.0)))
        self.held += len(data)

    @property
    def next_at(self) -> float | None:
        """When data will be due; None if there is none, or nothing comes out."""
        if not self._chunks or self._trouble.blackhole:
            return None
        chunk, trouble = self._chunks[0], self._trouble
        delay = max(0.0, trouble.latency + chunk.luck * trouble.jitter)
        return max(chunk.arrived + delay, self._free_at)

    def take(self, now: float) -> list[bytes]:
        """Return the pieces that are due; while slicing, one of them."""
        pieces: list[bytes] = []
        while (due := self.next_at) is not None and due <= now:
            piece = self._piece()
            pieces.append(piece)
            self._free_at = due + self._cost(piece)
            if self._trouble.slice_bytes is not None:
                break
        return pieces

    def _piece(self) -> bytes:
        chunk, size = self._chunks[0], self._size()
        piece = chunk.data[chunk.taken : chunk.taken + size] if size is not None else chunk.data[chunk.taken :]
        chunk.taken += len(piece)
        self.held -= len(piece)
        if chunk.taken == len(chunk.data):
            self._chunks.popleft()
        return piece

    def _size(self) -> int | None:
        trouble = self._trouble
        flow = None if trouble.bandwidth is None else max(1, int(trouble.bandwidth * _FLOW))
        limits = [limit for limit in (trouble.slice_bytes, flow) if limit is not None]
        return min(limits) if limits else None

    def _cost(self, piece: bytes) -> float:
        trouble = self._trouble
        flowing = len(piece) / trouble.bandwidth if trouble.bandwidth is not None else 0.0
        return max(flowing, trouble.slice_pause)
