"""What is wrong with a network: one value, set on a `proxy.Proxy` and changed while it runs.

Handles: latency, jitter, bandwidth, slicing, blackhole, reset, half-open; one direction or both.
Does not handle: packet loss and reordering below TCP (what a stream shows of them is latency and jitter), and a SYN
that is lost: a TCP connection to the proxy always opens, but a blackhole answers nothing on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """Which way the bytes go that are in trouble."""

    BOTH = "both"
    TO_BROKER = "to_broker"
    TO_DEVICE = "to_device"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A state of the network; `NONE` is a good one. Durations are seconds.

    Rules
    -----
    1. Bytes are delayed, held and cut; never lost, doubled, changed or put in another order: TCP hides such things.
    2. Trouble is for each connection by itself: *bandwidth* is a connection's, in each direction.
    """

    latency: float = 0.0
    jitter: float = 0.0
    """Added to *latency* or taken from it, uniformly; never before what was sent earlier."""
    bandwidth: int | None = None
    """Bytes a second."""
    slice_bytes: int | None = None
    """Written in pieces of at most so many bytes, each in a turn of its own: 1 splits at every byte."""
    slice_pause: float = 0.0
    """Seconds between two pieces. Without a pause the receiver's kernel may join some of them again."""
    blackhole: bool = False
    """Nothing passes and nothing is acknowledged, so that the sender's buffers fill. What waits goes on afterwards."""
    reset: bool = False
    """All connections get RST on both sides; so does every new one."""
    half_open: bool = False
    """The device's end of all connections is gone (RST), and the broker is not told. New connections are well."""
    direction: Direction = Direction.BOTH
    """Of everything but *reset* and *half_open*."""

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field that cannot be."""
        for name, seconds in (("latency", self.latency), ("jitter", self.jitter), ("slice_pause", self.slice_pause)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"{name} is {seconds}: give seconds, 0 or more")
        for name, number in (("bandwidth", self.bandwidth), ("slice_bytes", self.slice_bytes)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}: give 1 or more bytes, or leave it out")
        if self.slice_pause and self.slice_bytes is None:
            raise ValueError("slice_pause without slice_bytes: say into what the stream is cut")

    def concerns(self, direction: Direction) -> bool:
        """Whether bytes that go in *direction* are in this trouble."""
        return self.direction in {Direction.BOTH, direction}


NONE = Trouble()
