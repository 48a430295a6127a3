"""Those that look as often as each other look together."""

from __future__ import annotations

import asyncio

import pytest

from broker.timing.beat import left_until, next_beat


@pytest.mark.parametrize(
    ("now", "seconds", "left"),
    [
        (10.0, 1.0, 1.0),
        (10.25, 1.0, 0.75),
        (10.7, 1.0, 0.3),
        (10.8, 1.0, 1.2),  # Woken early, or at work until now: the next one.
        (10.999, 1.0, 1.001),
        (10.2, 0.5, 0.3),
        (63.0, 10.0, 7.0),
    ],
)
def test_a_beat_is_at_a_multiple_of_its_period(now: float, seconds: float, left: float) -> None:
    assert left_until(now, seconds) == pytest.approx(left)


async def test_whoever_waits_is_woken_on_the_beat() -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await asyncio.gather(*(next_beat(0.05) for _ in range(3)))
    assert loop.time() > begun
