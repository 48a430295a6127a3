"""Very many are written to in rounds, in order, and whoever brings more than there is room for waits."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from broker.sockets.rounds import ROOM, VERY_MANY, Rounds
from broker.sockets.turn import Turn

A_ROUND = 256
"""Outboxes of one small packet that a round writes, at most."""


@dataclass(eq=False)
class Session:
    outbox: list[bytes] = field(default_factory=list)
    written: list[bytes] = field(default_factory=list)

    def flush(self) -> None:
        self.written += self.outbox
        self.outbox.clear()


@dataclass(eq=False)
class Route:
    subscribers: tuple[Session, ...]

    def append(self, packet: bytes) -> None:
        for subscriber in self.subscribers:
            subscriber.outbox.append(packet)


class Loop:
    """What is to be called, a turn at a time."""

    def __init__(self) -> None:
        self.calls: deque[Callable[[], None]] = deque()
        self.rounds = Rounds(self.calls.append)

    def turn(self) -> None:
        for _ in range(len(self.calls)):
            self.calls.popleft()()

    def turns(self) -> int:
        count = 0
        while self.calls:
            self.turn()
            count += 1
        return count

    def bring(self, route: Route, packet: bytes, size: int = 8) -> None:
        route.append(packet)
        self.rounds.add(route, len(route.subscribers) * size)


@pytest.fixture
def loop() -> Loop:
    return Loop()


def sessions(count: int) -> tuple[Session, ...]:
    return tuple(Session() for _ in range(count))


def test_a_round_writes_so_many_and_the_next_ones_the_rest(loop: Loop) -> None:
    many = sessions(1000)
    loop.bring(Route(many), b"a")
    written = 0
    while loop.calls:
        loop.turn()
        before, written = written, sum(len(each.written) for each in many)
        assert written - before <= A_ROUND
    assert [each.written for each in many] == [[b"a"]] * 1000


def test_large_packets_make_rounds_of_fewer(loop: Loop) -> None:
    many = sessions(100)
    loop.bring(Route(many), bytes(1024 * 1024))
    loop.turn()  # Perhaps more is to come.
    loop.turn()
    assert sum(bool(each.written) for each in many) == 4
    loop.turns()
    assert all(each.written for each in many)


def test_what_comes_turn_by_turn_is_written_together_and_not_put_off_for_ever(loop: Loop) -> None:
    many = sessions(10)
    route = Route(many)
    for number in range(100):
        loop.bring(route, b"%d" % number)
        loop.turn()
        if many[0].written:
            break
    assert 5 < len(many[0].written) < 12
    loop.turns()
    assert many[0].written == [b"%d" % each for each in range(number + 1)]


def test_what_comes_while_others_are_written_to_is_behind_what_was_there(loop: Loop) -> None:
    many = sessions(2000)
    route = Route(many)
    loop.bring(route, b"a")
    while not many[0].written:
        loop.turn()
    assert many[-1].outbox == [b"a"]
    loop.bring(route, b"b")
    loop.turns()
    assert {tuple(each.written) for each in many} == {(b"a", b"b")}


def test_answers_go_before_messages(loop: Loop) -> None:
    many, publisher = sessions(2000), Session([b"ack"])
    loop.bring(Route(many), b"a")
    loop.rounds.answer({publisher})
    loop.turn()
    assert publisher.written == [b"ack"]
    assert not many[-1].written


def test_who_waits_is_called_when_all_is_written_one_a_turn_and_while_there_is_room(loop: Loop) -> None:
    route = Route(sessions(1000))
    loop.bring(route, b"a", 8)
    full = [loop.rounds.full]
    loop.bring(route, b"b", ROOM // 1000)
    assert [*full, loop.rounds.full] == [False, True]
    called: list[int] = []
    for number in range(3):
        loop.rounds.wait(functools.partial(called.append, number))
    loop.rounds.wait(lambda: loop.bring(route, b"c", ROOM))
    loop.rounds.wait(lambda: called.append(9))
    while not called:
        loop.turn()
    assert called == [0]
    assert not loop.rounds.full
    assert {tuple(each.written) for each in route.subscribers} == {(b"a", b"b")}
    loop.turn()
    loop.turn()
    loop.turn()
    assert (called, loop.rounds.full) == ([0, 1, 2], True)
    loop.turns()
    assert (called, loop.rounds.full) == ([0, 1, 2, 9], False)


@pytest.mark.parametrize(("count", "at_once"), [(VERY_MANY, VERY_MANY), (VERY_MANY + 1, 0)])
def test_the_end_of_a_turn_answers_a_few_hundred_and_leaves_more_to_the_rounds(count: int, at_once: int) -> None:
    calls: deque[Callable[[], None]] = deque()
    turn = Turn(calls.append)
    many = [Session([b"ack"]) for _ in range(count)]
    turn.sessions.update(many)
    turn.end()
    assert sum(bool(each.written) for each in many) == at_once
    while calls:
        calls.popleft()()
    assert all(each.written == [b"ack"] for each in many)
