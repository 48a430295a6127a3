"""Clients that do nothing but ping: served at once while they are few, in intervals while they are many, always all."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from broker.mqtt.packets import Pingresp, Publish
from broker.sockets.doze import Doze
from broker.sockets.poller import BATCH, READABLE, Poller
from broker.sockets.turn import Turn
from tests.support.watched import WatchedClient
from tests.support.wire import V5, MemoryBroker, WireClient

INTERVAL = 0.25


@dataclass
class Timer:
    """What `call_later` returns."""

    when: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop in the test's hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.readers: dict[int, Callable[[], None]] = {}
        self.soon: list[Callable[[], None]] = []
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def add_reader(self, descriptor: int, call: Callable[[], None]) -> None:
        assert descriptor not in self.readers
        self.readers[descriptor] = call

    def remove_reader(self, descriptor: int) -> bool:
        return self.readers.pop(descriptor, None) is not None

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        self.timers.append(timer := Timer(self.now + delay, call))
        return timer

    def advance(self, seconds: float = 0.0) -> None:
        """Let time pass and the loop come round once: timers, then what is ready, then what was asked for."""
        self.now += seconds
        for timer in [each for each in self.timers if each.when <= self.now]:
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.call()
        for descriptor, call in list(self.readers.items()):
            if select.select([descriptor], [], [], 0)[0]:
                call()
        soon, self.soon = self.soon, []
        for call in soon:
            call()


class Night:
    """Two sets, of who is awake and of who dozes."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.loop = Loop()
        turn = Turn(self.loop.call_soon)
        self.awake = Poller(self.loop, turn)  # type: ignore[arg-type]
        self.doze = Doze(self.loop, turn, self.awake, lambda: self.interval)  # type: ignore[arg-type]
        self.sleepers: list[WatchedClient] = []

    def comes(self) -> WatchedClient:
        """Return somebody who dozes."""
        sleeper = WatchedClient()
        self.awake.watch(sleeper.ours.fileno(), sleeper, READABLE)
        assert self.awake.settled(sleeper.ours.fileno(), sleeper, READABLE, dozes=True) is self.doze
        self.sleepers.append(sleeper)
        return sleeper

    @property
    def by_intervals(self) -> bool:
        return self.doze._epoll.fileno() not in self.loop.readers


@pytest.fixture
def night(request: pytest.FixtureRequest) -> Iterator[Night]:
    fallen = Night(getattr(request, "param", INTERVAL))
    yield fallen
    for poller in (fallen.doze, fallen.awake):
        if not poller._epoll.closed:
            poller.close()
    for sleeper in fallen.sleepers:
        sleeper.end()


def test_who_comes_seldom_is_served_at_once(night: Night) -> None:
    one, other = night.comes(), night.comes()
    for count in (1, 2, 3):
        for sleeper in (one, other):
            sleeper.says()
            night.loop.advance(INTERVAL)
            assert sleeper.calls == count
    assert not night.loop.timers


def crowd(night: Night, count: int = 3) -> list[WatchedClient]:
    """Let so many come one upon another, so that they are looked at in intervals; each has been served once."""
    sleepers = [night.comes() for _ in range(count)]
    for sleeper in sleepers:
        sleeper.says()
    night.loop.advance(1.0)
    assert [each.calls for each in sleepers] == [1] * count
    assert night.by_intervals
    return sleepers


def test_who_come_often_are_served_together_in_intervals(night: Night) -> None:
    sleepers = crowd(night)
    for count in (2, 3, 4):
        for sleeper in sleepers:
            sleeper.says()
            night.loop.advance(INTERVAL / 4)
            assert sleeper.calls == count - 1, "the interval is not over"
        night.loop.advance(INTERVAL / 4)
        assert [each.calls for each in sleepers] == [count] * 3


def test_one_upon_another_begins_intervals_too(night: Night) -> None:
    one, other = night.comes(), night.comes()
    one.says()
    night.loop.advance(1.0)
    other.says()
    night.loop.advance(INTERVAL / 2)
    assert (one.calls, other.calls) == (1, 1)
    assert night.by_intervals


@pytest.mark.parametrize("still", [0, 1])
def test_intervals_end_when_they_bring_no_two(night: Night, still: int) -> None:
    sleepers = crowd(night)
    for sleeper in sleepers[:still]:
        sleeper.says()
    night.loop.advance(INTERVAL)
    assert not night.by_intervals
    assert not night.loop.timers, "nobody wakes for nothing"
    sleepers[2].says()
    night.loop.advance(INTERVAL)
    assert sleepers[2].calls == 2


def test_more_than_a_batch_does_not_wait_for_the_next_interval(night: Night) -> None:
    sleepers = [night.comes() for _ in range(BATCH + 5)]
    for sleeper in sleepers:
        sleeper.says()
    night.loop.advance(1.0)
    night.loop.advance(0.0)
    assert sum(each.calls for each in sleepers) == BATCH + 5


