"""A histogram: how often a value fell between two bounds. For durations measured outside the data path."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

DURATIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds in seconds: from one turn of the loop to delays that an operator should notice."""


class Histogram:
    """Counts by upper bound, the last without one."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = DURATIONS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count *value*, *times* times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> Iterator[tuple[str, float]]:
        """Yield each upper bound and the number of values not above it, as Prometheus counts them."""
        total = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            yield bound, total
