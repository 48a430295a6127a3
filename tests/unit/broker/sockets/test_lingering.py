"""Transports that have said goodbye: looked at together a moment later, each closed once, and none kept for long."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from broker.sockets.lingering import Lingering


class Loop:
    """An event loop in the test's hand: time stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[object] = []
        self.timers: list[tuple[float, object]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, call: object) -> None:
        self.soon.append(call)

    def call_later(self, delay: float, call: object) -> None:
        self.timers.append((self.now + delay, call))

    def turn(self) -> None:
        """Run what was asked for at once; what that asks for comes in the next turn."""
        soon, self.soon = self.soon, []
        for call in soon:
            call()  # type: ignore[operator]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [each for each in self.timers if each[0] <= self.now]
        self.timers = [each for each in self.timers if each not in due]
        for _, call in due:
            call()  # type: ignore[operator]


class Peer:
    """A transport whose peer closes its side when the test says so."""

    def __init__(self, descriptor: int, lingering: Lingering) -> None:
        self.descriptor = descriptor
        self.lingering = lingering
        self.gone = False
        self.looks = 0
        self.aborted = 0
        lingering.add(descriptor, self)

    def on_readable(self) -> None:
        self.looks += 1
        if self.gone:
            self.lingering.forget(self.descriptor)

    def abort(self, code: str = "ABORTED", detail: str = "") -> None:
        del code, detail
        self.aborted += 1
        self.lingering.forget(self.descriptor)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def lingering(loop: Loop) -> Lingering:
    return Lingering(loop)  # type: ignore[arg-type]


def test_those_whose_peers_have_closed_are_closed_a_moment_later_and_nobody_is_asked_after_that(
    loop: Loop, lingering: Lingering
) -> None:
    assert not loop.timers, "without any there is no timer"
    first, second = Peer(1, lingering), Peer(2, lingering)
    assert len(loop.timers) == 1, "one for all"
    first.gone = True
    loop.advance(0.2)
    assert (first.looks, len(lingering)) == (0, 2)
    loop.advance(0.06)
    assert (first.looks, second.looks, len(lingering)) == (1, 1, 1)
    second.gone = True
    loop.advance(0.26)
    assert (first.looks, second.looks, len(lingering)) == (1, 2, 0)
    assert not loop.timers
    Peer(1, lingering)
    assert len(loop.timers) == 1, "the next one is looked at, too"


def test_a_peer_that_never_closes_is_closed_after_a_second(loop: Loop, lingering: Lingering) -> None:
    silent = Peer(1, lingering)
    for _ in range(3):
        loop.advance(0.251)
    assert (silent.looks, silent.aborted) == (3, 0)
    loop.advance(0.251)
    assert (silent.aborted, len(lingering)) == (1, 0)
    assert not loop.timers


def test_a_thousand_are_looked_at_in_portions_between_which_others_are_served(loop: Loop, lingering: Lingering) -> None:
    peers = [Peer(number, lingering) for number in range(1000)]
    for peer in peers:
        peer.gone = True
    loop.advance(0.26)
    turns = 0
    while loop.soon:
        left = len(lingering)
        loop.turn()
        turns += 1
        assert 0 < left - len(lingering) <= 50
    assert turns > 10
    assert len(lingering) == 0
    assert {peer.looks for peer in peers} == {1}
    assert not loop.timers


def test_one_that_is_closed_meanwhile_is_not_looked_at_and_another_with_its_number_is(
    loop: Loop, lingering: Lingering
) -> None:
    peers = [Peer(number, lingering) for number in range(100)]
    loop.advance(0.26)
    peers[99].abort()
    again = Peer(99, lingering)
    while loop.soon:
        loop.turn()
    assert (peers[99].looks, again.looks) == (0, 1)
    assert not lingering.forget(1000)


def test_all_are_closed_at_once_when_the_broker_ends(loop: Loop, lingering: Lingering) -> None:
    peers = [Peer(number, lingering) for number in range(3)]
    lingering.abort()
    assert [peer.aborted for peer in peers] == [1, 1, 1]
    assert len(lingering) == 0
    loop.advance(0.26)
    assert {peer.looks for peer in peers} == {0}
    assert not loop.timers


def test_one_that_meets_an_error_is_closed_and_all_others_are_looked_at_on(loop: Loop, lingering: Lingering) -> None:
    """Otherwise nobody would ever be looked at again, and every socket that says goodbye would stay open."""
    peers = [Peer(number, lingering) for number in range(3)]
    peers[0].on_readable = lambda: 1 / 0  # type: ignore[method-assign, assignment]
    peers[1].gone = True
    with capture_logs() as logs:
        loop.advance(0.26)
    assert [each["code"] for each in logs] == ["INTERNAL_ERROR"]
    assert [peer.aborted for peer in peers] == [1, 0, 0]
    assert len(lingering) == 1
    loop.advance(0.26)
    assert [peer.looks for peer in peers] == [0, 1, 2]


def test_one_that_cannot_even_be_closed_keeps_no_other_from_its_end(loop: Loop, lingering: Lingering) -> None:
    def abort() -> None:
        raise ZeroDivisionError

    peers = [Peer(number, lingering) for number in range(40)]
    peers[0].abort = abort  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        loop.advance(1.1)
    for _ in range(3):
        loop.turn()
        loop.advance(0.26)
    assert [peer.aborted for peer in peers[1:]] == [1] * 39
    assert (len(lingering), loop.timers) == (0, []), "it is not looked at for ever"
