"""How many connections a listener accepts per second; others wait in the kernel's queue and are not refused."""

from __future__ import annotations


class ConnectionRate:
    """A bucket that refills at *rate* per second and holds one second's worth."""

    __slots__ = ("_at", "_left")

    def __init__(self, now: float) -> None:
        self._left = 1.0
        self._at = now

    def available(self, rate: float, now: float) -> int:
        """Return how many may be accepted now."""
        self._left = min(self._left + (now - self._at) * rate, max(rate, 1.0))
        self._at = now
        return int(self._left)

    def take(self) -> None:
        """Accept one."""
        self._left = max(self._left - 1.0, 0.0)  # Without a limit the bucket is never refilled.

    def pause(self, rate: float) -> float:
        """Return in how many seconds there will be one more."""
        return max(1.0 - self._left, 0.0) / rate
