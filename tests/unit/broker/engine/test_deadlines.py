"""Deadlines: never early, a second late at most, one an owner, and quiet about those that change in the meantime."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.engine.deadlines import Deadlines


class Owner:
    """Notes when it was called; does what a test says then."""

    def __init__(self, action: Callable[[float], None] = lambda _now: None) -> None:
        self.bucket = 0
        self.calls: list[float] = []
        self.action = action

    def on_deadline(self, now: float) -> None:
        self.calls.append(now)
        self.action(now)


@pytest.fixture
def deadlines() -> Deadlines[Owner]:
    return Deadlines(100.5)


@pytest.mark.parametrize("when", [101.0, 101.1, 102.0, 102.9, 150.0])
def test_a_deadline_is_met_within_a_second_and_never_early(deadlines: Deadlines[Owner], when: float) -> None:
    owner = Owner()
    deadlines.file(owner, when)
    now = 100.5
    while not owner.calls:
        now += 0.25
        list(deadlines.due(now))
    assert when <= owner.calls[0] <= when + 1


def test_a_deadline_in_the_past_is_met_at_the_next_opportunity(deadlines: Deadlines[Owner]) -> None:
    owner = Owner()
    deadlines.file(owner, 3.0)
    list(deadlines.due(101.0))
    assert owner.calls == [101.0]


def test_filing_again_moves_the_deadline(deadlines: Deadlines[Owner]) -> None:
    owner = Owner()
    for when in (110.0, 105.0, 120.0):
        deadlines.file(owner, when)
    list(deadlines.due(119.9))
    assert owner.calls == []
    list(deadlines.due(120.0))
    list(deadlines.due(130.0))
    assert owner.calls == [120.0]


def test_cancelling_is_final_and_may_be_done_twice(deadlines: Deadlines[Owner]) -> None:
    owner = Owner()
    deadlines.cancel(owner)
    deadlines.file(owner, 105.0)
    deadlines.cancel(owner)
    deadlines.cancel(owner)
    list(deadlines.due(200.0))
    assert owner.calls == []
    assert deadlines._buckets == {}


def test_an_owner_that_another_of_its_second_cancels_is_not_called(deadlines: Deadlines[Owner]) -> None:
    owners: list[Owner] = []

    def cancel_others(_now: float) -> None:
        for other in owners:
            deadlines.cancel(other)

    owners += [Owner(cancel_others) for _ in range(10)]
    for owner in owners:
        deadlines.file(owner, 105.0)
    list(deadlines.due(105.0))
    assert sum(len(owner.calls) for owner in owners) == 1


def test_an_owner_that_another_moves_is_called_at_its_new_time_only(deadlines: Deadlines[Owner]) -> None:
    owners: list[Owner] = []

    def move_others(_now: float) -> None:
        for other in owners:
            if not other.calls:
                deadlines.file(other, 110.0)

    owners += [Owner(move_others) for _ in range(5)]
    for owner in owners:
        deadlines.file(owner, 105.0)
    list(deadlines.due(105.0))
    assert sum(len(owner.calls) for owner in owners) == 1
    for now in range(110, 116):
        list(deadlines.due(now))
    assert [len(owner.calls) for owner in owners] == [1] * 5


def test_an_owner_may_file_again_while_it_is_called(deadlines: Deadlines[Owner]) -> None:
    owner = Owner(lambda now: deadlines.file(owner, now))
    deadlines.file(owner, 101.0)
    for now in (101.0, 102.0, 103.0, 103.5):
        list(deadlines.due(now))
    assert owner.calls == [101.0, 102.0, 103.0]


@pytest.mark.parametrize("others", [0, 1000])
def test_after_a_long_pause_all_are_called_the_earliest_first(deadlines: Deadlines[Owner], others: int) -> None:
    calls: list[int] = []

    def file(when: int) -> None:
        deadlines.file(Owner(lambda _now: calls.append(when)), float(when))

    for when in (400, 150, 300, *range(1000, 1000 + others)):
        file(when)
    list(deadlines.due(900.0))
    assert calls == [150, 300, 400]


def test_a_clock_that_goes_back_calls_nobody_early(deadlines: Deadlines[Owner]) -> None:
    owner = Owner()
    list(deadlines.due(200.0))
    deadlines.file(owner, 150.0)
    list(deadlines.due(150.0))
    assert owner.calls == []
    list(deadlines.due(201.0))
    assert owner.calls == [201.0]


def test_between_two_of_a_second_others_are_cancelled_moved_and_filed(deadlines: Deadlines[Owner]) -> None:
    owners = [Owner() for _ in range(6)]
    for owner in owners:
        deadlines.file(owner, 105.0)
    steps = deadlines.due(105.0)
    next(steps)
    called = [owner for owner in owners if owner.calls]
    assert len(called) == 1
    assert set(deadlines.owners()) == set(owners) - set(called), "who was not called yet is filed still"
    cancelled, moved, *left = (owner for owner in owners if not owner.calls)
    deadlines.cancel(cancelled)
    deadlines.file(moved, 107.0)
    deadlines.file(called[0], 105.0)
    assert sum(1 for _ in steps) == len(left)
    assert [owner.calls for owner in left] == [[105.0]] * 3
    list(deadlines.due(106.0))
    list(deadlines.due(107.0))
    assert (cancelled.calls, moved.calls, called[0].calls) == ([], [107.0], [105.0, 106.0])
    assert deadlines._buckets == {}
