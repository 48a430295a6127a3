"""Newcomers' epoll set: who waits while others take all of a turn is called in the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from broker.door.lobby import Lobby
from broker.settings.limits import Limits
from broker.sockets.poller import READABLE, Poller
from broker.sockets.turn import Turn
from tests.support.watched import WatchedClient


class Door:
    """A lobby whose turns and whose clock are in the test's hand."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = 1.0
        loop.time = lambda: self.now  # type: ignore[method-assign]
        turn = Turn(loop.call_soon)
        self.admitted = Poller(loop, turn)
        self.lobby = Lobby(loop, turn, self.admitted, Limits)
        self.newcomers: list[WatchedClient] = []

    def comes(self, *, takes: float = 0.0, does: Callable[[], object] = lambda: None) -> WatchedClient:
        """Return a newcomer who takes that many seconds of a turn, and *does* something in it."""

        def act() -> None:
            self.now += takes
            does()

        newcomer = WatchedClient(act)
        self.lobby.watch(newcomer.ours.fileno(), newcomer, READABLE)
        self.newcomers.append(newcomer)
        return newcomer

    def close(self) -> None:
        for poller in (self.lobby, self.admitted):
            poller.close()
        for newcomer in self.newcomers:
            newcomer.end()


@pytest.fixture
def door() -> Iterator[Door]:
    loop = asyncio.new_event_loop()
    opened = Door(loop)
    yield opened
    opened.close()
    loop.close()


@pytest.mark.parametrize("slow", [1, 3])
def test_who_has_bytes_inside_is_called_though_others_take_the_whole_turn(door: Door, slow: int) -> None:
    """The kernel does not tell of those bytes: who is forgotten now waits until it is sent away."""
    taking = [door.comes(takes=0.02) for _ in range(slow)]
    for each in taking:
        each.theirs.send(b"!")
    waiting = door.comes()
    door.lobby.again(waiting.ours.fileno())
    for _ in range(slow):
        door.lobby._ready()
        assert door.lobby.behind
    for each in taking:
        each.ours.recv(1)
    door.lobby._ready()
    assert waiting.calls == 1
    assert not door.lobby.behind
    door.lobby._ready()
    assert waiting.calls == 1, "once is enough"


def test_all_who_have_bytes_inside_are_called_in_a_turn_that_has_time_for_them(door: Door) -> None:
    newcomers = [door.comes() for _ in range(3)]
    for each in newcomers:
        door.lobby.again(each.ours.fileno())
    for _ in range(2):
        door.lobby._ready()
        assert [each.calls for each in newcomers] == [1, 1, 1]
    assert not door.lobby.behind


def test_who_was_called_in_a_turn_that_is_over_is_not_called_for_the_same_bytes_again(door: Door) -> None:
    newcomers = [door.comes(takes=0.02) for _ in range(2)]
    for each in newcomers:
        door.lobby.again(each.ours.fileno())
    for called in (1, 2, 2):
        door.lobby._ready()
        assert sum(each.calls for each in newcomers) == called
    assert [each.calls for each in newcomers] == [1, 1]


def test_who_has_gone_meanwhile_is_not_called(door: Door) -> None:
    taking, waiting = door.comes(takes=0.02), door.comes()
    taking.theirs.send(b"!")
    door.lobby.again(waiting.ours.fileno())
    door.lobby._ready()
    door.lobby.forget(waiting.ours.fileno())
    taking.ours.recv(1)
    door.lobby._ready()
    assert waiting.calls == 0


def test_who_is_put_out_in_the_turn_in_which_he_would_have_been_left_leaves_nothing_to_whoever_gets_his_number(
    door: Door,
) -> None:
    left = door.comes()
    number = left.ours.fileno()
    taking = door.comes(takes=0.02, does=lambda: door.lobby.forget(number))
    taking.theirs.send(b"!")
    door.lobby.again(number)
    door.lobby._ready()
    taking.ours.recv(1)
    door.lobby.watch(number, left, READABLE)
    door.lobby._ready()
    assert left.calls == 0
