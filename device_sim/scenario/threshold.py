"""Thresholds: ``p99 < 250`` on a duration, ``== 0`` on a count. An unknown metric is an error, never a pass."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from device_sim.latency import HIGHEST_MS
from device_sim.scenario.metrics import Count, Duration

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_TEXT = re.compile(
    r"\s*(?P<statistic>p\(?(?P<percentile>\d+(?:\.\d+)?)\)?|max|mean|count)?\s*(?P<sign><=|>=|==|!=|<|>)"
    r"\s*(?P<bound>\d+(?:\.\d+)?)\s*(?:ms)?\s*"
)
_ALL = 100.0


class InvalidThreshold(ValueError):
    """The text is not a threshold on that metric; the error lists valid ones."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """One condition. *statistic* is ``p``, ``max``, ``mean`` or ``count``; *percentile* belongs to ``p``."""

    metric: Duration | Count
    statistic: str
    percentile: float
    sign: str
    bound: float
    text: str
    security: bool = False

    @classmethod
    def parse(cls, metric: str, text: str) -> Threshold:
        """Return the threshold on *metric* in *text*. Raises `InvalidThreshold`."""
        known = metric_named(metric)
        match = _TEXT.fullmatch(text)
        if match is None:
            example = "p99 < 250" if isinstance(known, Duration) else "== 0"
            raise InvalidThreshold(f"{metric}: {text!r} is no threshold; write for example {example!r}")
        statistic = match["statistic"] or "count"
        percentile = float(match["percentile"] or 0)
        if isinstance(known, Count) and statistic != "count":
            raise InvalidThreshold(f"{metric}: {text!r}: it is a count; write for example '== 0'")
        if percentile > _ALL:
            raise InvalidThreshold(f"{metric}: {text!r}: a percentile is between 0 and 100")
        if statistic.startswith("p"):
            statistic = "p"
        if isinstance(known, Duration) and match["statistic"] is None:
            raise InvalidThreshold(f"{metric}: {text!r}: say of what: p99, max, mean or count")
        bound = float(match["bound"])
        if statistic != "count" and bound > HIGHEST_MS:
            raise InvalidThreshold(f"{metric}: {text!r}: durations are measured up to an hour, {HIGHEST_MS:.0f} ms")
        return cls(known, statistic, percentile, match["sign"], bound, " ".join(text.split()))

    def holds(self, value: float) -> bool:
        """Say whether *value* satisfies the condition."""
        return _COMPARISONS[self.sign](value, self.bound)


def metric_named(name: str) -> Duration | Count:
    """Return the metric called *name*. Raises `InvalidThreshold`."""
    for kind in (Duration, Count):
        try:
            return kind(name)
        except ValueError:
            continue
    known = ", ".join(sorted([*Duration, *Count]))
    raise InvalidThreshold(f"{name}: there is no such metric; these exist: {known}")


def must_be_nought(metric: Count) -> Threshold:
    """Return the security threshold on *metric* that applies to every run."""
    return Threshold(metric, "count", 0.0, "==", 0.0, "== 0", security=True)
