"""How fast one client may send: packets and bytes a second; who is faster is read less often, and loses nothing.

Theory
------
Two buckets fill by their rate and hold one second's worth. Each read takes what it brought. When a bucket is overdrawn
the transport *rests*: it does not read until the debt is paid, TCP tells the client to wait, and no message is dropped.
Nothing is counted for a connection without limits: it has no meter.

Rules
-----
1. No I/O, no clock. One call a read, not one a packet.
2. A rest has an end: what is owed beyond it is paid after the next read.
"""

from __future__ import annotations

from broker.settings.limits import Limits

_LONGEST_REST = 60.0


class Meter:
    """What one client has left."""

    __slots__ = ("_at", "_bytes", "_packets")

    def __init__(self, limits: Limits, now: float) -> None:
        self._packets = float(limits.max_packet_rate)
        self._bytes = float(limits.max_byte_rate)
        self._at = now

    def spend(self, packets: int, size: int, limits: Limits, now: float) -> float:
        """Take what a read brought; return for how many seconds nothing more should be read."""
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
