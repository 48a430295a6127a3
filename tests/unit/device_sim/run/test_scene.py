from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_sim.device import State
from device_sim.fleet.backend import Backend
from device_sim.fleet.fleet import Fleet
from device_sim.fleet.surroundings import Counters, Surroundings
from device_sim.link.distance import NEARBY, Distance
from device_sim.run import stages
from device_sim.run.manner import Share
from device_sim.run.recorder import FAILED_REVOCATION, PAST_DEADLINE, Marker, Recorder
from device_sim.run.scene import Scene
from device_sim.scenario.catalogue import find
from device_sim.scenario.groups import Group, Sleep
from device_sim.scenario.metrics import Count

FAR = Distance(0.02, 0.02, 0.02, 0.0)
"""A link as any far one, but that a test need not wait long: an admission may take half a second."""


class FarBackend(Backend):
    def distance(self) -> Distance:
        return FAR


def scene(distance: Distance, backend: Backend | None = None) -> Scene:
    unused = cast("Any", None)
    fleet = Fleet([], Surroundings(unused, unused, unused, Counters(), 1))
    fleet.distance = distance
    return Scene(find("smoke"), unused, fleet, backend, Recorder(), 0.0)


def test_across_a_far_link_everything_is_waited_for_longer_by_what_that_may_take() -> None:
    assert scene(NEARBY).patience(5.0, 1) == 5.0
    assert scene(FAR).patience(5.0, 1) == pytest.approx(5.16)
    assert scene(FAR).patience(5.0, 2) == pytest.approx(5.32)


def test_devices_behind_a_proxy_that_troubles_their_network_are_as_far_away_as_their_backend() -> None:
    assert scene(NEARBY, FarBackend("backend-1", [])).patience(5.0, 1) == pytest.approx(5.16)
    assert scene(NEARBY, Backend("backend-1", [])).patience(5.0, 1) == 5.0


def test_what_has_come_past_a_deadline_in_time_for_the_link_is_noted_and_near_the_broker_nothing_is() -> None:
    far, near = scene(FAR), scene(NEARBY)
    for seconds in (4.9, 5.0, 5.1):
        far.took(seconds, 5.0, "meter-1 was disconnected")
        near.took(seconds, 5.0, "meter-1 was disconnected")
    noted = [(each.kind, each.what) for each in far.recorder.markers]
    assert noted == [(PAST_DEADLINE, "meter-1 was disconnected after 5.1 s, 5 near the broker")]
    assert near.recorder.markers == []
    for _ in range(100):
        far.took(6.0, 5.0, "meter-1 was disconnected")
    assert len(far.recorder.markers) == 20


async def test_devices_that_settle_have_the_time_that_an_admission_may_take_there() -> None:
    begun = asyncio.get_running_loop().time()
    await scene(NEARBY).settle(lambda: False, 0.0)
    at_once = asyncio.get_running_loop().time()
    await scene(FAR).settle(lambda: False, 0.0)
    assert asyncio.get_running_loop().time() - at_once >= 3 * (0.02 + 7 * 0.02) > at_once - begun


async def test_a_link_that_turns_out_to_be_far_meanwhile_is_waited_for_as_well() -> None:
    waiting = scene(NEARBY)
    looks = []

    def look() -> bool:
        looks.append(1)
        waiting.fleet.distance = FAR  # The first device has been admitted.
        return len(looks) == 3

    await waiting.settle(look, 0.01)
    assert len(looks) == 3


class Held:
    """A device that must be out, and stays connected until the test says so."""

    name = "meter-1"

    def __init__(self) -> None:
        self.machine = SimpleNamespace(state=State.REVOKED)
        self.connection = SimpleNamespace(closed=asyncio.get_running_loop().create_future())
        self.closed_by_itself = False

    @property
    def is_connected(self) -> bool:
        return not self.connection.closed.done()

    async def close(self) -> None:
        self.closed_by_itself = True


@pytest.mark.parametrize("distance", [NEARBY, FAR])
async def test_a_session_that_ends_past_the_deadline_is_never_in_order(distance: Distance) -> None:
    """Nearby it is a false admission at once; across a far link it is waited for, and noted."""
    around, device = scene(distance), Held()
    judged = asyncio.create_task(stages._stays_out(around, cast("Any", device), 0.02))
    await asyncio.wait([judged], timeout=30.0 if distance is NEARBY else 0.06)  # Nearby, it is over by itself.
    device.connection.closed.set_result(None)
    await judged
    kinds = [each.kind for each in around.recorder.markers]
    stayed = around.fleet.falsely_admitted == {device.name}
    assert (kinds, stayed, device.closed_by_itself) in [
        (["stayed in"], True, True),
        *([([PAST_DEADLINE], False, False)] if distance is FAR else []),
    ]


