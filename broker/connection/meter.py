"""How fast one client may send: packets and bytes per second. A faster client is read less often and loses nothing.

Theory
------
Two buckets refill at their rates and hold one second's worth each. Every read is deducted from them. When a bucket is
overdrawn the transport *rests*: it does not read until the debt is repaid, TCP makes the client wait, and no message is
dropped. Without limits there are no meters, and nothing is counted; limits that a reload sets apply from the next read
on, and a client begins with what one second allows.

Rules
-----
1. No I/O, no clock. One call per read, not per packet.
2. A rest is bounded: any remaining debt is repaid after the next read.
"""

from __future__ import annotations

from typing import Final

from broker.settings.limits import Limits

_LONGEST_REST: Final = 60.0
_FULL: Final = float("inf")  # Whatever the rate is when the bucket is first used: `spend` cuts it down to that.


class Meter:
    """What is left of one client's rates."""

    __slots__ = ("_at", "_bytes", "_packets")

    def __init__(self, now: float) -> None:
        self._packets = self._bytes = _FULL
        self._at = now

    def spend(self, packets: int, size: int, limits: Limits, now: float) -> float:
        """Deduct what a read brought; return for how many seconds nothing more should be read."""
        gone, self._at = now - self._at, now
        rest = 0.0
        rate = limits.max_packet_rate
        if rate:
            self._packets = min(self._packets + gone * rate, rate) - packets
            rest = -self._packets / rate
        rate = limits.max_byte_rate
        if rate:
            self._bytes = min(self._bytes + gone * rate, rate) - size
            rest = max(rest, -self._bytes / rate)
        return min(rest, _LONGEST_REST)
