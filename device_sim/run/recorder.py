"""Turns observations into figures: histograms, counts, one sample a second, markers.

Theory
------
A *service* time begins when the simulator actually began, a *response* time when the action was due
(`scenario.metrics`). Each is one HDR histogram, so that runs can be merged without loss. In addition, the response
times of the current second are kept unaggregated for the time line, and dropped at the next sample.

Rules
-----
1. `record` is called for every message: at most two histograms and one list.
2. No clock: the caller that samples passes the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from device_sim.latency import Latency
from device_sim.run.health import HealthSample
from device_sim.scenario.metrics import NEEDS, Count, Duration

SAMPLE_SECONDS = 1.0
WATCHED = (Duration.ADMITTED, Duration.PUBACK, Duration.END_TO_END, Duration.PROBE_END_TO_END)
"""Durations whose percentiles are on the time line."""

FAILED_RENEWAL, FAILED_REVOCATION, LOST_RECEIVER = "failed renewal", "failed revocation", "lost receiver"
PAST_DEADLINE, ALTERED_MESSAGE, UNEXPECTED_MESSAGE = "past the deadline", "altered message", "unexpected message"
EXPLAINING = frozenset(
    (FAILED_RENEWAL, FAILED_REVOCATION, LOST_RECEIVER, PAST_DEADLINE, ALTERED_MESSAGE, UNEXPECTED_MESSAGE)
)
"""Markers that explain a verdict which is no pass: the summary lists them."""

_MOST_A_SECOND = 20_000


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds, of one second of the run."""

    count: int
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Percentiles | None:
        """Return the percentiles of *milliseconds*; None if empty."""
        if not milliseconds:
            return None
        ordered = sorted(milliseconds)
        last = len(ordered) - 1
        p50, p95, p99 = (ordered[min(last, int(len(ordered) * share))] for share in (0.5, 0.95, 0.99))
        return cls(len(ordered), p50, p95, p99)


@dataclass(frozen=True, slots=True)
class Sample:
    """The state at second *at* of the run; refusals by reason are those since the previous sample."""

    at: float
    connected: int
    told: int
    published: int
    received: int
    windows: dict[Duration, Percentiles]
    refusals: dict[str, int]
    health: HealthSample


@dataclass(frozen=True, slots=True)
class Marker:
    """Something that happened at one moment, for the time line."""

    at: float
    kind: str
    what: str


@dataclass(slots=True)
class StageSpan:
    """When a stage began and ended, and what it did."""

    kind: str
    label: str
    start: float
    end: float | None = None


@dataclass(slots=True)
class Recorder:
    """Everything that one run has observed."""

    service: dict[Duration, Latency] = field(default_factory=dict)
    response: dict[Duration, Latency] = field(default_factory=dict)
    counts: Counter[Count] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    markers: list[Marker] = field(default_factory=list)
    stages: list[StageSpan] = field(default_factory=list)
    _window: dict[Duration, list[float]] = field(default_factory=lambda: {metric: [] for metric in WATCHED})
    _refusals: Counter[str] = field(default_factory=Counter)

    def record(self, metric: Duration, seconds: float, late: float) -> None:
        """Record a duration that began *late* seconds after it was due."""
        service = self.service.get(metric)
        if service is None:
            service = self.service[metric] = Latency()
            self.response[metric] = Latency()
        response = seconds + max(late, 0.0)
        service.record(seconds)
        self.response[metric].record(response)
        window = self._window.get(metric)
        if window is not None and len(window) < _MOST_A_SECOND:
            window.append(response * 1000)

    def value(self, metric: Duration | Count, statistic: str, percentile: float) -> float | None:
        """Return the figure that a threshold judges; None if nothing relevant was measured."""
        if isinstance(metric, Count):
            counts, needed = self.counts, NEEDS.get(metric)
            tried = needed is None or counts[metric] or any(counts[each] for each in needed)
            return float(counts[metric]) if tried else None
        latency = self.response.get(metric)
        if latency is None:
            return 0.0 if statistic == "count" else None
        match statistic:
            case "p":
                return latency.percentile(percentile)
            case "max":
                return latency.highest
            case "mean":
                return latency.mean
            case _:
                return float(latency.count)

    def window(self) -> dict[Duration, list[float]]:
        """Return the milliseconds recorded since the last call."""
        taken = {metric: values for metric, values in self._window.items() if values}
        self._window = {metric: [] for metric in WATCHED}
        return taken

    def absorb(self, service: Mapping[Duration, str], response: Mapping[Duration, str]) -> None:
        """Add the encoded histograms of another process."""
        for mine, theirs in ((self.service, service), (self.response, response)):
            for metric, encoded in theirs.items():
                mine.setdefault(metric, Latency()).add(encoded)

    def sample(
        self, at: float, connected: int, told: int, published: int, received: int, refused: Counter[str],
        health: HealthSample, others: Iterable[Mapping[Duration, Sequence[float]]] = (),
    ) -> Sample:  # fmt: skip
        """Close the current second; *others* are the `window` of other recorders."""
        values: dict[Duration, list[float]] = {metric: [] for metric in WATCHED}
        for window in (self.window(), *others):
            for metric, milliseconds in window.items():
                values[metric] += milliseconds
        windows = {metric: Percentiles.of(values[metric]) for metric in WATCHED}
        since = refused - self._refusals
        self._refusals = Counter(refused)
        taken = {metric: percentiles for metric, percentiles in windows.items() if percentiles is not None}
        self.samples.append(Sample(at, connected, told, published, received, taken, dict(since), health))
        return self.samples[-1]
