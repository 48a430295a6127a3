"""Randomness that can be repeated: each device has its own, and each purpose its own of that.

Rules
-----
1. Changing the size of the fleet, or what another device does, does not change what device 17 draws.
"""

from __future__ import annotations

import random


def randomness_of(seed: int, device: str, purpose: str = "") -> random.Random:
    """Return the device's own source of randomness for one *purpose*."""
    return random.Random(f"{seed}:{device}:{purpose}")  # noqa: S311 - repeatable by intent


class Redrawn:
    """One source for all devices, seeded anew for each draw: a source of its own is 2.5 KB a device."""

    def __init__(self) -> None:
        self._source = random.Random()  # noqa: S311 - repeatable by intent

    def of(self, seed: int, device: str, purpose: str) -> random.Random:
        """Return the source for one draw; it is another's after the next call."""
        self._source.seed(f"{seed}:{device}:{purpose}")
        return self._source
