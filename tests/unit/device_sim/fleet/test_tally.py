from __future__ import annotations

import pytest

from device_sim.fleet.sequence import SequenceCheck
from device_sim.fleet.tally import Sent, Tally, account, has_all, is_complete, total


def received(*numbers: int) -> SequenceCheck:
    check = SequenceCheck()
    for number in numbers:
        check.record(number)
    return check


@pytest.mark.parametrize(
    ("sent", "check", "tally"),
    [
        (Sent(3, frozenset()), received(1, 2, 3), Tally(published=3, received=3)),
        (Sent(3, frozenset()), received(1, 3), Tally(published=3, received=2, lost=1)),
        (Sent(3, frozenset({2})), received(1, 3), Tally(published=3, received=2, in_flight=1)),
        (Sent(3, frozenset({3})), received(1, 2), Tally(published=3, received=2, in_flight=1)),
        (Sent(3, frozenset()), received(1, 2), Tally(published=3, received=2, lost=1)),
        # Delivered, and its acknowledgement cut off: neither lost nor in flight.
        (Sent(3, frozenset({3})), received(1, 2, 3), Tally(published=3, received=3)),
        (Sent(2, frozenset()), received(1, 2, 2), Tally(published=2, received=2, duplicated=1)),
        # What a device sent again may come again, so many times, and nothing else may.
        (Sent(2, frozenset(), (2,)), received(1, 2, 2), Tally(published=2, received=2)),
        (Sent(2, frozenset(), (1, 1)), received(1, 2, 2), Tally(published=2, received=2, duplicated=1)),
        (Sent(2, frozenset(), (2,)), received(1, 2, 2, 2), Tally(published=2, received=2, duplicated=1)),
        (Sent(2, frozenset()), received(2, 1), Tally(published=2, received=2, out_of_order=1)),
        # Of a gap that is filled from its end, what is left is one number, and missing still.
        (Sent(4, frozenset()), received(1, 4, 3, 2), Tally(published=4, received=4, out_of_order=2)),
        # Nobody was cut off, and the broker swallowed it without a word.
        (Sent(3, frozenset({2}), kept_waiting=True), received(1, 3), Tally(published=3, received=2, lost=1)),
        # Delivered, and never acknowledged: nothing is lost.
        (Sent(3, frozenset({3}), kept_waiting=True), received(1, 2, 3), Tally(published=3, received=3)),
        # Under its name came what it has never sent; a jump far ahead is one message, and not a billion lost ones.
        (Sent(2, frozenset()), received(1, 2, 3), Tally(published=2, received=2, forged=1)),
        (Sent(2, frozenset()), received(1, 10**9), Tally(published=2, received=1, lost=1, forged=1)),
    ],
)
def test_every_message_is_accounted_for(sent: Sent, check: SequenceCheck, tally: Tally) -> None:
    assert account(sent, check) == tally
    assert tally.published == tally.received + tally.lost + tally.in_flight


def test_a_fleet_is_the_sum_of_its_devices() -> None:
    sums = total([Tally(3, 3), Tally(3, 2, lost=1), Tally(2, 1, in_flight=1, duplicated=2, out_of_order=3, forged=4)])
    assert sums == Tally(8, 6, 1, 1, 2, 3, 4)


@pytest.mark.parametrize("wrong", ["lost", "duplicated", "out_of_order", "forged"])
def test_one_message_that_went_wrong_is_not_clean(wrong: str) -> None:
    assert not Tally(100, 100, **{wrong: 1}).clean
    assert Tally(100, 99, in_flight=1).clean


def test_nothing_is_clean() -> None:
    assert total([]).clean


def test_complete_is_all_acknowledged_and_all_received() -> None:
    assert is_complete(Sent(2, frozenset()), received(1, 2))
    assert not is_complete(Sent(2, frozenset({2})), received(1, 2))
    assert not is_complete(Sent(2, frozenset()), received(2))
    assert not is_complete(Sent(3, frozenset()), received(1, 2))


@pytest.mark.parametrize(
    ("sent", "check", "whole"),
    [
        (Sent(2, frozenset()), received(1, 2), True),
        (Sent(2, frozenset({2})), received(1), True),
        (Sent(3, frozenset({3})), received(1), False),  # The second is acknowledged, and may still be on the way.
        (Sent(3, frozenset({2})), received(1, 3), True),
        (Sent(3, frozenset({3}), kept_waiting=True), received(1, 2), True),  # The broker has had its time.
        (Sent(2, frozenset()), received(2), False),
        (Sent(2, frozenset()), received(1, 2, 3), True),
        (Sent(3, frozenset()), received(1, 2), False),
    ],
)
def test_who_has_all_that_was_acknowledged_waits_for_nothing(sent: Sent, check: SequenceCheck, whole: bool) -> None:
    assert has_all(sent, check) is whole
