"""A turn waits for more only among many who send one by one. Nothing is timed: the waiting is in the test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.settings.limits import Limits
from broker.sockets.coalescing import Coalescing
from broker.sockets.poller import READABLE, Poller
from broker.sockets.turn import Turn
from tests.support.watched import WatchedClient

SECONDS = 0.0002
ENOUGH = 6
"""Clients that a wait has to bring."""


class Waits:
    """What was slept, and what happens meanwhile."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.slept: list[float] = []
        self.coalescing = Coalescing(lambda: seconds, self.slept.append)
        self.now = 0.0

    def turn(self, ready: int = 1, brings: int = 0, idle: float = 1.0) -> bool:
        """Let a turn begin with *ready* clients; return whether it waited, which brought so many more."""
        self.now += idle
        waited = not self.coalescing.skips(ready) and self.coalescing.waited(ready, self.now)
        if waited:
            self.coalescing.brought(brings)
        self.now += 0.001
        if self.coalescing.is_near:
            self.coalescing.ended(self.now)
        return waited


@pytest.mark.parametrize("brings", [0, 1, ENOUGH - 1])
def test_who_talks_alone_or_with_few_is_delayed_in_one_turn_of_a_thousand(brings: int) -> None:
    waits = Waits()
    assert sum(waits.turn(ready=1, brings=brings) for _ in range(2000)) <= 11, "1, 3, 7 … and 1023 turns go by between"
    assert sum(waits.turn(ready=1, brings=brings) for _ in range(10 * 1024)) == 10
    assert set(waits.slept) == {SECONDS}


def test_among_many_each_turn_waits() -> None:
    waits = Waits()
    assert all(waits.turn(ready=1, brings=ENOUGH) for _ in range(100))


def test_it_begins_anew_when_many_have_come() -> None:
    waits = Waits()
    for _ in range(10_000):
        waits.turn(brings=0)
    turns = next(number for number in range(1, 2000) if waits.turn(brings=ENOUGH))
    assert turns <= 1024
    assert waits.turn(brings=ENOUGH)


@pytest.mark.parametrize("ready", [0, 8, 256])
def test_nobody_and_many_are_not_waited_for(ready: int) -> None:
    waits = Waits()
    assert not any(waits.turn(ready=ready, brings=9) for _ in range(10))
    assert waits.slept == []


def test_a_broker_that_is_behind_does_not_wait() -> None:
    waits = Waits()
    at_once = [waits.turn(brings=ENOUGH, idle=0.00001) for _ in range(20)]
    assert at_once == [True] * 7 + [False] * 13
    assert waits.turn(brings=ENOUGH, idle=0.0001), "it had time to sleep"
    for _ in range(5):
        while not waits.turn(brings=0):
            pass
    assert not any(waits.turn(idle=0.00001) for _ in range(200)), "it was behind already when the next wait was far"
    assert sum(waits.turn(idle=0.0001) for _ in range(2)) == 1


def test_zero_switches_it_off_while_it_runs() -> None:
    seconds = [SECONDS]
    slept: list[float] = []
    coalescing = Coalescing(lambda: seconds[0], slept.append)
    assert coalescing.waited(1, 1.0)
    coalescing.brought(4)
    seconds[0] = 0.0
    assert not coalescing.waited(1, 2.0)
    assert slept == [SECONDS]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=300))
def test_useless_waits_are_rare_whatever_comes(turns: list[tuple[int, int]]) -> None:
    """At most one that brings too few in a row, then at least one turn without."""
    waits = Waits()
    useless = False
    for ready, brings in turns:
        waited = waits.turn(ready, brings)
        if 0 < ready < 8:
            assert not (useless and waited)
            useless = waited and brings < ENOUGH
        else:
            assert not waited


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def test_who_sends_during_the_wait_is_served_in_the_same_turn(loop: asyncio.AbstractEventLoop) -> None:
    """Real sockets in a real epoll set; one write to the subscriber for all is what `Turn.end` makes of it."""
    with ExitStack() as stack:
        clients = [WatchedClient() for _ in range(4)]
        for each in clients:
            stack.callback(each.end)

        def meanwhile(_seconds: float) -> None:
            for each in clients[1:]:
                each.says(b"late")

        ends: list[list[bytes]] = []
        turn = Turn(loop.call_soon)
        poller = Poller(loop, turn, Coalescing(lambda: SECONDS, meanwhile))
        loop.remove_reader(poller._epoll.fileno())
        turn.after = lambda: ends.append([each.heard for each in clients])
        for each in clients:
            poller.watch(each.ours.fileno(), each, READABLE)
        clients[0].says(b"early")
        poller._ready()
        poller._epoll.close()
    assert ends == [[b"early", b"late", b"late", b"late"]]


def test_its_setting_is_a_fraction_of_a_millisecond() -> None:
    assert Limits().coalesce_microseconds / 1e6 == SECONDS
