from __future__ import annotations

from device_sim.fleet.schedule import Schedule


def test_items_come_in_order_of_their_time() -> None:
    schedule: Schedule[str] = Schedule()
    for item, due in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        schedule.add(item, due)
    assert schedule.next_due() == 1.0
    assert list(schedule.pop_due(2.5)) == [(1.0, "a"), (2.0, "b")]
    assert len(schedule) == 1


def test_nothing_scheduled_is_never_due() -> None:
    schedule: Schedule[str] = Schedule()
    assert schedule.next_due() is None
    assert list(schedule.pop_due(1e9)) == []


def test_a_late_item_keeps_its_rhythm() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.again("a", due=10.0, interval=1.0, now=10.4)
    assert schedule.next_due() == 11.0
    assert schedule.skipped == 0


def test_what_is_overdue_by_more_than_an_interval_is_skipped_and_counted() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.again("a", due=10.0, interval=1.0, now=13.5)
    assert schedule.next_due() == 14.0
    assert schedule.skipped == 3


def test_what_is_overdue_by_a_short_interval_that_was_drawn_is_late_and_not_skipped() -> None:
    """With a jitter of 100 % one interval in a thousand is shorter than any generator can keep."""
    schedule: Schedule[str] = Schedule()
    for drawn in (0.0, 1e-9, 0.1):
        schedule.again("a", due=10.0, interval=1.0, now=10.4, drawn=drawn)
    assert [due for due, _ in schedule.pop_due(20.0)] == [10.0, 10.0 + 1e-9, 10.1]
    assert schedule.skipped == 0
    schedule.again("a", due=10.0, interval=1.0, now=13.5, drawn=0.25)
    assert (schedule.next_due(), schedule.skipped) == (13.25, 3)


def test_a_faster_pace_holds_for_what_is_scheduled_already() -> None:
    schedule: Schedule[str] = Schedule()
    for name, due in (("overdue", 9.0), ("soon", 12.0), ("later", 30.0)):
        schedule.add(name, due)
    schedule.stretch(10.0, 0.1)
    assert list(schedule.pop_due(100.0)) == [(9.0, "overdue"), (10.2, "soon"), (12.0, "later")]


def test_a_pause_is_no_time_that_counts() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 1.0)
    schedule.add("b", 2.0)
    schedule.shift(5.0)
    assert list(schedule.pop_due(6.5)) == [(6.0, "a")]
    assert schedule.next_due() == 7.0
