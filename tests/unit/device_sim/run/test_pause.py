"""A generator that was stopped is told so; one that had too much to do is told to do less."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from device_sim.run import health
from device_sim.run.health import GeneratorWatch, why_skipped
from device_sim.scenario.model import GeneratorLimits


def _blocked() -> None:
    time.sleep(0.3)  # As SIGSTOP does: neither on a core, nor in the queue for one.


def _busy() -> None:
    until = time.process_time() + 0.15
    while time.process_time() < until:
        pass


@pytest.mark.parametrize(("late", "paused"), [(_blocked, True), (_busy, False)])
async def test_who_computes_is_late_and_not_paused(
    monkeypatch: pytest.MonkeyPatch, late: Callable[[], None], paused: bool
) -> None:
    monkeypatch.setattr(health, "_PAUSE", 0.1)
    if paused:  # Others at work on this machine do not make it less of a pause.
        monkeypatch.setattr(health, "seconds_waited", lambda: 0.0)
    async with GeneratorWatch() as watch, asyncio.timeout(60):
        while not watch.lag.count:
            await asyncio.sleep(0.001)
        before, ticks = watch.paused, watch.lag.count
        late()
        while watch.lag.count == ticks:
            await asyncio.sleep(0.001)
        assert (watch.paused > before) is paused


async def test_who_waits_for_a_core_is_not_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PAUSE", 0.1)
    monkeypatch.setattr(health, "seconds_waited", time.monotonic)  # All the time, it says.
    async with GeneratorWatch() as watch, asyncio.timeout(60):
        while not watch.lag.count:
            await asyncio.sleep(0.001)
        ticks = watch.lag.count
        _blocked()
        while watch.lag.count == ticks:
            await asyncio.sleep(0.001)
        assert not watch.paused


@pytest.mark.parametrize(
    ("skipped", "paused", "words"),
    [
        (1, 0.0, None),  # One in a thousand.
        (50, 0.0, "because the generator was late; less, please"),
        (50, 3.0, "stopped for 3.0 s, neither computing nor waiting for a core; let nothing pause it"),
        (99, 3.0, "stopped for 3.0 s"),
        (500, 3.0, "because the generator was late; less, please"),  # More than it would have sent in that time.
        (500, 90.0, "stopped for 90.0 s"),
    ],
)
def test_what_a_pause_explains_has_another_remedy(skipped: int, paused: float, words: str | None) -> None:
    why = why_skipped(skipped, 1000 - skipped, 60.0, paused, GeneratorLimits(), "less, please")
    assert (why is None) == (words is None)
    if why is not None and words is not None:
        assert why.startswith(f"{skipped} messages were skipped because ")
        assert words in why
