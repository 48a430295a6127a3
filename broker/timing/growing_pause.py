"""How long to wait after each of several failures in a row: the first pause, then twice the last one, up to a bound.

For what the broker asks of others. What counts its failures for other purposes computes its pause from their number.
"""

from __future__ import annotations

import math


class GrowingPause:
    """The pauses between the attempts at one thing."""

    __slots__ = ("_first", "_longest", "_next")

    def __init__(self, first: float, longest: float = math.inf) -> None:
        """Begin with *first* seconds, and never return more than *longest*."""
        self._first = first
        self._longest = longest
        self._next = first

    def after_failure(self, most: float = math.inf) -> float:
        """Return the seconds to wait after one more failure, this time at most *most*."""
        pause = min(self._next, most)
        self._next = min(2 * pause, self._longest)
        return pause

    def reset(self) -> None:
        """Begin again: an attempt has succeeded, or there is reason to expect that the next one will."""
        self._next = self._first
