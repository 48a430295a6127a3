from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_sim.backoff import Backoff, Jitter
from device_sim.behaviour.absence import Flapping, Sleeping
from device_sim.behaviour.behaviour import Outcome
from device_sim.behaviour.catalogue import behaviours_of
from device_sim.behaviour.presence import OFFLINE, Present
from device_sim.behaviour.renewing import WrongClock
from device_sim.behaviour.responding import Responding
from device_sim.credentials.credential import HeldCredential
from device_sim.device import Device, Event, State
from device_sim.link.closure import Closure, Layer, unasked_session
from device_sim.link.link import ORDINARY, Link, Terms
from device_sim.link.tls_dial import NotAdmitted
from device_sim.scenario.groups import Clock, Clone, Commands, Flap, Group, Presence, Renewal, Sleep


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


def terms_of(group: Group) -> Terms:
    terms = ORDINARY
    for behaviour in behaviours_of(group):
        terms = behaviour.terms(Standing(), terms)
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
    assert (terms.clean_start, terms.session_seconds, terms.clock_offset) == (False, 400, -60.0)
    assert terms.will is not None
    assert (terms.will.topic, terms.will.payload, terms.will.retain) == ("fleet/meters/meter-1/state", OFFLINE, True)


def test_who_keeps_no_session_asks_for_none() -> None:
    terms = terms_of(Group(name="a", sleep=Sleep(awake=1, asleep=100, keep_session=False)))
    assert (terms.clean_start, terms.session_seconds) == (True, 0)


def test_only_what_has_something_to_do_gets_a_task() -> None:
    assert [kind.accompanies for kind in (Flapping, Sleeping, Present, WrongClock, Responding)] == [
        True, True, False, False, False,
    ]  # fmt: skip
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
    randomness = random.Random(1)  # noqa: S311 - repeatable by intent
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
