"""What a machine's other work excuses: how long stand and device waited for a core, and which verdicts that explains.

Theory
------
The kernel says of each thread how long it was ready and had no core. It can be asked about the stand, and about a
device that was started here, with whatever that has started, as long as it stays in the device's session. Of a device
on another machine it knows nothing: then only the stand's own wait counts, and a slow machine there is a slow device.

Who had the cores meanwhile is not told, and it may have been the device: one that computes in all cores waits for
itself. A thread's wait counts only as far as the device's other threads cannot have caused it, that is less the time
for which these ran.

Rules
-----
1. Waits add up: a device may do one thing after the other, in several threads and processes.
2. It is never too much, as far as it excuses: what a process waits after the last look at it is missing.
3. A verdict that came about by slowness is *invalid* if without the wait it could have been another: too late, and
   also too late to be caught. Where no number says how late, the wait must be more than a share of the stage
   (`MOST_WAITING`, docs/decisions/0130). Nothing else is excused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from device_sim import core_wait
from device_sim.attack.verdict import Verdict
from device_sim.core_wait import MOST_WAITING
from device_sim.qualify.judging import Line

_LOOK_AGAIN: Final = 0.2
_MOST_THREADS: Final = 4096
_LEAST: Final = 0.1
"""Seconds of waiting that explain nothing, however short the stage was: nothing is judged by less."""
_SESSION: Final = 3
"""Where /proc/PID/stat has the session, counted from behind the program's name (proc(5))."""

Watching = Callable[[int | None], "Watch"]


@dataclass(frozen=True, slots=True)
class Waited:
    """For how many seconds of *elapsed* stand and device waited for a core."""

    seconds: float
    elapsed: float

    @property
    def starved(self) -> bool:
        """Whether that is so much that no slowness means anything."""
        return self.seconds > max(MOST_WAITING * self.elapsed, _LEAST)

    def __add__(self, other: Waited) -> Waited:
        return Waited(self.seconds + other.seconds, self.elapsed + other.elapsed)


NOTHING: Final = Waited(0.0, 0.0)


class Watch:
    """A look at the waits from now on: of this process, and of the *session* that a device's process leads, if any."""

    def __init__(self, session: int | None) -> None:
        self._session = session
        self._others: set[str] = set()
        """Processes of other sessions: none of them ever joins this one."""
        self._threads: dict[str, tuple[float, float]] = {}
        """For how many seconds each thread of the device has run, and has waited, by its folder."""
        self._before: dict[str, tuple[float, float]] = {}
        self._began = self._stand_before = 0.0
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self.look()
        self._before = dict(self._threads)
        self._began, self._stand_before = time.monotonic(), core_wait.seconds_waited()

    async def keep_looking(self) -> None:
        """Look again and again: a process that has ended tells nothing any more."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_AGAIN)

    def look(self) -> None:
        """Note what the device's threads have run and waited until now."""
        if self._session is None:
            return
        present = {each.name for each in Path("/proc").iterdir() if each.name.isdigit()}
        self._others &= present
        for name in present - self._others:
            if _session_of(name) != self._session:
                self._others.add(name)
                continue
            for thread, times in _threads_of(name).items():
                if thread in self._threads or len(self._threads) < _MOST_THREADS:
                    self._threads[thread] = times

    @property
    def waited(self) -> Waited:
        """How long both have waited, as of the last look."""
        threads = [_since(self._before.get(thread, (0.0, 0.0)), times) for thread, times in self._threads.items()]
        ran = sum(own for own, _ in threads)
        stand = max(0.0, core_wait.seconds_waited() - self._stand_before - ran)
        device = sum(max(0.0, waited - (ran - own)) for own, waited in threads)
        return Waited(stand + device, time.monotonic() - self._began)


def _since(before: tuple[float, float], now: tuple[float, float]) -> tuple[float, float]:
    return now[0] - before[0], now[1] - before[1]


def _session_of(process: str) -> int | None:
    try:
        return int(Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[_SESSION])
    except (OSError, ValueError, IndexError):
        return None


def _threads_of(process: str) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    try:
        for thread in Path("/proc", process, "task").iterdir():
            ran, waited, _ = (thread / "schedstat").read_text().split()
            found[str(thread)] = (int(ran) / 1e9, int(waited) / 1e9)
    except (OSError, ValueError):
        pass  # It has just ended, or the kernel keeps no such figures.
    return found


def on_this_machine(line: Line, waited: Waited) -> Line:
    """Return *line*, or that there can be no verdict because of what was *waited* (rule 3)."""
    excuse = line.by_time
    if excuse is None or waited.seconds < excuse:
        return line
    # Who was too late by a known time is excused by that much; anything else, by a machine that has no time at all.
    late = line.verdict in {Verdict.FAIL, Verdict.WARN} and excuse > 0.0
    if not late and not waited.starved:
        return line
    told = f"{line.why}; but " if line.why else ""
    why = (
        f"{told}stand and device waited for a core for {waited.seconds:.1f} s in {waited.elapsed:.0f} s: "
        "repeat on a quieter machine, or with fewer stages at a time"
    )
    return replace(line, verdict=Verdict.INVALID, why=why)
