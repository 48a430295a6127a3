"""What others had of this machine's processors while something was measured: other programs, and other machines.

Theory
------
A virtual machine shares its processors. While the hypervisor gives one to another machine ("steal" in proc(5)), what
waits for it goes on waiting, and then finds its caches cold. At 10,000 messages a second, with 0.48 of a core taken,
the broker's CPU time a message was twice that of its next runs, and its p99 four times. Half of a percent looks little,
and is half of what a 99th percentile leaves out.

Rules
-----
1. Whether a run counts is decided by this alone, never by what it measured.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

FOREIGN_LIMIT = 0.2
"""Cores that programs outside the benchmark may keep busy."""
STOLEN_LIMIT = 0.005
"""Cores that the hypervisor may give to other machines."""


def machine_seconds() -> tuple[float, float]:
    """Return the CPU time that all processes of this machine have used since boot, and what others were given of it."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (
        int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks, steal / ticks


def notes_of(foreign: Sequence[float], stolen: Sequence[float]) -> list[str]:
    """Return what to say of runs in which programs had *foreign*, and other machines *stolen*, of this one's cores."""
    notes = []
    if max(foreign, default=0) > FOREIGN_LIMIT:
        notes.append(
            f"other programs kept up to {max(foreign):.1f} cores busy: trust CPU time and memory more than rates"
        )
    if max(stolen, default=0) > STOLEN_LIMIT:
        count = sum(each > STOLEN_LIMIT for each in stolen)
        notes.append(
            f"in {count} of {len(stolen)} runs the hypervisor gave other machines up to {max(stolen):.1%} of a core: "
            "percentiles say nothing then, and caches were cold"
        )
    return notes
