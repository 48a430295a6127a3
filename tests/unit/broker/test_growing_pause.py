"""Pauses after failures double up to a bound; a bound of one moment does not let the next one jump."""

from __future__ import annotations

import math

from broker.timing.growing_pause import GrowingPause


def test_each_failure_doubles_the_pause_up_to_the_longest_and_a_success_ends_that() -> None:
    pause = GrowingPause(2.0, 9.0)
    assert [pause.after_failure() for _ in range(5)] == [2.0, 4.0, 8.0, 9.0, 9.0]
    pause.reset()
    assert [pause.after_failure() for _ in range(2)] == [2.0, 4.0]


def test_after_a_bound_of_one_moment_the_pause_grows_from_there() -> None:
    pause = GrowingPause(2.0, 300.0)
    assert [pause.after_failure(most) for most in (9.0, 9.0, 5.0, 300.0, 300.0)] == [2.0, 4.0, 5.0, 10.0, 20.0]


def test_without_a_longest_one_no_number_of_failures_is_too_many() -> None:
    pause = GrowingPause(1.0)
    assert {pause.after_failure(60.0) for _ in range(2_000)} == {1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0}
    endless = GrowingPause(1.0)
    assert [endless.after_failure() for _ in range(2_000)][-1] == math.inf
