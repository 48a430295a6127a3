"""An outage of the store: the lines that say why it cannot be used, and when it is over.

Theory
------
A full disk can be read, a server may have no connection left for some: what works beside what fails tells nothing.
So an outage is over when each lane that was refused has been served again, and nothing has failed for a moment. A lock
that somebody else holds fails some works among many that succeed, and would else begin and end many a second.

Rules
-----
1. The end is logged once, and only if a line has said that there is an outage.
2. `failed` is called from any thread, the rest from the event loop's. No clock: the time is passed in.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable
from typing import Final

from provisioning.store.failure_lines import FailureLines

_QUIET_SECONDS: Final = 5.0


class Outage:
    """The failures since the store could be used last, if any."""

    def __init__(self) -> None:
        self._lines: Final = FailureLines()
        self._lock: Final = threading.Lock()
        self._stopped: Final[set[Hashable]] = set()
        self._since: float | None = None
        self._failed_at = -math.inf
        self._works_since: float | None = None
        self._told = False

    @property
    def lasts(self) -> bool:
        """Whether something has failed, and it is not over."""
        return self._since is not None

    def failed(self, reason: str, now: float) -> int:
        """Take note that *reason* has kept a work from the store; returns what `FailureLines.failed` does."""
        times = self._lines.failed(reason, now)
        with self._lock:
            self._since = now if self._since is None else self._since
            self._failed_at, self._works_since = now, None
            self._told = self._told or times > 0
        return times

    def stops(self, lane: Hashable) -> None:
        """Take note that it was a work of *lane*."""
        self._stopped.add(lane)

    def works(self, lane: Hashable, now: float) -> float | None:
        """Take note that *lane* has served a work; return how long the outage was if that is to be logged now."""
        self._stopped.discard(lane)
        with self._lock:
            if self._since is None or self._stopped:
                return None
            if self._works_since is None:
                self._works_since = now
            if now - self._failed_at < _QUIET_SECONDS:
                return None
            seconds, told = self._works_since - self._since, self._told
            self._since, self._works_since, self._told = None, None, False
            return seconds if told else None
