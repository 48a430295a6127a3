"""Durations in a high dynamic range histogram, and what people want to know of them.

A histogram keeps three significant digits from a microsecond to a minute in a fixed 136 KB, however many values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from hdrh.histogram import HdrHistogram

_HIGHEST_US = 60_000_000
_DIGITS = 3

CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Milliseconds. All of them are 0 when nothing was recorded."""

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
        self._histogram = HdrHistogram(1, _HIGHEST_US, _DIGITS)
        self.count = 0

    def record(self, seconds: float) -> None:
        """Record one duration; what is outside a microsecond … a minute counts as that bound."""
        self._histogram.record_value(min(max(int(seconds * 1e6), 1), _HIGHEST_US))
        self.count += 1

    def summary(self) -> LatencySummary:
        """Return the percentiles of everything recorded so far."""
        if not self.count:
            return LatencySummary(0, 0.0, 0.0, 0.0, 0.0)
        p50, p95, p99 = (self._histogram.get_value_at_percentile(percent) / 1000 for percent in (50, 95, 99))
        return LatencySummary(self.count, p50, p95, p99, self._histogram.get_max_value() / 1000)

    def percentile(self, percent: float) -> float:
        """Return a percentile in milliseconds."""
        return float(self._histogram.get_value_at_percentile(percent)) / 1000 if self.count else 0.0

    @property
    def mean(self) -> float:
        """The mean in milliseconds, as `get_mean_value` has it, in a hundredth of its time."""
        if not self.count:
            return 0.0
        total, histogram = 0, self._histogram
        for index, count in enumerate(histogram.counts):
            if count:
                lowest = histogram.get_value_from_index(index)
                total += count * (lowest + (histogram.get_highest_equivalent_value(lowest) + 1 - lowest) // 2)
        return float(total / histogram.get_total_count()) / 1000

    @property
    def highest(self) -> float:
        """The largest value in milliseconds."""
        return float(self._histogram.get_max_value()) / 1000 if self.count else 0.0

    def curve(self) -> list[tuple[float, float]]:
        """Return the percentiles that people look at, and their milliseconds."""
        if not self.count:
            return []
        values = self._histogram.get_percentile_to_value_dict(list(CURVE))
        return [(percent, values[percent] / 1000) for percent in CURVE]

    def encoded(self) -> str:
        """Return the whole histogram (microseconds) as HdrHistogram's base64, for others to merge."""
        return str(self._histogram.encode().decode())

    def add(self, encoded: str) -> None:
        """Add what another histogram has `encoded`."""
        self._histogram.decode_and_add(encoded)
        self.count = self._histogram.get_total_count()
