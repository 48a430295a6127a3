"""Repeatable randomness: each device has its own sources, one per purpose.

Rules
-----
1. What device 17 draws does not depend on the size of the fleet, or on other devices.
"""

from __future__ import annotations

import random


def randomness_of(seed: int, device: str, purpose: str) -> random.Random:
    """Return the device's own source of randomness for one *purpose*."""
    return random.Random(f"{seed}:{device}:{purpose}")  # noqa: S311 - repeatable by intent


class Redrawn:
    """One source for all devices, seeded again for each draw: separate sources would take 2.5 KB per device."""

    def __init__(self) -> None:
        self._source = random.Random()  # noqa: S311 - repeatable by intent

    def of(self, seed: int, device: str, purpose: str) -> random.Random:
        """Return the source for one draw; the next call seeds it for another."""
        self._source.seed(f"{seed}:{device}:{purpose}")
        return self._source
