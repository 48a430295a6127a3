"""Whether a peer is read: only while nothing speaks against it, and never on behalf of one that has ended."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from broker.sockets import readiness
from broker.sockets.poller import READABLE, WRITABLE
from broker.sockets.readiness import Readiness
from broker.sockets.transport_state import CLOSED, CLOSING, HANDSHAKE, OPEN, State

pytestmark = pytest.mark.skipif(
    not readiness.__file__.endswith(".py"), reason="compiled code takes no other epoll set than its own"
)

DESCRIPTOR = 7
INSIDE = 4711


class Surroundings:
    """An event loop and an epoll set that note what is asked of them."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.events: list[int] = []
        self.asked: list[str] = []

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((seconds, call))

    def change(self, descriptor: int, events: int) -> None:
        assert descriptor == DESCRIPTOR
        self.events.append(events)

    def again(self, descriptor: int) -> None:
        assert descriptor == DESCRIPTOR
        self.asked.append("again")

    def enough(self, descriptor: int) -> None:
        assert descriptor == DESCRIPTOR
        self.asked.append("enough")


def connection(around: Any, *, state: State = OPEN, inside: int = 0) -> Readiness:
    made = Readiness(around, around, DESCRIPTOR, inside)
    made._state, made._events = state, READABLE
    return made


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


REASONS = ("held", "resting", "choked")


def begin(of: Readiness, reason: str) -> None:
    if reason == "held":
        of.hold()
    elif reason == "resting":
        of.rest(2.5)
    else:  # As a transport does whose backlog is too long.
        of.choked = True
        of._pause_reading()


def end(of: Readiness, reason: str, around: Surroundings) -> None:
    if reason == "held":
        of.release()
    elif reason == "resting":
        around.timers.pop()[1]()
    else:
        of.choked = False
        of._read_on()


@pytest.mark.parametrize("order", list(permutations(REASONS)), ids="-".join)
def test_a_peer_is_read_again_when_the_last_reason_against_it_has_ended(
    around: Surroundings, order: tuple[str, ...]
) -> None:
    of = connection(around)
    for reason in REASONS:
        begin(of, reason)
        assert not of._events & READABLE
    for reason in order[:-1]:
        end(of, reason, around)
        assert not of._events & READABLE
    end(of, order[-1], around)
    assert around.events == [0, READABLE]


def test_writing_goes_on_meanwhile(around: Surroundings) -> None:
    of = connection(around)
    of._watch(READABLE | WRITABLE)
    of.hold()
    of.release()
    assert around.events == [READABLE | WRITABLE, WRITABLE, READABLE | WRITABLE]


def test_one_that_rests_rests_once_and_may_rest_again_later(around: Surroundings) -> None:
    """A peer that sends all the time would otherwise leave a timer for each of its packets."""
    of = connection(around)
    for seconds in (2.5, 3.5):
        of.rest(seconds)
        of.rest(100.0)
        assert [each for each, _ in around.timers] == [seconds]
        end(of, "resting", around)
        assert of._events == READABLE


@pytest.mark.parametrize("state", [HANDSHAKE, CLOSING, CLOSED])
def test_only_an_open_connection_is_held_or_rests(around: Surroundings, state: State) -> None:
    """One that was held in its handshake would not be read when it is open."""
    of = connection(around, state=state)
    of.hold()
    of.rest(2.5)
    assert (around.timers, around.events, of._held, of._resting) == ([], [], False, False)


@pytest.mark.parametrize("reason", REASONS)
def test_nothing_is_asked_for_one_that_has_ended_meanwhile(around: Surroundings, reason: str) -> None:
    """Its descriptor may be another's by then."""
    of = connection(around, inside=INSIDE)
    begin(of, reason)
    asked = list(around.asked)
    of._state = CLOSED
    end(of, reason, around)
    assert (around.events, around.asked) == ([0], asked)


@pytest.mark.parametrize("waits", [0, 1])
def test_what_openssl_holds_is_read_with_the_rest_though_the_kernel_knows_nothing_of_it(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, waits: int
) -> None:
    monkeypatch.setattr(readiness, "has_pending", {INSIDE: waits}.__getitem__)
    of = connection(around, inside=INSIDE)
    of.hold()
    assert around.asked == ["enough"], "nor is it read from there while it is held"
    of.release()
    assert around.asked == ["enough", *["again"] * waits]
