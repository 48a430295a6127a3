"""How a run is judged: security first, then thresholds, and whether the measurement is valid.

Rules
-----
1. Exit code, the first that applies: 4 a device got in or was kept out wrongly; 130 the user ended the run; 99 a
   threshold is crossed by what nobody's lateness explains (`lateness`); 3 the generator, or the link, was the
   bottleneck; 99 a threshold is crossed; 0.
2. A run that was ended early is reported but never counts as a success.
"""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from device_sim.latency import Latency
from device_sim.link.closure import Closure
from device_sim.link.distance import NEARBY, Distance
from device_sim.report import ExitCode
from device_sim.run.far_broker import is_the_links, why_invalid
from device_sim.run.health import HealthSample, faults, starved, why_skipped
from device_sim.run.lateness import DROPPED, is_crossed_by
from device_sim.run.manner import ONE_PROCESS, Manner
from device_sim.run.recorder import PAST_DEADLINE, Recorder
from device_sim.scenario.metrics import SECURITY, Count, Duration
from device_sim.scenario.model import Scenario
from device_sim.scenario.threshold import Threshold, must_be_nought

_ENOUGH_DEVICES = 100
_EVERYBODY_GETS_IN = Threshold.parse(str(Count.UNREACHED), "== 0")
"""Judged where the scenario sets no such threshold: a run against a broker that died is no success."""
_ALL_REVOKED = Threshold.parse(str(Count.FAILED_REVOCATIONS), "== 0")
"""Judged wherever it was crossed, whatever the scenario says: fewer revocations happened than requested."""
_WHY_DROPPED = (
    "messages are missing, and the generator stood still for {:.1f} s, in which a broker's queue for it may have been "
    "full; use a machine that is not paused, or fewer devices"
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A threshold and the figure it was compared with, if any."""

    threshold: Threshold
    value: float | None

    @property
    def passed(self) -> bool:
        """Whether it holds; an unmeasured figure does not."""
        return self.value is not None and self.threshold.holds(self.value)

    @property
    def too_long(self) -> bool:
        """Whether it is a measured duration that fails the threshold."""
        threshold = self.threshold
        measured = isinstance(threshold.metric, Duration) and threshold.statistic != "count" and self.value is not None
        return measured and not self.passed


@dataclass(frozen=True, slots=True)
class ProcessHealth:
    """How one process of the generator fared. *memory_before_mb* is its memory before it had *devices* devices."""

    name: str
    samples: list[HealthSample]
    lag: Latency
    devices: int = 0
    memory_before_mb: float = 0.0
    standstill: Latency | None = None
    paused: float = 0.0
    """For how many seconds it was stopped (`GeneratorWatch.paused`)."""

    @property
    def memory_a_device_kb(self) -> float | None:
        """How much memory each device costs the generator, or None if there are too few to tell."""
        connected = max((sample.ports for sample in self.samples), default=0)
        if connected < _ENOUGH_DEVICES:
            return None
        used = max(sample.memory_mb for sample in self.samples if sample.ports == connected)
        return (used - self.memory_before_mb) * 1000 / connected


@dataclass(slots=True)
class RunResult:
    """Everything known after a run."""

    scenario: Scenario
    started: datetime
    seconds: float
    recorder: Recorder
    processes: list[ProcessHealth]
    refusals: dict[str, int]
    false_refusals: dict[str, Closure]
    interrupted: signal.Signals | None = None
    manner: Manner = ONE_PROCESS
    broker: str = "unknown"
    distance: Distance = NEARBY
    proven: Counter[Count] = field(default_factory=Counter)
    """How much of each count no lateness of the generator explains."""
    stood: float = 0.0
    """For how many seconds a receiver stood still, if the broker's queue for it may have been full then."""
    thresholds: list[Judged] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)

    def judge(self, skipped: int, published: int) -> None:
        """Compare the figures with the scenario's thresholds and the generator's limits."""
        limits_set = self.scenario.limits() or [_EVERYBODY_GETS_IN]
        own = [threshold for threshold in limits_set if threshold.metric not in SECURITY]
        recorder = self.recorder
        if recorder.counts[Count.FAILED_REVOCATIONS] and _ALL_REVOKED not in own:
            own.append(_ALL_REVOKED)
        self.thresholds = [
            Judged(threshold, recorder.value(threshold.metric, threshold.statistic, threshold.percentile))
            for threshold in (*(must_be_nought(metric) for metric in SECURITY), *own)
        ]
        limits = self.scenario.generator
        several = len(self.processes) > 1
        self.invalid = [
            f"{process.name}: {fault}" if several else fault
            for process in self.processes
            for fault in faults(process.samples, process.lag, limits, self.manner.driver)
        ]
        self.invalid += self._excuses()
        paused = max((process.paused for process in self.processes), default=0.0)
        if why := why_skipped(skipped, published, self.seconds, paused, limits, "publish less often"):
            self.invalid.append(why)

    def _excuses(self) -> list[str]:
        """Return what explains, without the broker, all thresholds that failed; empty if one has no such explanation.

        A deadline that the link may have exceeded needs one even if no threshold failed.
        """
        limits = self.scenario.generator
        failed = [judged for judged in self.thresholds if not judged.passed]
        busy = [why for process in self.processes if (why := starved(process.samples, limits, process.standstill))]
        slow = [judged for judged in failed if judged.too_long]
        far = [judged for judged in failed if self._is_the_links(judged)]
        dropped = [judged for judged in failed if self.stood and judged.threshold.metric in DROPPED]
        if not all(judged in far or judged in dropped or (busy and judged in slow) for judged in failed):
            return []
        excuses = [_WHY_DROPPED.format(self.stood)] if dropped else []
        excuses += busy if slow else []
        excuses += [why_invalid(self.distance)] if far else []
        past = any(marker.kind == PAST_DEADLINE for marker in self.recorder.markers)
        return excuses + ([why_invalid(self.distance, "a deadline")] if past else [])

    def _is_the_links(self, judged: Judged) -> bool:
        lost = self.recorder.counts[Count.LOST_RECEIVERS]
        return is_the_links(
            judged.threshold, judged.value, self.distance, qos=self.scenario.qos, receivers_lost=lost,
            websocket=self.scenario.websocket,
        )  # fmt: skip

    @property
    def despite_lateness(self) -> dict[Count, int]:
        """What crosses a threshold, and is the broker's however late the generator was; empty if that was in time."""
        crossed = (judged.threshold for judged in self.thresholds if not judged.passed)
        found = {threshold.metric for threshold in crossed if is_crossed_by(threshold, self.proven)}
        return {count: number for count, number in self.proven.items() if self.invalid and count in found}

    @property
    def exit_code(self) -> int:
        """The process's exit code (rule 1)."""
        failed = [judged for judged in self.thresholds if not judged.passed]
        if any(judged.threshold.security for judged in failed):
            return ExitCode.SECURITY
        if self.interrupted is not None:
            return 128 + self.interrupted
        if self.invalid and not self.despite_lateness:
            return ExitCode.INVALID
        return ExitCode.THRESHOLD if failed else ExitCode.OK

    @property
    def verdict(self) -> str:
        """The outcome in a word."""
        code = self.exit_code
        words = {ExitCode.OK: "PASS", ExitCode.SECURITY: "SECURITY FAILURE", ExitCode.INVALID: "INVALID"}
        return "INTERRUPTED" if code > 128 else words.get(ExitCode(code), "FAIL")  # noqa: PLR2004 - shell's convention
