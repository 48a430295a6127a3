"""A stream that is held back is told from a slow link, a busy follower, and clocks that stood still."""

from __future__ import annotations

import pytest

from provisioning.client.feed_delay import FeedDelay

HEARTBEAT = 5.0
SILENCE = 15.0


def found(*beats: tuple[float, float], busy: float = 0.0) -> list[float]:
    """Return what is said of *beats*: when each was made, and when it arrived; the follower is *busy* after each."""
    delay = FeedDelay(SILENCE, HEARTBEAT)
    return [delay.of(made, arrived, arrived - busy * number) for number, (made, arrived) in enumerate(beats)]


def test_who_passes_on_each_heartbeat_just_before_it_would_be_missed_is_found_out_within_a_minute() -> None:
    beats = [(HEARTBEAT * number, 100.0 + 14.9 * number) for number in range(10)]
    behind = found(*beats)
    first = next(number for number, each in enumerate(behind) if each)
    assert beats[first][1] - beats[0][1] < 60
    assert behind[first] == pytest.approx(9.9 * first)
    assert all(behind[first:]), "it stays so"


@pytest.mark.parametrize(
    "beats",
    [
        [(5.0 * each, 100.0 + 5.0 * each) for each in range(100)],
        [(5.0 * each, 100.0 + 5.0 * each + 14.0 * (each % 2)) for each in range(100)],
        [(0.0, 100.0), *((5.0 * each, 160.0) for each in range(1, 12)), (60.0, 160.0), (65.0, 165.0)],
        [(0.0, 100.0), (5.0, 145.0), (10.0, 145.1), (40.0, 145.2), (45.0, 150.0)],
        [(30.0, 100.0), (35.0, 105.0)],
        [(0.0, 160.0), (5.0, 120.0), (10.0, 125.0)],
        [(5.0 * each, 100.0 + 5.003 * each) for each in range(720)],
        [(0.0, 100.0), (100.0, 105.0), (105.0, 110.0)],
    ],
    ids=[
        "punctual", "a link that is slow at times", "it was stopped, and finds all at once", "it was busy",
        "the first came late", "the first came latest", "an hour of clocks that drift", "its machine slept",
    ],
)  # fmt: skip
def test_nobody_else_is(beats: list[tuple[float, float]]) -> None:
    assert not any(found(*beats))


def test_lateness_counts_once_it_has_lasted() -> None:
    beats = [(0.0, 100.0), (5.0, 121.0), (6.0, 125.9), (7.0, 126.0), (26.0, 126.0), (27.0, 143.0)]
    assert found(*beats) == [0.0, 0.0, 0.0, 19.0, 0.0, 0.0]


def test_what_waits_while_the_follower_is_busy_is_late_by_itself() -> None:
    beats = [(0.1 * number, 100.0 + 10.0 * number) for number in range(20)]
    assert any(found(*beats)), "somebody else takes that long"
    assert not any(found(*beats, busy=10.0))
    assert not any(found(*beats, busy=9.8)), "it also waits for its turn of the event loop"
