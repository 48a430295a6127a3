"""The figures: each one's name, unit, direction and goal, and what a series of paired runs says about it.

Theory
------
Absolute figures belong to a machine and a minute. A pair (both peers, one after the other, the same work) shares both,
so the judged figure is the *ratio within a pair*, and of several pairs the median. The spread of the ratios shows how
much the machine interfered: a bound inside the spread is met or missed by chance, and is marked as such.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

INDISTINGUISHABLE = 0.02
"""A smaller difference does not count: a peer compared with itself shows as much."""


class Verdict(Enum):
    """How a ratio compares with a bound."""

    MET = "met"
    MISSED = "missed"
    WITHIN_NOISE = "within noise"
    """Met or missed, but some pairs differ."""
    LOAD_LIMITED = "load limited"
    """Not met, but the load generator rather than the server set the pace: the server may be faster."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio to reach: to the baseline peer, or (*of*) to another figure of the same peer."""

    ratio: float
    of: str | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured property of a peer."""

    key: str
    title: str
    unit: str
    lower_is_better: bool
    digits: int
    goal: Goal | None = None

    def format(self, value: float) -> str:
        """Return *value* as the report prints it."""
        return f"{value:,.{self.digits}f} {self.unit}"


FIGURES = (
    Figure("handshake_cpu", "full mTLS handshake + CONNECT, server CPU", "ms", True, 3, Goal(0.9)),
    Figure("known_cpu", "… of a device that has been there before", "ms", True, 3, Goal(0.9)),
    Figure("resumed_cpu", "resumed handshake + CONNECT, server CPU", "ms", True, 3, Goal(0.6, of="handshake_cpu")),
    Figure("memory", "memory a connected device", "KiB", True, 1, Goal(1.0)),
    Figure("memory_reconnected", "… after all of them reconnected", "KiB", True, 1),
    Figure("fan_in_qos0_rate", "fan-in 200 → 1, QoS 0, delivered", "k/s", False, 1, Goal(1.5)),
    Figure("fan_in_qos0_cpu", "… server CPU a message", "µs", True, 2, Goal(0.67)),
    Figure("fan_in_burst_rate", "the same, ten messages a write, delivered", "k/s", False, 1),
    Figure("fan_in_burst_cpu", "… server CPU a message", "µs", True, 2),
    Figure("fan_in_qos1_rate", "fan-in 200 → 1, QoS 1, delivered", "k/s", False, 1, Goal(2.0)),
    Figure("fan_in_qos1_cpu", "… server CPU a message", "µs", True, 2, Goal(0.5)),
    Figure(
        "fan_in_durable_rate", "the same to a persistent session (mosquitto: in memory)", "k/s", False, 1, Goal(1.0)
    ),
    Figure("fan_in_durable_cpu", "… server CPU a message", "µs", True, 2),
    Figure("fan_out_rate", "fan-out 1 → 200, QoS 0, delivered", "k/s", False, 1, Goal(5.0)),
    Figure("fan_out_cpu", "… server CPU a delivery", "µs", True, 2, Goal(0.2)),
    Figure("paced_p50", "1,000 publishers, 10 k msg/s: median latency", "ms", True, 3),
    Figure("paced_p99", "… 99th percentile of latency", "ms", True, 3, Goal(1.0)),
    Figure("paced_cpu", "… server CPU a message", "µs", True, 2, Goal(1.0)),
)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several values, and the smallest and largest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise *values*, of which there is at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def against(self, bound: float, *, lower_is_better: bool) -> Verdict:
        """Return how this compares with *bound*; an indistinguishable figure counts as equal (a bound of 1)."""
        if bound == 1:
            bound += INDISTINGUISHABLE if lower_is_better else -INDISTINGUISHABLE
        if lower_is_better:
            if self.high <= bound:
                return Verdict.MET
            return Verdict.MISSED if self.low > bound else Verdict.WITHIN_NOISE
        if self.low >= bound:
            return Verdict.MET
        return Verdict.MISSED if self.high < bound else Verdict.WITHIN_NOISE


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of both peers over all pairs."""

    figure: Figure
    subject: Spread
    baseline: Spread
    ratio: Spread
    no_worse: Verdict
    goal: Verdict | None


def compare(figure: Figure, pairs: Sequence[tuple[dict[str, float], dict[str, float]]]) -> Comparison | None:
    """Return what *pairs* of (subject's, baseline's) figures say about *figure*, or None if no pair has it.

    A baseline of 0 was too short to measure (CPU time has steps of 10 ms); such a pair is not used.
    """
    whole = [(ours, theirs) for ours, theirs in pairs if figure.key in ours and theirs.get(figure.key)]
    if not whole:
        return None
    ratio = Spread.of([ours[figure.key] / theirs[figure.key] for ours, theirs in whole])
    goal = None
    if figure.goal is not None:
        judged = ratio
        if figure.goal.of is not None:
            judged = Spread.of([ours[figure.key] / ours[figure.goal.of] for ours, _ in whole])
        goal = judged.against(figure.goal.ratio, lower_is_better=figure.lower_is_better)
    return Comparison(
        figure,
        subject=Spread.of([ours[figure.key] for ours, _ in whole]),
        baseline=Spread.of([theirs[figure.key] for _, theirs in whole]),
        ratio=ratio,
        no_worse=ratio.against(1.0, lower_is_better=figure.lower_is_better),
        goal=goal,
    )
