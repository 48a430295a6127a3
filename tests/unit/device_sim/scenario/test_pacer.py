from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.scenario.pacer import Spread, arrivals, even, poisson, within

counts = st.integers(0, 300)
rates = st.floats(0.01, 10_000)
seeds = st.integers(0, 2**32)


def source_of(seed: int) -> random.Random:
    return random.Random(seed)


def test_even_arrivals_are_a_rate_apart() -> None:
    assert list(even(4, 10.0)) == [0.0, 0.1, 0.2, pytest.approx(0.3)]


@given(counts, rates, seeds)
def test_every_pacer_yields_as_many_ascending_times_as_asked(count: int, rate: float, seed: int) -> None:
    for times in (even(count, rate), poisson(count, rate, source_of(seed)), within(count, 3.0, source_of(seed))):
        listed = list(times)
        assert len(listed) == count
        assert all(earlier <= later for earlier, later in itertools.pairwise(listed))
        assert all(time >= 0 for time in listed)


@given(counts, rates, seeds, st.sampled_from(Spread))
def test_the_same_seed_gives_the_same_times(count: int, rate: float, seed: int, spread: Spread) -> None:
    first, second = (list(arrivals(spread, count, rate, source_of(seed))) for _ in range(2))
    assert first == second


@given(seeds)
def test_poisson_arrivals_have_the_rate_on_average(seed: int) -> None:
    *_, last = poisson(2000, 100.0, source_of(seed))
    assert 16.0 < last < 24.0  # 20 s expected, standard deviation 0.45 s.


@given(counts, st.floats(0, 100), seeds)
def test_breaks_stay_within_their_time(count: int, seconds: float, seed: int) -> None:
    assert all(0 <= time <= seconds for time in within(count, seconds, source_of(seed)))


def test_arrivals_are_spread_as_the_scenario_says() -> None:
    assert list(arrivals(Spread.EVEN, 9, 10.0, source_of(1))) == list(even(9, 10.0))
    assert list(arrivals(Spread.POISSON, 9, 10.0, source_of(1))) == list(poisson(9, 10.0, source_of(1)))
    assert list(even(9, 10.0)) != list(poisson(9, 10.0, source_of(1)))


def test_the_first_of_many_poisson_arrivals_does_not_wait() -> None:
    assert next(poisson(1, 1e9, source_of(1))) < 0.001
