"""When each device is due to publish next: one heap for the whole fleet.

Rules
-----
1. Time is an argument; nothing here reads a clock.
2. The next due time is counted from the last *due* time, not from when it was served, so that a late generator does not
   silently slow the fleet down (coordinated omission); lateness is visible as ``now - due``.
3. What is overdue by more than one whole interval is not caught up: the schedule skips ahead and counts what it
   skipped. A drawn interval may be arbitrarily short: what is overdue by that is served late.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Schedule(Generic[T]):
    """Items with an interval each, popped when they are due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = itertools.count()
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, item: T, due: float) -> None:
        """Make *item* due at *due* (seconds)."""
        heapq.heappush(self._heap, (due, next(self._order), item))

    def next_due(self) -> float | None:
        """Return the earliest due time, or None when nothing is scheduled."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> Iterator[tuple[float, T]]:
        """Yield (due, item) for all that is due at *now*; the caller adds each item again (see `again`)."""
        while self._heap and self._heap[0][0] <= now:
            due, _, item = heapq.heappop(self._heap)
            yield due, item

    def stretch(self, now: float, factor: float) -> None:
        """Move what is due in *t* seconds to *t* times *factor*."""
        self._heap = [
            (now + (due - now) * factor if due > now else due, number, item) for due, number, item in self._heap
        ]
        heapq.heapify(self._heap)

    def shift(self, seconds: float) -> None:
        """Delay everything by *seconds*: time that did not count."""
        self._heap = [(due + seconds, number, item) for due, number, item in self._heap]

    def again(self, item: T, due: float, interval: float, now: float, drawn: float | None = None) -> None:
        """Schedule *item* one *interval* after *due*, or later if that has passed long ago.

        *drawn*: this time after so many seconds instead, which are an *interval* on average.
        """
        behind = int((now - due) // interval)
        self.skipped += behind
        self.add(item, due + interval * behind + (interval if drawn is None else drawn))