class Idle:
    """A device that is connected, and does nothing."""

    def __init__(self, name: str, *, sleep: Sleep | None = None, connected: bool = True) -> None:
        self.name = name
        self.group = Group(name="meters", sleep=sleep)
        self.is_connected = connected


def devices(*those: Idle) -> list[Any]:
    return list(those)


async def test_an_action_is_due_at_its_time_and_begins_then_whatever_became_of_the_one_before() -> None:
    paced, began, offsets = scene(NEARBY), time.monotonic(), [0.0, 0.03, 0.06]
    ran: list[tuple[str, float, float]] = []
    all_under_way = asyncio.Event()

    async def act(device: Any, due: float) -> None:
        ran.append((device.name, due, time.monotonic()))
        if len(ran) == len(offsets):
            all_under_way.set()
        await all_under_way.wait()  # The first would hold up the others, were they not each started by the clock.

    async with asyncio.timeout(30):
        await paced.pace(devices(*map(Idle, "abc")), offsets, act)
    assert [name for name, _, _ in ran] == ["a", "b", "c"]
    for (_, due, at), offset in zip(ran, offsets, strict=True):
        assert due - ran[0][1] == pytest.approx(offset, abs=1e-6)
        assert at >= due >= began
    assert paced.done == 1.0


async def test_when_the_user_interrupts_no_further_action_begins_and_nobody_waits() -> None:
    paced, ran = scene(NEARBY), []

    async def act(device: Any, _due: float) -> None:
        ran.append(device.name)
        paced.stop()

    async with asyncio.timeout(30):
        await paced.pace(devices(*map(Idle, "abc")), [0.0, 3600.0, 7200.0], act)
        await paced.sleep(3600.0)
        await paced.settle(lambda: False, 3600.0)
    assert ran == ["a"]
    assert paced.stopping
    assert paced.done < 1.0


def test_a_part_has_its_share_of_every_rate() -> None:
    unused = cast("Any", None)
    fleet = Fleet([], Surroundings(unused, unused, unused, Counters(), 1))
    rates = [Scene(find("smoke"), unused, fleet, None, Recorder(), 0.0, Share(n, 4)).rate_share for n in range(4)]
    assert (rates, scene(NEARBY).rate_share) == ([0.25] * 4, 1.0)


def test_who_is_revoked_is_neither_connected_nor_asleep_for_a_stage() -> None:
    here, asleep = scene(NEARBY), Sleep(awake=1.0, asleep=1.0)
    here.told_devices = devices(
        Idle("good"), Idle("revoked"), Idle("away", connected=False), Idle("sleeper", sleep=asleep),
        Idle("revoked sleeper", sleep=asleep), Idle("forgets", sleep=asleep.model_copy(update={"keep_session": False})),
    )  # fmt: skip
    here.fleet.condemned.update({"revoked": 1.0, "revoked sleeper": 1.0})
    assert [device.name for device in here.connected()] == ["good", "sleeper", "forgets"]
    assert [device.name for device in here.sleepers()] == ["sleeper"]
    assert here.told == 6


def test_every_revocation_that_was_not_done_counts_and_twenty_are_told() -> None:
    around = scene(NEARBY)
    around._started = time.monotonic()
    for number in range(1, 22):
        around.not_done(cast("Any", Idle(f"meter-{number}")), ValueError("refused"))
    assert around.recorder.counts[Count.FAILED_REVOCATIONS] == 21
    told = around.recorder.markers
    assert [each.what for each in told] == [f"meter-{number}: refused" for number in range(1, 21)]
    assert {each.kind for each in told} == {FAILED_REVOCATION}
    assert all(0.0 <= each.at < 30.0 for each in told)


def test_what_is_known_by_its_moment_is_marked_at_its_second_of_the_run() -> None:
    around = scene(NEARBY)
    around._started = 100.0
    assert around.marked("failed renewal", [(103.0, "meter-1")]) == [Marker(3.0, "failed renewal", "meter-1")]
