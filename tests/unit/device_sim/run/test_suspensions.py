"""What the stage that suspends devices, and resumes them, counts and measures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from device_sim.link.closure import BROKEN, Closure, Layer
from device_sim.link.distance import Distance
from device_sim.run import stages
from device_sim.run.recorder import PAST_DEADLINE
from device_sim.run.scene import Scene
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.stages import Suspend
from tests.support.staged import PUT_OUT, Meter, scene, unavailable


class Leaver(Meter):
    """One that is not connected any more when it has closed."""

    async def close(self) -> None:
        self.is_connected = False
        self.machine.ended(PUT_OUT)


async def suspended(
    meter: Meter,
    suspends: Callable[[], object],
    resumes: Callable[[], object],
    deadline: float = 30.0,
    seconds: float = 0.001,
    around: Scene | None = None,
) -> Scene:
    """Return the scene in which *meter* was suspended and resumed, and the broker does as these say."""
    around = around or scene()
    operator = cast("Any", around.target.operator)
    operator.revokes, operator.resumes = suspends, resumes
    around.told_devices = [cast("Any", meter)]
    await stages.play(around, 1, Suspend(select=1.0, rate=100.0, seconds=seconds, deadline=deadline))
    return around


def figures(around: Scene) -> dict[str, float]:
    """Return what was counted and measured of suspensions, if anything."""
    of = (Count.SUSPENDED, Count.RESUMED, Count.STAYED_IN, Count.READMITTED, Count.FAILED_REVOCATIONS)
    found = {str(each): float(around.recorder.counts[each]) for each in of}
    for metric in (Duration.SUSPENDED_CLOSED, Duration.RESUMED_ADMITTED, Duration.REVOKED_REFUSED):
        found[str(metric)] = around.recorder.value(metric, "count", 0.0) or 0.0
    found |= {"falsely in": len(around.fleet.falsely_admitted), "falsely out": len(around.fleet.falsely_refused)}
    return {name: number for name, number in found.items() if number}


async def test_who_is_suspended_is_out_and_is_in_again_when_that_is_over() -> None:
    meter = Meter()
    around = await suspended(meter, meter.put_out, lambda: setattr(meter, "good", True))
    assert figures(around) == {"suspended": 1, "resumed": 1, "suspended_closed": 1, "resumed_admitted": 1}
    assert (around.fleet.condemned, around.fleet.refused_by_reason.total()) == ({}, 1)
    assert meter.keeps_tls_session, "which it tries to resume"
    assert [(each.kind, each.what) for each in around.recorder.markers] == [("suspend", "meter-1")]
    for metric in (Duration.SUSPENDED_CLOSED, Duration.RESUMED_ADMITTED):
        assert around.recorder.response[metric].highest < 60_000


async def test_for_as_long_as_the_scenario_says_any_admission_is_false_and_while_it_is_resumed_none_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meter, around, began, ended = Meter(), scene(), [], []
    wrong_from: list[float] = []
    connect = meter.connect

    async def connected(session: object = None) -> object:
        wrong_from.append(around.fleet.condemned["meter-1"])
        return await connect(session)

    def puts_out() -> None:
        began.append(time.monotonic())
        meter.put_out()

    def resumes() -> None:
        ended.append(time.monotonic())
        meter.good = True

    monkeypatch.setattr(meter, "connect", connected)
    await suspended(meter, puts_out, resumes, seconds=0.05, around=around)
    assert ended[0] - began[0] >= 0.05
    assert [math.isfinite(each) for each in wrong_from] == [True, False]


async def test_from_the_call_on_a_refusal_is_right() -> None:
    """The broker may hear of the suspension before the operator has an answer."""
    meter, around = Meter(), scene()
    known: list[bool] = []

    def puts_out() -> None:
        known.append(meter.name in around.fleet.condemned)
        meter.put_out()

    await suspended(meter, puts_out, lambda: setattr(meter, "good", True), around=around)
    assert known == [True]


@pytest.mark.parametrize(
    ("took", "told"), [(1.0, []), (6.0, ["meter-1 was disconnected after 6.0 s, 5 near the broker"])]
)
async def test_across_a_link_a_suspension_that_took_longer_than_the_deadline_is_told_of_and_nothing_else(
    took: float, told: list[str]
) -> None:
    meter, around = Meter(), scene()
    around.fleet.distance = Distance(0.6, 0.7, 1.0)

    def puts_out() -> None:
        meter.is_connected = False
        meter.machine.ended(PUT_OUT)
        meter.connection.closed.set_result(replace(PUT_OUT, at=time.monotonic() + took))

    await suspended(meter, puts_out, lambda: setattr(meter, "good", True), deadline=5.0, around=around)
    assert [each.what for each in around.recorder.markers if each.kind == PAST_DEADLINE] == told
    assert figures(around)["resumed"] == 1


async def test_who_is_suspended_and_stays_in_is_falsely_admitted() -> None:
    meter = Leaver()
    around = await suspended(meter, lambda: None, lambda: setattr(meter, "good", True), deadline=0.5)
    told = figures(around)
    assert told == {"suspended": 1, "resumed": 1, "stayed_in": 1, "resumed_admitted": 1, "falsely in": 1}


async def test_who_is_let_in_while_it_is_suspended_is_falsely_admitted() -> None:
    meter = Leaver()
    meter.good = True
    around = await suspended(meter, meter.put_out, lambda: None)
    told = figures(around)
    assert (told["readmitted"], told["falsely in"], told["suspended_closed"]) == (1, 1, 1)
    assert [each.what for each in around.recorder.markers if each.kind == "readmitted"] == ["meter-1"]


async def test_who_stays_out_when_its_suspension_is_over_is_falsely_refused() -> None:
    meter = Meter()
    around = await suspended(meter, meter.put_out, lambda: None, deadline=0.05)
    assert figures(around) == {"suspended": 1, "suspended_closed": 1, "falsely out": 1}
    assert around.fleet.condemned == {}


async def test_a_suspension_or_resumption_that_was_not_done_is_judged_no_further() -> None:
    meter = Meter()
    around = await suspended(meter, unavailable, lambda: None)
    assert (figures(around), meter.is_connected) == ({"failed_revocations": 1}, True)
    around = await suspended(meter, meter.put_out, unavailable)
    assert figures(around) == {"suspended": 1, "suspended_closed": 1, "failed_revocations": 1}
    assert around.fleet.condemned == {"meter-1": float("inf")}, "nobody knows whether it may get in"


async def test_a_suspended_device_whose_network_failed_is_no_credit_to_the_broker() -> None:
    meter = Meter()

    def breaks() -> None:
        meter.is_connected = False
        broken = Closure(Layer.TCP, BROKEN, "", time.monotonic())
        meter.machine.ended(broken)
        meter.connection.closed.set_result(broken)

    around = await suspended(meter, breaks, lambda: setattr(meter, "good", True))
    assert figures(around) == {"suspended": 1, "resumed": 1, "resumed_admitted": 1}
