from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_sim.backoff import Backoff, Jitter
from device_sim.behaviour.absence import Flapping, Sleeping
from device_sim.behaviour.behaviour import Outcome
from device_sim.behaviour.burden import Cloned, Stalling
from device_sim.behaviour.catalogue import behaviours_of
from device_sim.behaviour.presence import OFFLINE, Present
from device_sim.behaviour.renewing import Renewing, WrongClock
from device_sim.behaviour.responding import Responding
from device_sim.credentials.credential import HeldCredential
from device_sim.device import Device, Event, State
from device_sim.link.closure import Closure, Layer, unasked_session
from device_sim.link.link import ORDINARY, Link, Terms
from device_sim.link.tls_dial import NotAdmitted
from device_sim.scenario.groups import Clock, Clone, Commands, Flap, Group, Presence, Renewal, Sleep, SlowReader


class Standing:
    """As much of a device as terms need."""

    name = "meter-1"
    credential: HeldCredential | None = None
    away: float | None = None

    def __init__(self) -> None:
        self.machine = Device("meter-1", "meters")

    async def close(self) -> None:
        raise AssertionError

    async def open_copy(self) -> Link:
        raise AssertionError


def terms_of(group: Group, *, admitted: bool = False) -> Terms:
    terms, device = ORDINARY, Standing()
    if admitted:
        for event in (Event.ISSUED, Event.DIALLED, Event.ADMITTED):
            device.machine.happened(event)
    for behaviour in behaviours_of(group):
        terms = behaviour.terms(device, terms)
    return terms


def test_a_group_without_behaviours_has_none() -> None:
    assert behaviours_of(Group(name="meters")) == ()
    assert terms_of(Group(name="meters")) is ORDINARY


def test_behaviours_are_composed() -> None:
    group = Group(
        name="all",
        sleep=Sleep(awake=1, asleep=100),
        presence=Presence(),
        clock=Clock(offset=-60.0),
        renewal=Renewal(),
    )
    kinds = [type(behaviour) for behaviour in behaviours_of(group)]
    assert [kind.__name__ for kind in kinds] == ["Present", "Renewing", "Sleeping", "WrongClock"]
    terms = terms_of(group)
    assert (terms.clean_start, terms.session_seconds, terms.clock_offset) == (True, 400, -60.0)
    assert not terms_of(group, admitted=True).clean_start, "only an earlier run's session is not resumed"
    assert terms.will is not None
    assert (terms.will.topic, terms.will.payload, terms.will.retain) == ("fleet/meters/meter-1/state", OFFLINE, True)


def test_who_keeps_no_session_asks_for_none() -> None:
    terms = terms_of(Group(name="a", sleep=Sleep(awake=1, asleep=100, keep_session=False)))
    assert (terms.clean_start, terms.session_seconds) == (True, 0)
    assert terms_of(Group(name="a", sleep=Sleep(awake=1, asleep=2))).session_seconds == 60, "a minute at least"


def test_only_what_has_something_to_do_gets_a_task() -> None:
    assert [kind.accompanies for kind in (Flapping, Sleeping, Stalling, Cloned, Renewing)] == [True] * 5
    assert [kind.accompanies for kind in (Present, WrongClock, Responding)] == [False] * 3  # fmt: skip
    assert behaviours_of(Group(name="a", flap=Flap(up=1, down=1)))[0].accompanies


def test_answers_are_drawn_from_the_device_and_the_command_alone() -> None:
    responding = Responding(Commands.model_validate({"refuse": "20%", "ignore": "10%"}))
    drawn = [responding.drawn(f"meter-{number}", 7, 1) for number in range(1000)]
    assert drawn == [responding.drawn(f"meter-{number}", 7, 1) for number in range(1000)]
    assert 150 < drawn.count(Outcome.REFUSED) < 250
    assert 60 < drawn.count(Outcome.IGNORED) < 140
    assert {Responding(Commands()).drawn(f"meter-{number}", 7, 1) for number in range(100)} == {Outcome.DONE}


def test_without_jitter_all_come_back_at_the_same_moment() -> None:
    herd, spread = Backoff(1.0, 8.0, Jitter.NONE), Backoff(1.0, 8.0)
    randomness = random.Random(1)
    assert [herd.pause(attempt, randomness) for attempt in range(5)] == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert len({spread.pause(3, randomness) for _ in range(20)}) == 20


def test_a_device_that_was_taken_over_may_come_back() -> None:
    device = Device("meter-1", "meters")
    for event in (
        Event.ISSUED,
        Event.DIALLED,
        Event.ADMITTED,
        Event.LOST,
        Event.RETRIED,
        Event.DIALLED,
        Event.ADMITTED,
    ):
        device.happened(event)
    assert (device.admitted, device.state) == (2, State.CONNECTED)


