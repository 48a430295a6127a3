"""How long a head may take, and who is thought silent meanwhile: on an event loop whose clock is the test's."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator

import pytest

from provisioning.connections.head_deadline import HeadDeadline
from provisioning.connections.places import Places


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time passes when the test says so."""

    now = 1000.0

    def time(self) -> float:
        """Return what the test has said."""
        return self.now

    def turn(self, seconds: float) -> None:
        """Let *seconds* pass, and what is due be done."""
        self.now += seconds
        for _ in range(3):
            self.call_soon(self.stop)
            self.run_forever()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made, failures = Loop(), []
    made.set_exception_handler(lambda _, context: failures.append(context))
    yield made
    made.close()
    assert failures == []


def test_what_has_not_ended_in_time_is_overdue_once(loop: Loop) -> None:
    said: list[float] = []
    deadline = HeadDeadline(loop, 10.0, lambda: said.append(loop.now), None)
    deadline.begin()
    loop.turn(9.9)
    assert said == []
    loop.turn(0.2)
    assert said == [pytest.approx(1010.1)]
    loop.turn(100.0)
    assert len(said) == 1


def test_each_head_has_all_of_its_time_and_what_has_ended_is_not_overdue(loop: Loop) -> None:
    said: list[float] = []
    deadline = HeadDeadline(loop, 10.0, lambda: said.append(loop.now), None)
    deadline.begin()
    loop.turn(6.0)
    deadline.end()
    deadline.begin()
    loop.turn(9.9)  # The look that the first head began is due, and comes too early for the second.
    assert said == []
    loop.turn(0.2)
    assert len(said) == 1
    said.clear()
    deadline.begin()
    deadline.end()
    loop.turn(50.0)
    assert said == []
    deadline.begin()
    loop.turn(10.1)
    assert len(said) == 1
    deadline.begin()
    deadline.stop()
    loop.turn(50.0)
    assert len(said) == 1


def test_what_is_stopped_is_not_overdue_and_may_have_been_looked_at_before(loop: Loop) -> None:
    said: list[float] = []
    for ended, seconds in ((True, 10.1), (True, 5.0), (False, 5.0)):
        deadline = HeadDeadline(loop, 10.0, lambda: said.append(loop.now), None)
        deadline.begin()
        if ended:
            deadline.end()
        loop.turn(seconds)
        deadline.stop()
        deadline.stop()
        loop.turn(50.0)
    assert said == []


def test_a_connection_whose_head_is_complete_is_silent_for_less_long_than_one_that_began_after_it(loop: Loop) -> None:
    places = Places(4)
    lost: list[str] = []
    deadlines = {}
    for name, host in {"a": "192.0.2.1", "b": "192.0.2.1", "c": "198.51.100.1", "d": "198.51.100.1"}.items():
        place = places.take(host, functools.partial(lost.append, name))
        deadlines[name] = HeadDeadline(loop, 10.0, lambda: None, place)
    for name in "abcd":
        deadlines[name].begin()
    deadlines["a"].end()
    assert places.take("203.0.113.1", lambda: lost.append("e")) is not None
    assert lost == ["b"]
    deadlines["c"].begin()
    assert places.take("203.0.113.2", lambda: lost.append("f")) is not None
    assert lost == ["b", "d"]
    for each in deadlines.values():
        each.stop()
    assert len(places) == 2
