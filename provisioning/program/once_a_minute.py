"""Whether to log what others can cause endlessly: the first time at once, then once a minute with how often it was.

The times are passed in; they are of a clock that is never set back.
"""

from __future__ import annotations

import math
from typing import Final

_PAUSE: Final = 60.0


class OnceAMinute:
    """The lines about one thing."""

    __slots__ = ("_logged_at", "_times")

    def __init__(self) -> None:
        self._logged_at = -math.inf
        self._times = 0

    def happened(self, now: float) -> int:
        """Count it; return how many times the line stands for that is to be logged now, 0: none is."""
        self._times += 1
        if now - self._logged_at < _PAUSE:
            return 0
        times, self._times, self._logged_at = self._times, 0, now
        return times
