"""How long to wait before the next attempt to connect: exponential, with full jitter.

Theory
------
A thousand devices that lost the same broker must not come back at the same moment. Full jitter draws the pause evenly
from zero to the exponential bound, which spreads them over the whole interval and keeps the mean at half of it.
Pure: the attempt number and a source of randomness in, seconds out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class Jitter(StrEnum):
    """How a pause is drawn: anywhere up to the bound, or always the bound, as too many devices do."""

    FULL = "full"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between 0 and ``min(cap, base * 2 ** attempt)`` seconds."""

    base: float = 0.5
    cap: float = 30.0
    jitter: Jitter = Jitter.FULL

    def __post_init__(self) -> None:
        if not 0 < self.base <= self.cap:
            raise ValueError(f"backoff base {self.base!r}, cap {self.cap!r}: use 0 < base <= cap")

    def bound(self, attempt: int) -> float:
        """Return the longest pause before *attempt* (0, 1, 2, …)."""
        # 2 ** 1024 does not fit a float; a fleet that has failed for so long is at its cap anyway.
        return min(self.cap, self.base * 2.0 ** min(attempt, 64))

    def pause(self, attempt: int, randomness: random.Random) -> float:
        """Return a pause in seconds: drawn evenly up to the bound, or the bound itself."""
        if self.jitter is Jitter.NONE:
            return self.bound(attempt)
        return randomness.uniform(0.0, self.bound(attempt))
