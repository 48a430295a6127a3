"""How much of a writer's time is spent on locks that nobody releases."""

from __future__ import annotations

import pytest

from provisioning.store.patience import BRIEF_SECONDS, LEAST_SECONDS, Patience

LONG = 10.0
"""What the server allows, in seconds."""


@pytest.mark.parametrize("pause", [0.01, 0.1, 1.0, 20.0])
def test_a_lock_that_is_never_released_takes_its_share_of_the_time_however_often_it_is_needed(pause: float) -> None:
    patience, now, waited, tries = Patience(), 0.0, 0.0, 0
    while now < 600:
        wait = patience.wait(now)
        seconds = LONG if wait is None else wait
        patience.waited_in_vain(now, now + seconds, wait)
        waited, now, tries = waited + seconds, now + seconds + pause, tries + 1
    assert waited <= LONG + 2 + 600 / 4
    assert waited <= LONG + tries * BRIEF_SECONDS, "once as long as the server allows"


def test_it_is_waited_as_long_as_ever_once_nobody_has_waited_in_vain_for_a_minute() -> None:
    patience = Patience()
    assert patience.wait(0.0) is None
    patience.waited_in_vain(0.0, 10.0, None)
    assert patience.wait(69.9) == BRIEF_SECONDS
    patience.waited_in_vain(69.9, 69.95, BRIEF_SECONDS)
    assert patience.wait(129.9) == BRIEF_SECONDS
    assert patience.wait(130.0) is None


def test_waits_are_the_shortest_while_brief_ones_have_taken_too_much() -> None:
    patience, now = Patience(), 10.0
    patience.waited_in_vain(0.0, now, None)
    tries = 0
    while (wait := patience.wait(now)) == BRIEF_SECONDS:
        patience.waited_in_vain(now, now + wait, wait)
        now += wait
        tries += 1
    assert wait == LEAST_SECONDS
    assert 40 <= tries <= 54, "two seconds of them, and what grows back meanwhile"
    assert patience.wait(now + 1) == BRIEF_SECONDS
