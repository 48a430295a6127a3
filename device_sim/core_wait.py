"""How long this process was ready to run without a core: how much other users of the machine distort a measurement.

It is the kernel's own figure for the loop's thread; see docs/decisions/0076.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

MOST_WAITING = 0.15
"""The share of time that it may wait; beyond it, slowness says nothing about the broker on the same machine."""


def seconds_waited(process: int | None = None) -> float:
    """Return for how many seconds the main thread of *process*, or of this one, was ready but not running.

    0 if the kernel keeps no such figure, or the process has gone.
    """
    schedstat = Path("/proc") / ("self" if process is None else str(process)) / "schedstat"
    try:
        return int(schedstat.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class CoreWatch:
    """How much several processes wait from now on: this one and *others*, by name."""

    def __init__(self, own: str, others: Mapping[str, int]) -> None:
        self._processes: dict[str, int | None] = {own: None, **others}
        self._began = time.monotonic()
        self._before = {name: seconds_waited(process) for name, process in self._processes.items()}

    def shares(self) -> dict[str, float]:
        """Return the share of time that each has waited: 1 at most, also where another's wait had begun before."""
        waited = {name: seconds_waited(process) - self._before[name] for name, process in self._processes.items()}
        # Only now: whoever loses its core while it looks has waited for longer than it had been watched before.
        elapsed = max(time.monotonic() - self._began, 1e-6)
        return {name: min(max(0.0, seconds) / elapsed, 1.0) for name, seconds in waited.items()}
