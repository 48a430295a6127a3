"""When each of a number of actions is due: pure functions of their count, in seconds from the start.

Theory
------
An open model schedules actions without knowing how the previous ones went. So a pacer is a list of times, not a loop
with pauses: a slow broker does not slow its own load down, and every latency is counted from these times.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import StrEnum


class Spread(StrEnum):
    """How arrivals are spread over time."""

    EVEN = "even"
    POISSON = "poisson"


def even(count: int, rate: float) -> Iterator[float]:
    """Yield *count* times, *rate* a second, evenly."""
    for number in range(count):
        yield number / rate


def poisson(count: int, rate: float, randomness: random.Random) -> Iterator[float]:
    """Yield *count* times, *rate* a second on average, each independent of the one before."""
    due = 0.0
    for _ in range(count):
        due += randomness.expovariate(rate)
        yield due


def within(count: int, seconds: float, randomness: random.Random) -> Iterator[float]:
    """Yield *count* times in ascending order, anywhere between 0 and *seconds*."""
    yield from sorted(randomness.uniform(0.0, seconds) for _ in range(count))


def arrivals(spread: Spread, count: int, rate: float, randomness: random.Random) -> Iterator[float]:
    """Yield *count* times with the given *spread*."""
    return even(count, rate) if spread is Spread.EVEN else poisson(count, rate, randomness)
