"""One flush a turn, of everything that was touched, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from broker.sockets.turn import ALLOWANCE, Turn


@dataclass(eq=False)
class Session:
    flushed: int = 0
    outbox: list[bytes] = field(default_factory=list)
    then: Callable[[], None] = field(default=lambda: None)

    def flush(self) -> None:
        self.flushed += 1
        self.then()


@dataclass(eq=False)
class Route:
    few: tuple[Session, ...]


@pytest.fixture
def calls() -> list[Callable[[], None]]:
    return []


@pytest.fixture
def turn(calls: list[Callable[[], None]]) -> Turn:
    return Turn(calls.append)


def test_requests_outside_a_turn_are_one_call_of_the_loop(turn: Turn, calls: list[Callable[[], None]]) -> None:
    session = Session()
    for _ in range(3):
        turn.sessions.add(session)
        turn.request()
    assert len(calls) == 1
    calls.pop()()
    assert session.flushed == 1
    turn.request()
    assert len(calls) == 1


def test_within_a_turn_nothing_is_asked_of_the_loop(turn: Turn, calls: list[Callable[[], None]]) -> None:
    turn.begin()
    turn.request()
    assert calls == []
    turn.end()
    turn.request()
    assert len(calls) == 1


def test_every_subscriber_of_a_touched_route_is_flushed(turn: Turn) -> None:
    sessions = [Session() for _ in range(4)]
    turn.begin()
    turn.routes |= {Route(tuple(sessions[:2])), Route(tuple(sessions[1:3]))}
    turn.sessions.add(sessions[3])
    turn.end()
    assert all(session.flushed for session in sessions)
    turn.end()
    assert [session.flushed for session in sessions] == [1, 2, 1, 1]


def test_what_is_touched_while_flushing_belongs_to_the_next_turn(turn: Turn, calls: list[Callable[[], None]]) -> None:
    late = Session()

    def touch() -> None:
        turn.sessions.add(late)
        turn.request()

    turn.begin()
    turn.sessions.add(Session(then=touch))
    turn.routes.add(Route((Session(then=touch),)))
    turn.end()
    while calls:
        calls.pop()()
    assert late.flushed in {1, 2}
    assert not turn.sessions


def test_who_is_touched_while_being_flushed_alone_is_flushed_again(turn: Turn, calls: list[Callable[[], None]]) -> None:
    session = Session()

    def touch() -> None:
        if session.flushed == 1:
            turn.sessions.add(session)
            turn.request()

    session.then = touch
    turn.begin()
    turn.sessions.add(session)
    turn.end()
    assert (session.flushed, turn.sessions, len(calls)) == (1, {session}, 1)
    calls.pop()()
    assert (session.flushed, turn.sessions) == (2, set())


def test_the_allowance_is_that_of_one_turn(turn: Turn) -> None:
    turn.begin()
    turn.allowance = 0
    turn.end()
    assert turn.allowance == ALLOWANCE


def test_what_comes_after_a_turn_comes_when_all_is_flushed(turn: Turn) -> None:
    """The store begins to write then."""
    session = Session()
    flushed: list[int] = []
    turn.after = lambda: flushed.append(session.flushed)
    for _ in range(2):
        turn.begin()
        turn.sessions.add(session)
        turn.end()
    assert flushed == [1, 2]