@pytest.mark.parametrize(
    ("closure", "told"),
    [(unasked_session(0.0), "admitted"), (Closure(Layer.MQTT, "0x87 Not authorized", "", 0.0, 0x87), "refused")],
)
async def test_a_copy_that_was_given_a_session_which_it_had_not_asked_for_was_let_in(
    closure: Closure, told: str
) -> None:
    class Copied(Standing):
        async def open_copy(self) -> Link:
            raise NotAdmitted(closure)

    heard: list[str] = []
    host = SimpleNamespace(
        seed=1,
        copy_admitted=lambda _device, _started: heard.append("admitted"),
        copy_refused=lambda _device: heard.append("refused"),
    )
    (cloning,) = behaviours_of(Group(name="a", clone=Clone(every=0.001)))
    link = SimpleNamespace(closed=asyncio.get_running_loop().create_future())
    await cloning.accompany(Copied(), cast("Any", link), cast("Any", host))
    assert heard == [told]


class Linked:
    """A connection that keeps what is done to it, and ends when it is broken."""

    def __init__(self, *, ended: bool = False) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self.done: list[str] = []
        if ended:
            self.end()

    def end(self) -> None:
        if not self.closed.done():
            self.closed.set_result(Closure(Layer.TCP, "closed", "", 0.0))

    def abort(self) -> None:
        self.done.append("aborted")
        self.end()

    def read_on(self, on: bool) -> None:
        self.done.append("reads" if on else "stalls")

    async def close(self) -> None:
        self.done.append("closed")
        self.end()


class Leaving(Standing):
    left = 0

    async def close(self) -> None:
        self.left += 1


@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended by itself"])
async def test_a_bad_network_breaks_a_connection_and_keeps_the_device_away(ended: bool) -> None:
    """One that has ended by itself is not this network's doing: its device comes back as soon as it may."""
    (flapping,) = behaviours_of(Group(name="a", flap=Flap(up=1e-6, down=50.0)))
    device, link = Leaving(), Linked(ended=ended)
    await flapping.accompany(device, cast("Link", link), cast("Any", SimpleNamespace(seed=1)))
    assert link.done == ([] if ended else ["aborted"])
    assert (device.away is None) is ended
    assert ended or cast("float", device.away) > 0.01


@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended by itself"])
async def test_a_device_that_goes_to_sleep_leaves_cleanly_and_stays_away_about_as_long_as_it_sleeps(
    ended: bool,
) -> None:
    sleeping = Sleeping(Sleep(awake=1e-6, asleep=100.0, jitter=0.2))
    away = []
    for number in range(40):
        device, link = Leaving(), Linked(ended=ended)
        await sleeping.accompany(device, cast("Link", link), cast("Any", SimpleNamespace(seed=number)))
        assert device.left == (0 if ended else 1)
        away.append(device.away)
    if ended:
        assert away == [None] * 40
        return
    times = cast("list[float]", away)
    assert 80.0 <= min(times) < 90.0
    assert 110.0 < max(times) <= 120.0


async def test_who_reads_slowly_reads_on_after_each_stall_also_if_it_ends_meanwhile() -> None:
    (stalling,) = behaviours_of(Group(name="a", slow_reader=SlowReader(every=1e-6, stall=1e-6)))
    link, stalls = Linked(), []

    def stalled() -> None:
        stalls.append(len(link.done))
        if len(stalls) == 3:
            link.end()

    host = SimpleNamespace(seed=1, stalled=stalled)
    await stalling.accompany(Standing(), cast("Link", link), cast("Any", host))
    assert link.done == ["stalls", "reads"] * 3
    assert stalls == [1, 3, 5], "counted once each, when it has begun"
    await stalling.accompany(Standing(), cast("Link", ended := Linked(ended=True)), cast("Any", host))
    assert ended.done == []


async def test_a_copy_that_was_let_in_stays_until_the_device_has_taken_its_place_back() -> None:
    copy = Linked()
    counted: list[str] = []

    class Copied(Standing):
        async def open_copy(self) -> Link:
            return cast("Link", copy)

    def admitted(_device: Standing, started: float) -> None:
        assert 0.0 <= time.monotonic() - started < 60.0
        counted.append("admitted")
        asyncio.get_running_loop().call_soon(copy.end)

    host = SimpleNamespace(seed=1, copy_admitted=admitted, copy_refused=lambda _device: counted.append("refused"))
    (cloning,) = behaviours_of(Group(name="a", clone=Clone(every=1e-6)))
    await cloning.accompany(Copied(), cast("Link", Linked()), cast("Any", host))
    assert (counted, copy.done) == (["admitted"], ["closed"])
    await cloning.accompany(Copied(), cast("Link", Linked(ended=True)), cast("Any", host))
    assert counted == ["admitted"], "of a device that is gone there is no copy"


