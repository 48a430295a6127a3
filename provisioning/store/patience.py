"""How long a writer's works wait for locks of other programs: as long as the server lets them, but not again and again.

Theory
------
While a work waits for a lock, all others wait for the work. If it has waited in vain, the lock may be on a row that
nobody else needs, or on a table that all need; and it may have been forgotten there, so that each further request for
the row would hold up all others as long again. So whoever comes next is tried by itself, and waits for a lock only
briefly, until nobody has waited in vain for `_CAUTIOUS_SECONDS`.

Rules
-----
1. No work is refused for a lock that it does not need: each is tried.
2. Brief waits in vain take no more than `_SHARE` of the time, after the first `_IN_VAIN_SECONDS`: once they have taken
   more, works hardly wait at all. So others wait for a bounded time, however many need the lock.
"""

from __future__ import annotations

import math
from typing import Final

BRIEF_SECONDS: Final = 0.05
"""Longer than VACUUM keeps a table locked while it gives its end back, since it looks every 20 ms who waits."""
LEAST_SECONDS: Final = 0.001
"""The least that PostgreSQL can be told."""
_IN_VAIN_SECONDS: Final = 2.0
_SHARE: Final = 0.25
_CAUTIOUS_SECONDS: Final = 60.0


class Patience:
    """What is left of it; times are the monotonic clock's."""

    def __init__(self) -> None:
        self._brief_until = -math.inf
        self._left = _IN_VAIN_SECONDS
        self._counted_at = 0.0

    def wait(self, now: float) -> float | None:
        """Return how many seconds a work that begins *now* waits for a lock; None: as long as the server lets it."""
        if now >= self._brief_until:
            return None
        return BRIEF_SECONDS if self._left_at(now) > 0 else LEAST_SECONDS

    def waited_in_vain(self, begun: float, ended: float, wait: float | None) -> None:
        """Note that a work, which was to *wait* so long, did so in vain, from *begun* to *ended*."""
        self._left = _IN_VAIN_SECONDS if wait is None else self._left_at(ended) - (ended - begun)
        self._counted_at = ended
        self._brief_until = ended + _CAUTIOUS_SECONDS

    def _left_at(self, now: float) -> float:
        """Return the seconds that brief waits may take from *now* on."""
        return min(_IN_VAIN_SECONDS, self._left + _SHARE * (now - self._counted_at))