@pytest.mark.parametrize("night", [0.0], indirect=True)
def test_an_interval_of_nothing_is_none(night: Night) -> None:
    sleepers = [night.comes() for _ in range(5)]
    for count in (1, 2):
        for sleeper in sleepers:
            sleeper.says()
        night.loop.advance()
        assert [each.calls for each in sleepers] == [count] * 5
    assert not night.loop.timers


def test_who_wakes_is_watched_with_the_others(night: Night) -> None:
    sleepers = crowd(night)
    woken = sleepers[0]
    assert night.doze.settled(woken.ours.fileno(), woken, READABLE, dozes=True) is night.doze
    assert night.doze.settled(woken.ours.fileno(), woken, READABLE, dozes=False) is night.awake
    assert (len(night.awake), len(night.doze)) == (1, 2)
    woken.says()
    night.loop.advance()
    assert woken.calls == 2


def test_bytes_inside_go_along_and_do_not_wait(night: Night) -> None:
    sleepers = crowd(night)
    night.doze.again(sleepers[1].ours.fileno())
    night.loop.advance()
    assert sleepers[1].calls == 2, "the kernel does not know of them"
    assert night.by_intervals
    assert len(night.loop.timers) == 1
    night.doze.again(sleepers[0].ours.fileno())
    night.doze.settled(sleepers[0].ours.fileno(), sleepers[0], READABLE, dozes=False)
    night.loop.advance()
    assert [each.calls for each in sleepers] == [2, 2, 1]


def test_an_error_in_one_turn_is_none_for_those_who_doze(night: Night) -> None:
    """The event loop does not watch a set that is polled at intervals: they would never be served again."""

    class Broken:
        outbox: list[bytes] = []  # noqa: RUF012 - it has none

        def flush(self) -> None:
            raise LookupError("a defect")

    sleepers = crowd(night)
    night.doze._turn.sessions.add(Broken())
    with pytest.raises(LookupError):
        night.loop.advance(INTERVAL)
    for sleeper in sleepers:
        sleeper.says()
    night.loop.advance(INTERVAL)
    assert [each.calls for each in sleepers] == [2] * 3


def test_a_set_that_is_closed_looks_no_more(night: Night) -> None:
    sleepers = crowd(night)
    night.doze.abort()
    night.doze.close()
    assert all(each.gone for each in sleepers)
    assert night.doze._epoll.closed
    night.loop.advance(INTERVAL)
    assert [each.calls for each in sleepers] == [1] * 3


def silent(broker: MemoryBroker, seconds: float = 11.0) -> WireClient:
    """Return a device that has subscribed, has said nothing more for so long, and pings."""
    device = broker.device("meter-1")
    device.subscribe("fleet/meters/meter-1/cmd/#")
    broker.advance(seconds)
    device.ping()
    assert device.received() == [Pingresp()]
    return device


@pytest.mark.parametrize(("seconds", "dozes"), [(9.9, False), (10.1, True)])
def test_who_pings_after_ten_seconds_of_silence_dozes(broker: MemoryBroker, seconds: float, *, dozes: bool) -> None:
    assert silent(broker, seconds).transport.dozes is dozes


def test_who_only_pings_dozes_on(broker: MemoryBroker) -> None:
    device = silent(broker)
    device.ping()
    assert device.received() == [Pingresp()]
    assert device.transport.dozes


@pytest.mark.parametrize(
    "said", [b"\xc0\x00\xc0\x00", b"\xc0", Publish("fleet/meters/meter-1/state", b"on").encode(V5)]
)
def test_who_says_anything_else_is_awake(broker: MemoryBroker, said: bytes) -> None:
    device = silent(broker)
    device.send_bytes(said)
    assert not device.transport.dozes


@pytest.mark.parametrize("qos", [0, 1])
def test_who_is_sent_a_message_is_awake_to_answer_it(broker: MemoryBroker, qos: int) -> None:
    device, backend = silent(broker), broker.service()
    backend.publish("fleet/meters/meter-1/cmd/go", qos=qos)
    assert len(device.messages()) == 1
    assert not device.transport.dozes


def test_who_is_sent_a_message_with_the_answer_to_its_ping_is_awake(broker: MemoryBroker) -> None:
    device, backend = silent(broker), broker.service()
    broker.engine.turn.begin()
    device.connection.receive(b"\xc0\x00", broker.now)
    backend.connection.receive(Publish("fleet/meters/meter-1/cmd/go").encode(V5), broker.now)
    assert device.transport.dozes
    broker.engine.turn.end()
    assert len(device.received()) == 2
    assert not device.transport.dozes