@pytest.mark.parametrize(("offset", "left"), [(None, 0.5), (3600.0, 0.0), (-3600.0, 3600.0)])
async def test_a_certificate_is_renewed_when_its_share_of_life_is_over_by_the_devices_own_clock(
    offset: float | None, left: float
) -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    held = SimpleNamespace(serial=7, held_since=began, not_after=began + timedelta(seconds=1000))
    device = Standing()
    device.credential = cast("HeldCredential", held)
    clock = None if offset is None else Clock(offset=offset)
    renewing = Renewing(Renewal(after=0.6, jitter=0.0), clock)
    renewed: list[float] = []

    async def renew(_device: Standing, due: float) -> None:
        renewed.append(due)

    now = began + timedelta(seconds=599.5)
    host = SimpleNamespace(seed=1, renew=renew, now=lambda: now)
    link = Linked()
    if left > 1:
        asyncio.get_running_loop().call_soon(link.end)
    before = time.monotonic()
    await renewing.accompany(device, cast("Link", link), cast("Any", host))
    if left > 1:
        assert renewed == [], "its connection ended first: the next one waits on"
        return
    (due,) = renewed
    assert before + left <= due <= time.monotonic()
    device.credential = None
    with pytest.raises(RuntimeError, match="meter-1 is connected without a certificate"):
        await renewing.accompany(device, cast("Link", link), cast("Any", host))


def test_an_answer_is_as_late_as_the_group_says() -> None:
    (responding,) = behaviours_of(Group(name="a", commands=Commands(delay=1.5)))
    assert responding.answering(Standing(), 7, 1) == (1.5, Outcome.DONE)
    never = Responding(Commands.model_validate({"ignore": "100%", "delay": 2}))
    assert never.answering(Standing(), 7, 1) == (2.0, Outcome.IGNORED)


@pytest.mark.parametrize(
    "group",
    [
        Group(name="a", flap=Flap(up=600_000, down=1)),
        Group(name="a", sleep=Sleep(awake=600_000, asleep=1)),
        Group(name="a", slow_reader=SlowReader(every=600_000, stall=1)),
        Group(name="a", clone=Clone(every=600_000)),
    ],
    ids=["flaps", "sleeps", "reads slowly", "is copied"],
)
async def test_until_its_time_has_come_nothing_happens_to_a_connection(group: Group) -> None:
    (behaviour,) = behaviours_of(group)
    device, link = Leaving(), Linked()
    task = asyncio.create_task(behaviour.accompany(device, cast("Link", link), cast("Any", SimpleNamespace(seed=1))))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    link.end()
    await task
    assert (link.done, device.left, device.away) == ([], 0, None)


async def test_a_bad_network_is_up_and_down_as_long_as_the_scenario_says_on_average(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []

    async def wait(_futures: Any, **given: float) -> None:
        waited.append(given["timeout"])

    monkeypatch.setattr(asyncio, "wait", wait)
    (flapping,) = behaviours_of(Group(name="a", flap=Flap(up=10.0, down=50.0)))
    away: list[float] = []
    for seed in range(1000):
        device = Leaving()
        await flapping.accompany(device, cast("Link", Linked()), cast("Any", SimpleNamespace(seed=seed)))
        away.append(cast("float", device.away))
    assert sum(waited) / 1000 == pytest.approx(10.0, rel=0.15)
    assert sum(away) / 1000 == pytest.approx(50.0, rel=0.15)


async def test_who_stalls_does_so_for_its_time_or_until_its_connection_ends() -> None:
    (stalling,) = behaviours_of(Group(name="a", slow_reader=SlowReader(every=1e-6, stall=600_000)))
    link, begun = Linked(), asyncio.Event()
    host = SimpleNamespace(seed=1, stalled=begun.set)
    task = asyncio.create_task(stalling.accompany(Standing(), cast("Link", link), cast("Any", host)))
    await begun.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert link.done == ["stalls"]
    link.end()
    await task
    assert link.done == ["stalls", "reads"]


async def test_a_copy_is_not_taken_away_before_its_connection_has_ended() -> None:
    copy, let_in = Linked(), asyncio.Event()

    class Copied(Standing):
        async def open_copy(self) -> Link:
            return cast("Link", copy)

    host = SimpleNamespace(seed=1, copy_admitted=lambda _device, _started: let_in.set())
    (cloning,) = behaviours_of(Group(name="a", clone=Clone(every=1e-6)))
    task = asyncio.create_task(cloning.accompany(Copied(), cast("Link", Linked()), cast("Any", host)))
    await let_in.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    copy.end()
    await task
    assert copy.done == ["closed"]
