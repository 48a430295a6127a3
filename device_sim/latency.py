"""Durations in a high dynamic range histogram, and the usual statistics.

A histogram keeps three significant digits from a microsecond to an hour in a fixed 184 KB, however many values. The
statistics only visit the few counts that are not 0: the library's own functions go through all of them, in Python.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, compress

_HIGHEST_US = 3_600_000_000
HIGHEST_MS = _HIGHEST_US / 1000
"""What takes longer counts as this: no limit beyond it could be crossed."""
_DIGITS = 3

CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Milliseconds. All are 0 if nothing was recorded."""

    count: int
    p50: float
    p95: float
    p99: float
    highest: float

    def as_dict(self) -> dict[str, float]:
        """Return the fields for a JSON report."""
        return asdict(self)


class Latency:
    """A recorder of durations."""

    def __init__(self) -> None:
        from hdrh.histogram import HdrHistogram  # Late: whoever reads a threshold records nothing.

        self._histogram = HdrHistogram(1, _HIGHEST_US, _DIGITS)
        self.count = 0

    def record(self, seconds: float) -> None:
        """Record one duration; a value outside a microsecond … an hour counts as the bound."""
        self._histogram.record_value(min(max(int(seconds * 1e6), 1), _HIGHEST_US))
        self.count += 1

    def summary(self) -> LatencySummary:
        """Return the percentiles of everything recorded so far."""
        if not self.count:
            return LatencySummary(0, 0.0, 0.0, 0.0, 0.0)
        p50, p95, p99 = self._at((50.0, 95.0, 99.0))
        return LatencySummary(self.count, p50, p95, p99, self.highest)

    def percentile(self, percent: float) -> float:
        """Return a percentile in milliseconds."""
        return self._at((percent,))[0] if self.count else 0.0

    @property
    def mean(self) -> float:
        """The mean in milliseconds, as in `get_mean_value`."""
        if not self.count:
            return 0.0
        total, histogram = 0, self._histogram
        for index, count in self._recorded():
            lowest = histogram.get_value_from_index(index)
            total += count * (lowest + (histogram.get_highest_equivalent_value(lowest) + 1 - lowest) // 2)
        return float(total / histogram.get_total_count()) / 1000

    @property
    def highest(self) -> float:
        """The largest value in milliseconds."""
        return float(self._histogram.get_max_value()) / 1000 if self.count else 0.0

    def curve(self) -> list[tuple[float, float]]:
        """Return the usual percentiles, and their milliseconds."""
        if not self.count:
            return []
        return list(zip(CURVE, self._at(CURVE), strict=True))

    def _recorded(self) -> list[tuple[int, int]]:
        """Return the indexes with recorded values, in order, and the number at each."""
        histogram = self._histogram
        # Each doubling of a value has the same number of places, except the first: nothing follows the largest value's.
        doublings = histogram.get_max_value().bit_length() - histogram.sub_bucket_half_count_magnitude
        places = histogram.sub_bucket_half_count * max(doublings + 1, 1)
        counts = memoryview(histogram.counts).cast("B").cast("Q")[:places].tolist()
        return list(zip(compress(range(len(counts)), counts), filter(None, counts), strict=True))

    def _at(self, percents: Sequence[float]) -> list[float]:
        """Return the milliseconds at *percents*, as in `get_value_at_percentile`; there must be recorded values."""
        histogram, recorded = self._histogram, self._recorded()
        up_to = list(accumulate(count for _, count in recorded))
        found = []
        for percent in percents:
            index, _ = recorded[bisect_left(up_to, histogram.get_target_count_at_percentile(percent))]
            value = histogram.get_value_from_index(index)
            bound = histogram.get_highest_equivalent_value if percent else histogram.get_lowest_equivalent_value
            found.append(float(bound(value)) / 1000)
        return found

    def encoded(self) -> str:
        """Return the whole histogram (microseconds) as HdrHistogram's base64, to be merged elsewhere."""
        return str(self._histogram.encode().decode())

    def add(self, encoded: str) -> None:
        """Add the histogram that another one has `encoded`."""
        self._histogram.decode_and_add(encoded)
        self.count = self._histogram.get_total_count()
