"""A call that uses up its processor time is ended, and nothing else is."""

from __future__ import annotations

import re
import signal
import threading

import pytest

from broker.timing.processor_limit import TooLong, processor_limit


def test_what_takes_too_long_is_ended_and_what_follows_is_not() -> None:
    with pytest.raises(TooLong), processor_limit(0.01):
        re.fullmatch("(a+-?)+", 30 * "a" + "!")
    signal.raise_signal(signal.SIGVTALRM)  # One that comes late.
    with processor_limit(60.0):
        pass
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_the_time_that_other_threads_use_is_not_counted() -> None:
    """They merge lists of a million entries meanwhile, which the timer counts: good devices were refused for it."""
    with processor_limit(60.0):
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.raise_signal(signal.SIGVTALRM)
        left, _ = signal.getitimer(signal.ITIMER_VIRTUAL)
        assert 59.0 < left <= 60.1


def test_another_error_goes_on_as_it_is_and_another_thread_has_no_limit() -> None:
    with pytest.raises(KeyError), processor_limit(60.0):
        raise KeyError
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    seen: list[tuple[float, float]] = []

    def elsewhere() -> None:
        with processor_limit(60.0):
            seen.append(signal.getitimer(signal.ITIMER_VIRTUAL))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(0.0, 0.0)]
