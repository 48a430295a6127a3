"""How long this process was ready to run and had no core: what a machine that others use takes from a measurement.

It is the kernel's own figure for the loop's thread; see docs/decisions/0076.
"""

from __future__ import annotations

from pathlib import Path

MOST_WAITING = 0.15
"""In which share of the time it may wait; beyond it nothing that is slow says anything of the broker beside it."""
_SCHEDULED = Path("/proc/self/schedstat")


def seconds_waited() -> float:
    """Return for how many seconds the loop's thread has been ready and not running, since it began.

    0 where the kernel keeps no such figure.
    """
    try:
        return int(_SCHEDULED.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
