"""How late the loop is, on a clock that the test moves: seen at once, fading, seldom looked at when all is quiet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from broker.metrics import Metrics
from broker.process import loop_lag


class Clock:
    """A loop's clock, moved by whoever sleeps; *late* says how much later each sleeper wakes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.late: Callable[[int], float] = lambda _: 0.0

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if len(self.pauses) == 40:
            raise asyncio.CancelledError
        self.pauses.append(seconds)
        self.now += seconds + self.late(len(self.pauses))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    monkeypatch.setattr(asyncio, "sleep", made.sleep)
    return made


def measure(metrics: Metrics) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        loop_lag.measure_lag(metrics).send(None)


def test_when_all_is_quiet_it_looks_seldom(clock: Clock) -> None:
    measure(Metrics())
    assert clock.pauses[:2] == pytest.approx([0.05, 0.45]), "with what else looks twice a second"
    assert clock.pauses[2:] == pytest.approx([0.5] * 38)


def test_while_newcomers_come_it_looks_often(clock: Clock) -> None:
    metrics = Metrics()

    def somebody_comes(_number: int) -> float:
        metrics.connections_accepted += 1
        return 0.0

    clock.late = somebody_comes
    measure(metrics)
    assert set(clock.pauses) == {0.05}


def test_lateness_is_seen_at_once_and_fades_within_a_second(clock: Clock) -> None:
    metrics = Metrics()
    seen: list[float] = []

    def late(number: int) -> float:
        seen.append(metrics.loop_lag)
        return 0.4 if number == 5 else 0.0

    clock.late = late
    measure(metrics)
    assert max(seen[:5]) < 0.001
    assert seen[5] == pytest.approx(0.4)
    assert clock.pauses[5] == 0.05, "what is late is watched"
    calm = next(index for index, lag in enumerate(seen[6:]) if lag < 0.02)
    assert sum(clock.pauses[6 : 6 + calm]) <= 1.0
