"""What a fleet finds out again and again is logged once a minute, and anything else at once."""

from __future__ import annotations

from provisioning.store.failure_lines import FailureLines


def test_each_reason_is_logged_at_once_and_then_once_a_minute() -> None:
    lines = FailureLines()
    gone = [lines.failed("connection refused", now / 10) for now in range(1201)]
    assert [(place, times) for place, times in enumerate(gone) if times] == [(0, 1), (600, 600), (1200, 600)]
    assert lines.failed("the database system is starting up", 120.1) == 1


def test_reasons_that_take_turns_are_still_told_once_a_minute() -> None:
    lines = FailureLines()
    said = [lines.failed(f"server {number % 7} refuses", number / 100) for number in range(5000)]
    assert [times for times in said if times] == [1] * 7


def test_words_that_always_differ_are_each_told_and_not_kept() -> None:
    lines = FailureLines()
    assert [lines.failed(f"while locking tuple (0,{number})", 0.0) for number in range(1000)] == [1] * 1000
    assert len(lines._lines) < 100
