"""The trouble of a network: one value, set on a `proxy.Proxy` and changed while it runs.

Handles: latency, jitter, bandwidth, slicing, blackhole, reset, half-open; one direction or both.
Does not handle: packet loss and reordering below TCP (which a stream shows as latency and jitter), and a lost SYN: a
TCP connection to the proxy always opens, but a blackhole answers nothing on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """The direction of the affected bytes."""

    BOTH = "both"
    TO_BROKER = "to_broker"
    TO_DEVICE = "to_device"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A state of the network; `NONE` is a good one. Durations are seconds.

    Rules
    -----
    1. Bytes are delayed, held and cut; never lost, duplicated, changed or reordered: TCP hides such things.
    2. Trouble applies per connection: *bandwidth* is each connection's, in each direction.
    """

    latency: float = 0.0
    jitter: float = 0.0
    """Added to or subtracted from *latency*, uniformly; data never overtakes earlier data."""
    bandwidth: int | None = None
    """Bytes per second."""
    slice_bytes: int | None = None
    """Written in pieces of at most this many bytes, each in its own turn: 1 splits at every byte."""
    slice_pause: float = 0.0
    """Seconds between two pieces. Without a pause the receiver's kernel may rejoin some of them."""
    blackhole: bool = False
    """Nothing passes and nothing is acknowledged, so the sender's buffers fill. What waits is delivered afterwards."""
    reset: bool = False
    """All connections get RST on both sides; so does every new one."""
    half_open: bool = False
    """The device's end of all connections is gone (RST), and the broker is not told. New connections work."""
    direction: Direction = Direction.BOTH
    """Applies to everything but *reset* and *half_open*."""

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the invalid field."""
        for name, seconds in (("latency", self.latency), ("jitter", self.jitter), ("slice_pause", self.slice_pause)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"{name} is {seconds}: give seconds, 0 or more")
        for name, number in (("bandwidth", self.bandwidth), ("slice_bytes", self.slice_bytes)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}: give 1 or more bytes, or leave it out")
        if self.slice_pause and self.slice_bytes is None:
            raise ValueError("slice_pause without slice_bytes: say into what the stream is cut")

    def concerns(self, direction: Direction) -> bool:
        """Whether bytes in *direction* are affected."""
        return self.direction in {Direction.BOTH, direction}


NONE = Trouble()
