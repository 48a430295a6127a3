"""What happens endlessly has a line at once, and then one a minute that says how often it was."""

from __future__ import annotations

from provisioning.program.once_a_minute import OnceAMinute


def test_the_first_has_a_line_and_the_others_are_counted_until_a_minute_is_over() -> None:
    lines = OnceAMinute()
    logged = {now: times for now in range(200) if (times := lines.happened(now))}
    assert logged == {0: 1, 60: 60, 120: 60, 180: 60}


def test_what_happens_seldom_has_a_line_each_time() -> None:
    lines = OnceAMinute()
    assert [lines.happened(now) for now in (-5.0, 54.9, 55.0, 1_000.0)] == [1, 0, 2, 1]
