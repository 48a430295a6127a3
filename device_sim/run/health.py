"""Was the simulator itself the bottleneck? The generator monitors itself.

Theory
------
A load generator that is late measures itself. Five things can make it late: its loop is busy (lag, processor), it skips
messages it should have sent, it runs out of descriptors, or of ports, or other processes hold the cores.
`GeneratorWatch` samples them; `faults` judges. When others hold the cores, the broker on this machine suffers too: a
run that passes nevertheless is valid, and one whose durations are too long proves nothing (`starved`).

Rules
-----
1. The lag is measured by a timer on the same loop: how much later than requested it is woken. A loop that stands still
   for a second is one late timer, and a second in which everything that was due is late: `standstill` counts it so.
2. One slow second is not a fault; persistent slowness is (`GeneratorLimits`).
3. A process that others have stopped (SIGSTOP, a debugger, a paused virtual machine) neither computes nor waits for a
   core: that tells a pause from too much work (`GeneratorWatch.paused`), which has another remedy.
4. The time spent waiting for a core is the kernel's figure (`device_sim.core_wait`). It is known only when a wait has
   ended and says nothing about a single moment, so a share covers at least half a second.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from device_sim.core_wait import seconds_waited
from device_sim.latency import Latency
from device_sim.link.driver import Driver
from device_sim.scenario.model import GeneratorLimits

_TICK = 0.02
_SHORTEST = 0.5
"""The minimum number of seconds for a share: the last sample of a run follows directly behind another."""
_BUSY = 0.95
_PAUSE = 0.5
"""Seconds of lag that may be a pause, rather than a disk or a page that was waited for."""
_CORES = os.cpu_count() or 1
_FOR_A_CORE = "stop what else is running, use fewer devices, a lower rate, or a larger machine"
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DESCRIPTORS = Path("/proc/self/fd")
_MEMORY = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class HealthSample:
    """One second of the generator. *processor* is a share of one core; *waiting* is the share of time without one."""

    lag_p99_ms: float
    lag_max_ms: float
    processor: float
    descriptors: int
    descriptors_limit: int
    ports: int
    ports_limit: int
    memory_mb: float
    waiting: float = 0.0

    def line(self) -> str:
        """Return the state in one line."""
        return (
            f"generator: loop lag p99 {self.lag_p99_ms:.0f} ms  cpu {self.processor:.0%} waited {self.waiting:.0%}  "
            f"fds {self.descriptors}/{self.descriptors_limit}  ports {self.ports / max(self.ports_limit, 1):.0%}  "
            f"memory {self.memory_mb:.0f} MB"
        )


@dataclass(frozen=True, slots=True)
class _Reading:
    """What has been used up to *at* (`time.monotonic`), in seconds."""

    at: float
    processor: float
    waited: float

    @classmethod
    def now(cls) -> _Reading:
        return cls(time.monotonic(), time.process_time(), seconds_waited())


class GeneratorWatch:
    """Measures the loop that it runs on. An async context manager; *sources* counts the local addresses in use."""

    def __init__(self, sources: int = 1) -> None:
        low, high = (int(number) for number in _PORT_RANGE.read_text().split())
        self._ports_limit = (high - low + 1) * max(sources, 1)
        self._descriptors_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.lag = Latency()
        self.standstill = Latency()
        """How late something was that was due at any moment, also at one at which no timer was running."""
        self.paused = 0.0
        """For how many seconds the process was stopped: late, and neither computing nor waiting for a core."""
        self._recent: list[float] = []
        self._ticking: asyncio.Task[None] | None = None
        self._last = self._earlier = _Reading.now()

    async def __aenter__(self) -> Self:
        self._ticking = asyncio.create_task(self._tick(), name="generator watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])

    def sample(self, ports: int) -> HealthSample:
        """Return the state since the last sample, or the one before (rule 4); *ports*: open connections."""
        now = _Reading.now()
        recent = sorted(self._recent) or [0.0]
        self._recent.clear()
        long_ago = now.at - self._last.at >= _SHORTEST
        since = self._last if long_ago else self._earlier
        if long_ago:
            self._earlier, self._last = self._last, now
        elapsed = max(now.at - since.at, 1e-6)
        share = min((now.processor - since.processor) / elapsed, float(_CORES))
        waiting = min((now.waited - since.waited) / elapsed, 1.0)
        return HealthSample(
            lag_p99_ms=recent[min(len(recent) - 1, int(len(recent) * 0.99))] * 1000,
            lag_max_ms=recent[-1] * 1000,
            processor=share,
            descriptors=sum(1 for _ in os.scandir(_DESCRIPTORS)),
            descriptors_limit=self._descriptors_limit,
            ports=ports,
            ports_limit=self._ports_limit,
            memory_mb=resident_memory(),
            waiting=waiting,
        )

    async def _tick(self) -> None:
        before = _Reading.now()
        while True:
            asked = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            lag = max(0.0, time.monotonic() - asked)
            if asked + lag - before.at > _PAUSE / 2:  # Not at each tick: the kernel's figure is in a file.
                now = _Reading.now()
                busy = now.processor - before.processor + now.waited - before.waited
                self.paused += lag if lag > _PAUSE and busy < lag / 2 else 0.0
                before = now
            self._recent.append(lag)
            self.lag.record(lag)
            for ago in range(int(lag / _TICK) + 1):
                self.standstill.record(lag - ago * _TICK)


def resident_memory() -> float:
    """Return how much memory this process has now, in MB."""
    return int(_MEMORY.read_text().split()[1]) * resource.getpagesize() / 1e6


def worst(samples: Sequence[HealthSample]) -> HealthSample:
    """Return one sample for several processes: the worst of each, with ports and memory summed."""

    def fullest(sample: HealthSample) -> float:
        return sample.descriptors / max(sample.descriptors_limit, 1)

    tightest = max(samples, key=fullest)
    return HealthSample(
        max(sample.lag_p99_ms for sample in samples),
        max(sample.lag_max_ms for sample in samples),
        max(sample.processor for sample in samples),
        tightest.descriptors,
        tightest.descriptors_limit,
        sum(sample.ports for sample in samples),
        max(sample.ports_limit for sample in samples),
        sum(sample.memory_mb for sample in samples),
        max(sample.waiting for sample in samples),
    )


def faults(
    samples: Sequence[HealthSample], lag: Latency, limits: GeneratorLimits, driver: Driver = Driver.PAHO
) -> list[str]:
    """Return why this process was a bottleneck, each reason with its remedy; empty if it was none."""
    found, lighter = [], "" if driver is Driver.LIGHT else "--driver light, "
    lag_p99 = lag.percentile(99)
    waiting = waiting_of(samples)
    if lag_p99 > limits.lag_p99_ms:
        late, remedy = "", f"use {lighter}fewer devices, a lower rate, or a machine of its own"
        if waiting > limits.waiting_share:  # Whatever it had used, others had the cores.
            late, remedy = f", and it waited for a core in {waiting:.0%} of the time", _FOR_A_CORE
        found.append(
            f"the generator's loop was late: lag p99 {lag_p99:.0f} ms, allowed {limits.lag_p99_ms:g}{late}; {remedy}"
        )
    busy = sum(sample.processor >= _BUSY for sample in samples)
    if samples and busy / len(samples) > limits.busy_share:
        found.append(
            f"the generator's core was full in {busy} of {len(samples)} seconds; "
            f"use {lighter}--workers 2, fewer devices or a lower rate"
        )
    for what, used, limit, share, remedy in (
        ("descriptors", *_most(samples, "descriptors"), limits.descriptors_share, "raise `ulimit -n`"),
        ("ports", *_most(samples, "ports"), limits.ports_share, "add --sources 4, or widen ip_local_port_range"),
    ):
        if limit and used / limit > share:
            found.append(f"{used} of {limit} {what} were in use; {remedy}")
    return found


def why_skipped(
    skipped: int, published: int, seconds: float, paused: float, limits: GeneratorLimits, less: str
) -> str | None:
    """Return why messages were *skipped*, and what to do, or None if they are few; *less* asks for a smaller load.

    That is no remedy where a process that was *paused* explains them: in that time it would have sent so many. Twice as
    many, for it may have been when most was sent.
    """
    of_all = published + skipped
    if skipped <= limits.skipped_share * max(of_all, 1):
        return None
    if paused and skipped <= 2 * of_all * paused / max(seconds, paused):
        return (
            f"{skipped} messages were skipped because the generator's process was stopped for {paused:.1f} s, neither "
            "computing nor waiting for a core; let nothing pause it: no SIGSTOP, no debugger, no suspended machine"
        )
    return f"{skipped} messages were skipped because the generator was late; {less}"


def starved(samples: Sequence[HealthSample], limits: GeneratorLimits, standstill: Latency | None) -> str | None:
    """Return why this process's durations cannot be held against the broker, or None.

    Others held the cores; or its loop stood still so long that one in a hundred of the things due was late.
    """
    waiting = waiting_of(samples)
    if waiting > limits.waiting_share:
        return (
            f"a duration is too long, and the generator waited for a core in {waiting:.0%} of the time, so the broker "
            f"beside it did too; {_FOR_A_CORE}"
        )
    late = standstill.percentile(99) if standstill is not None else 0.0
    if late > limits.lag_p99_ms:
        return (
            f"a duration is too long, and the generator stood still: what was due at one moment in a hundred was "
            f"{late:.0f} ms late, allowed {limits.lag_p99_ms:g}; use a machine that is not paused, or fewer devices"
        )
    return None


def waiting_of(samples: Sequence[HealthSample]) -> float:
    """Return the share of the time in which a process was ready to run and had no core."""
    return sum(sample.waiting for sample in samples) / max(len(samples), 1)


def _most(samples: Sequence[HealthSample], what: str) -> tuple[int, int]:
    return max(((getattr(sample, what), getattr(sample, f"{what}_limit")) for sample in samples), default=(0, 0))
