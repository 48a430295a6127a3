"""Pauses that are shortened at random: those that begin together, at a start or when a server is lost, end apart."""

from __future__ import annotations

import random


def spread(share: float) -> float:
    """Return a factor for a pause, which shortens it by up to *share* of it."""
    return random.uniform(1.0 - share, 1.0)  # noqa: S311 - spreads load, hides nothing
