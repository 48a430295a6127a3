"""What a subscriber of a benchmark makes of the numbers that come."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from device_sim.bench.arrivals import Arrivals
from device_sim.bench.bench import Figures
from device_sim.bench.payload import Stamp


def arrived(numbers: list[int], *, sent: int, granted: int, shared: bool = False, client: int = 1) -> Arrivals:
    arrivals = Arrivals(shared, granted)
    for number in numbers:
        arrivals.came(Stamp(0.0, 7, client, number, sent))
    return arrivals


@pytest.mark.parametrize(
    ("numbers", "missing", "duplicated", "out_of_order"),
    [
        ([1, 2, 3], 0, 0, 0),
        ([5, 6, 7], 0, 0, 0),  # It came in later.
        ([5, 6, 9], 2, 0, 0),
        ([5, 6, 9, 7], 1, 0, 1),
        ([5, 5, 6], 0, 1, 0),
        ([5, 4], 0, 0, 1),
        ([0, 0, 3], 0, 0, 0),  # A short stamp has no number.
    ],
)
def test_what_comes_is_compared_with_what_was_numbered(
    numbers: list[int], missing: int, duplicated: int, out_of_order: int
) -> None:
    arrivals = arrived(numbers, sent=1, granted=1)
    assert (arrivals.missing, arrivals.duplicated, arrivals.out_of_order) == (missing, duplicated, out_of_order)


@pytest.mark.parametrize(
    ("sent", "granted", "loss_counts", "duplicate_counts"),
    [(0, 2, False, True), (2, 0, False, True), (1, 2, True, False), (2, 1, True, False), (2, 2, True, True)],
)
def test_what_the_lower_qos_allows_is_no_fault(
    sent: int, granted: int, loss_counts: bool, duplicate_counts: bool
) -> None:
    lost, doubled = (arrived(numbers, sent=sent, granted=granted) for numbers in ([1, 3], [1, 1]))
    assert (lost.missing, lost.lost) == (1, int(loss_counts))
    assert (doubled.duplicated, doubled.forbidden) == (1, int(duplicate_counts))
    assert Figures(arrivals=[lost]).troubled is loss_counts
    assert Figures(arrivals=[doubled]).troubled is duplicate_counts


def test_each_publisher_of_each_benchmark_has_numbers_of_its_own() -> None:
    arrivals = Arrivals(qos=1)
    for benchmark, client, number in ((1, 1, 1), (1, 2, 8), (2, 1, 3), (1, 1, 2), (1, 2, 9), (2, 1, 4)):
        arrivals.came(Stamp(0.0, benchmark, client, number, 1))
    assert (arrivals.missing, arrivals.duplicated, arrivals.out_of_order) == (0, 0, 0)


def test_of_a_shared_subscription_others_get_a_part() -> None:
    arrivals = arrived([1, 4, 2, 9], sent=1, granted=1, shared=True)
    assert (arrivals.missing, arrivals.lost, arrivals.out_of_order) == (0, 0, 0)
    assert arrived([1, 1], sent=2, granted=2, shared=True).forbidden == 1


def test_what_came_out_of_order_is_a_trouble() -> None:
    assert Figures(arrivals=[arrived([1, 3, 2], sent=0, granted=0)]).troubled


@pytest.mark.parametrize(
    "trouble",
    [
        {"refused": Counter({"mqtt 0x87": 1})},
        {"lost": Counter({"tcp closed": 1})},
        {"rejected": 1},
        {"unacknowledged": 1},
        {"held_back": 1},
        {"altered": 1},
    ],
)
def test_whatever_goes_wrong_once_is_a_trouble(trouble: dict[str, Any]) -> None:
    assert not Figures(published=9, acknowledged=9, skipped=1, received=9).troubled
    assert Figures(published=9, acknowledged=9, received=9, **trouble).troubled
