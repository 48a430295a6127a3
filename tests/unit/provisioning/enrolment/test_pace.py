from __future__ import annotations

import pytest

from provisioning.enrolment import pace
from provisioning.enrolment.pace import Buckets


def test_a_burst_is_served_then_the_steady_rate() -> None:
    buckets = Buckets(rate=10, burst=3)
    assert [buckets.take("a", 100.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]
    assert buckets.take("b", 100.0) == 0, "another caller has a bucket of his own"
    assert buckets.take("a", 100.05) == pytest.approx(0.05), "asking costs nothing"
    assert buckets.take("a", 100.1001) == 0
    assert buckets.take("a", 100.1001) > 0
    assert [buckets.take("a", 1000.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)], "never more than a burst"


def test_the_number_of_callers_is_bounded_and_the_busy_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_BUCKETS", 10)
    buckets = Buckets(rate=1, burst=1)
    buckets.take("busy", 0.0)
    for number in range(100):
        assert buckets.take(number, 0.0) == 0
        assert buckets.take("busy", 0.0) > 0
        assert buckets.take(number, 0.0) > 0, "a newcomer is held to it when there is no room, too"
    assert len(buckets._held) == 10
    assert buckets.take(0, 0.0) == 0, "who was here longest ago is forgotten"


def test_a_clock_that_is_set_back_gives_nothing_and_takes_nothing() -> None:
    buckets = Buckets(rate=1, burst=2)
    assert [buckets.take("a", 1000.0) for _ in range(2)] == [0, 0]
    assert buckets.take("a", 10.0) == pytest.approx(1), "not the 990 seconds that it was set back by"
    assert buckets.take("a", 11.0) == 0
