"""Log lines that wait while many sessions are closed: in order, with their own times, and none is lost."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.engine import held_lines
from broker.engine.held_lines import HeldLines


class Loop:
    """Runs what is scheduled when the test says so."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()

    def turn(self) -> None:
        for _ in range(len(self.soon)):
            self.soon.popleft()()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def lines(loop: Loop) -> HeldLines:
    return HeldLines(loop.soon.append)


def numbers(logged: list[Any]) -> list[int]:
    return [line["number"] for line in logged]


def test_a_line_is_written_at_once_with_the_logs_own_time(lines: HeldLines) -> None:
    with capture_logs() as logged:
        lines.info("closed", number=1)
        assert logged == [{"event": "closed", "number": 1, "log_level": "info"}]


def test_lines_that_wait_are_written_in_portions_with_the_times_at_which_they_were_said(
    lines: HeldLines, loop: Loop
) -> None:
    times = map(str, itertools.count(100))
    with capture_logs() as logged:
        lines.hold(lambda: next(times))
        for number in range(70):
            lines.info("closed", number=number)
        assert not logged
        lines.release()
        loop.turn()
        assert 0 < len(logged) < 70, "others are served in between"
        lines.info("admitted", number=70)  # Behind those that wait.
        for _ in range(3):
            loop.turn()
        assert numbers(logged) == list(range(71))
        assert [line["timestamp"] for line in logged] == [str(100 + number) for number in range(71)]
        lines.info("admitted", number=71)
        assert numbers(logged)[-1] == 71
        assert "timestamp" not in logged[-1]


def test_what_is_held_again_while_it_is_being_written_waits_again(lines: HeldLines, loop: Loop) -> None:
    with capture_logs() as logged:
        lines.hold(str)
        for number in range(40):
            lines.info("closed", number=number)
        lines.release()
        loop.turn()
        written = len(logged)
        lines.hold(str)
        loop.turn()
        assert len(logged) == written
        lines.release()
        loop.turn()
        assert numbers(logged) == list(range(40))


def test_beyond_the_bound_the_oldest_is_written(lines: HeldLines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_lines, "MOST", 3)
    with capture_logs() as logged:
        lines.hold(str)
        for number in range(5):
            lines.info("closed", number=number)
        assert numbers(logged) == [0, 1]


def test_a_broker_that_stops_writes_all(lines: HeldLines, loop: Loop) -> None:
    with capture_logs() as logged:
        lines.hold(str)
        for number in range(200):
            lines.info("closed", number=number)
        lines.flush()
        assert numbers(logged) == list(range(200))
        lines.info("stopping", number=200)
        assert numbers(logged)[-1] == 200
        lines.release()
        loop.turn()
        assert len(logged) == 201


def test_what_a_line_says_is_put_together_when_it_is_written(lines: HeldLines, loop: Loop) -> None:
    asked: list[int] = []

    def facts(number: int) -> dict[str, object]:
        asked.append(number)
        return {"number": number}

    with capture_logs() as logged:
        lines.tell("closed", facts, 1)
        lines.hold(str)
        lines.tell("closed", facts, 2)
        assert asked == numbers(logged) == [1]
        lines.release()
        loop.turn()
        assert asked == numbers(logged) == [1, 2]
