"""What the stages measure, and of what they take no measure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_sim.device import Device, Event, State
from device_sim.fleet.backend import Backend
from device_sim.link.closure import BROKEN, Closure, Layer, unasked_session
from device_sim.link.distance import NEARBY
from device_sim.link.tls_dial import NotAdmitted
from device_sim.run import stages
from device_sim.run.manner import WHOLE, Share
from device_sim.run.recorder import Recorder
from device_sim.run.scene import Scene
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.stages import Command, Hold, Ramp, Renew, Restart, Revoke, Stage, Storm, Suspend, Trouble
from device_sim.telemetry.seal import key_of, sealed_object
from tests.support.staged import CUT_OFF, GONE, NOBODY_LISTENS, SILENCE, TURNED_AWAY, Meter, scene, told, unavailable

_ANSWERS = [(NOBODY_LISTENS, 0), (SILENCE, 0), (GONE, 1), (CUT_OFF, 1), (TURNED_AWAY, 1)]


class Refused:
    """A device whose every attempt comes to the same end."""

    name = "meter-1"
    connection = None
    credential = None
    out_since = None

    def __init__(self, closure: Closure) -> None:
        self.machine = Device(self.name, "meters")
        self.machine.happened(Event.ISSUED)
        self._closure = closure

    @property
    def is_connected(self) -> bool:
        return False

    async def connect(self, _session: object = None) -> None:
        self.machine.happened(Event.DIALLED)
        self.machine.ended(self._closure)
        raise NotAdmitted(self._closure)


@pytest.mark.parametrize(("closure", "measured"), _ANSWERS)
async def test_a_broker_that_is_not_there_refuses_no_revoked_device_and_quickly_at_that(
    closure: Closure, measured: int
) -> None:
    """Its figures would be the best of all."""
    around = scene()
    await stages._tries_again(around, cast("Any", Refused(closure)), Duration.REVOKED_REFUSED)
    refusals = around.recorder.value(Duration.REVOKED_REFUSED, "count", 0.0)
    assert (refusals, around.recorder.counts[Count.READMITTED]) == (measured, 0)
    assert around.fleet.refused_by_reason.total() == 1


@pytest.mark.parametrize(("closure", "false"), _ANSWERS)
async def test_a_broker_that_is_not_there_refuses_nobody_whose_suspension_is_over(closure: Closure, false: int) -> None:
    fleet = scene().fleet
    fleet.pardon("meter-1")
    assert await fleet.readmit(cast("Any", Refused(closure)), time.monotonic(), 0.01) is None
    assert len(fleet.falsely_refused) == false
    assert fleet.condemned == {}


async def test_a_command_is_late_from_when_it_was_due_also_while_earlier_ones_fill_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broker that acknowledges slowly holds back the backend's commands: that is no pause of which nobody is told."""
    published, stalled = asyncio.Event(), 0.1
    backend = Backend("backend", ["meter-1"], mark=1)
    backend.connection = cast("Any", SimpleNamespace(publish=lambda *_: published.set(), distance=lambda: NEARBY))
    backend._window = asyncio.Semaphore(0)

    async def is_back() -> None:
        pass

    monkeypatch.setattr(backend, "come_back", is_back)
    around = scene(backend)
    meter = SimpleNamespace(name="meter-1", machine=Device("meter-1", "meters"), is_moving=False, is_connected=True)
    around.told_devices = [cast("Any", meter)]
    playing = asyncio.create_task(stages._command(around, Command(rate=100.0, deadline=60.0)))
    while not backend._commands:
        await asyncio.sleep(0)
    (identifier,) = backend._commands
    await asyncio.sleep(stalled)
    assert not published.is_set()
    backend._acknowledged(1, 0, "")
    await published.wait()
    answer = b'{"id":"%s","done":true}' % identifier.encode()
    backend._received("fleet/meters/meter-1/ack", sealed_object(answer, key_of("fleet/meters/meter-1/ack", 1)))
    await playing
    recorder = around.recorder
    late = recorder.response[Duration.COMMAND].highest - recorder.service[Duration.COMMAND].highest
    assert stalled * 1000 * 0.99 <= late < 60_000
    assert (recorder.counts[Count.COMMANDS], recorder.counts[Count.UNANSWERED_COMMANDS]) == (1, 0)


@pytest.mark.parametrize("began", [1.0, 3.0])
async def test_a_revoked_device_that_is_given_a_session_by_itself_was_let_in(began: float) -> None:
    """It has to leave, for it asked for none: the broker has refused nobody."""
    around, refused = scene(), Refused(unasked_session(0.0))
    around.fleet.condemned["meter-1"] = 2.0
    refused.machine.state = State.REFUSED
    around.fleet._not_admitted(cast("Any", refused), unasked_session(0.0), began)
    assert around.fleet.falsely_admitted == ({"meter-1"} if began > 2.0 else set())


class Watched(Scene):
    """A scene that notes when a stage is to act, and what it is to wait for, and does neither."""

    def __init__(self, share: Share, meters: int = 4) -> None:
        ordinary = scene(share=share)
        super().__init__(ordinary.scenario, ordinary.target, ordinary.fleet, None, Recorder(), 0.0, share)
        self.backend = cast("Any", SimpleNamespace(distance=lambda: NEARBY))
        self.meters = [Meter(f"meter-{number}") for number in range(meters)]
        self._order = cast("Any", list(self.meters))
        self.told_devices = cast("Any", list(self.meters))
        self.times: list[float] = []
        self.settled: list[tuple[Callable[[], bool], float]] = []

    @property
    def told(self) -> int:
        return 0

    async def pace(self, _devices: object, times: Any, action: Any) -> None:
        self.times = list(times)
        self.action = action

    async def settle(self, condition: Callable[[], bool], seconds: float) -> None:
        self.settled.append((condition, seconds))


@pytest.mark.parametrize(
    "stage",
    [
        Ramp(rate=10.0), Revoke(select=1.0, rate=10.0), Suspend(select=1.0, rate=10.0), Renew(select=1.0, rate=10.0),
        Command(rate=10.0),
    ],
    ids=lambda stage: stage.kind,
)  # fmt: skip
@pytest.mark.parametrize("parts", [1, 2, 4])
async def test_the_parts_of_a_run_together_act_at_the_rate_of_the_scenario(stage: Stage, parts: int) -> None:
    around = Watched(Share(0, parts))
    await stages.play(around, 3, stage)
    assert around.times == pytest.approx([0.0, 0.1 * parts, 0.2 * parts, 0.3 * parts])
    assert (around.number, around.done) == (3, 0.0)


@pytest.mark.parametrize(
    ("stage", "seconds"),
    [(Ramp(rate=10.0), stages._SETTLE), (Storm(within=0.5, settle=7.0), 7.0), (Restart(settle=8.0), 8.0),
     (Trouble(seconds=0.001, latency=1.0, settle=9.0), 9.0)],
    ids=lambda value: getattr(value, "kind", ""),
)  # fmt: skip
async def test_a_stage_is_over_when_every_device_is_in_or_refused(stage: Stage, seconds: float) -> None:
    around = Watched(WHOLE)
    await stages.play(around, 1, stage)
    ((is_over, patience),) = around.settled
    assert (is_over(), patience) == (True, seconds)
    around.meters[2].is_undecided = True
    assert not is_over()


async def test_a_storm_breaks_each_connection_once_within_its_time() -> None:
    around = Watched(WHOLE, 40)
    assert await stages.play(around, 1, Storm(within=0.5)) == stages.Acted(40, 0), "nothing acts here"
    assert len(around.times) == 40
    assert around.times == sorted(around.times)
    assert 0.0 <= around.times[0] < 0.1
    assert 0.4 < around.times[-1] <= 0.5
    await around.action(around.meters[0], 0.0)
    assert [meter.cuts for meter in around.meters[:2]] == [1, 0]
    assert [(each.kind, each.what) for each in around.recorder.markers] == [("storm", "40 connections break")]


@pytest.mark.parametrize(
    ("connected", "acted"), [((), (0, 0)), ((True,), (1, 1)), ((True, True, False), (2, 2))], ids=str
)
@pytest.mark.parametrize("stage", [Storm(within=0.001), Revoke(select=1.0, rate=1000.0, deadline=30.0)])
async def test_a_stage_tells_to_how_many_devices_it_was_done(
    stage: Stage, connected: tuple[bool, ...], acted: tuple[int, int]
) -> None:
    """Whoever orders one where nobody is connected had been told that it was done."""
    around = scene()
    around.told_devices = cast("Any", [Meter(f"meter-{number}") for number in range(len(connected))])
    for meter, is_connected in zip(cast("list[Meter]", around.told_devices), connected, strict=True):
        meter.is_connected = is_connected
    cast("Any", around.target.operator).revoke = _puts_out(around)
    assert await stages.play(around, 1, stage) == stages.Acted(*acted)


def _puts_out(around: Scene) -> Callable[..., Any]:
    async def revoke(*, device: str, reason: object) -> None:
        del reason
        next(each for each in cast("list[Meter]", around.told_devices) if each.name == device).put_out()

    return revoke


async def test_a_device_that_has_left_meanwhile_or_was_not_revoked_is_not_one_to_which_it_was_done() -> None:
    around, meters = scene(), [Meter(f"meter-{number}") for number in range(3)]
    around.told_devices = cast("Any", list(meters))
    chosen = around.connected()
    around.choose = lambda *_: chosen  # type: ignore[method-assign]
    meters[0].is_connected = False
    assert await stages.play(around, 1, Storm(within=0.001)) == stages.Acted(3, 2)
    cast("Any", around.target.operator).revokes = unavailable
    assert await stages.play(around, 2, Revoke(select=1.0, rate=1000.0)) == stages.Acted(3, 0)
    around.stop()
    assert await stages.play(around, 3, Storm(within=0.001)) == stages.Acted(), "the run is ending"


async def test_a_pause_says_how_much_of_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    around, done, now = scene(), [], [100.0]

    async def sleep(seconds: float) -> None:
        done.append(around.done)
        now[0] += seconds

    monkeypatch.setattr(stages, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(around, "sleep", sleep)
    await stages.play(around, 1, Hold(seconds=4.0))
    assert now[0] == pytest.approx(104.0)
    assert done[:20] == pytest.approx([number / 20 for number in range(20)])


async def test_who_ends_the_run_during_a_pause_does_not_wait_for_its_end() -> None:
    around, began = scene(), time.monotonic()
    asyncio.get_running_loop().call_later(0.01, around.stop)
    await stages.play(around, 1, Hold(seconds=120.0))
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (Ramp(to=0.5, rate=20.0), "ramp to 50%, 20/s"),
        (Hold(seconds=10.0), "hold 10 s"),
        (Storm(drop=0.3), "storm 30%"),
        (Revoke(select=0.05, rate=10.0), "revoke 5%, 10/s"),
        (Revoke(select=0.001, rate=10.0), "revoke 0.1%, 10/s"),
        (Suspend(select=0.05, rate=10.0), "suspend 5%, 10/s"),
        (Renew(select=0.1, rate=5.0), "renew 10%, 5/s"),
        (Command(select=1.0, rate=100.0), "command 100%, 100/s"),
        (Command(select=1.0, rate=100.0, asleep=True), "command 100%, 100/s, asleep"),
        (Restart(), "broker restart"),
        (Trouble(seconds=2.0, reset=True), "trouble reset, 2 s"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_stage_in_a_few_words(stage: Stage, words: str) -> None:
    assert stages.label_of(stage) == words


async def revoked(meter: Meter, revokes: Callable[[], object], deadline: float) -> Scene:
    """Return the scene in which *meter* was revoked, which the broker hears of as *revokes* says."""
    around = scene()
    around.target.operator.revokes = revokes  # type: ignore[union-attr]
    around.told_devices = [cast("Any", meter)]
    await stages.play(around, 1, Revoke(select=1.0, rate=100.0, deadline=deadline))
    return around


async def test_a_revoked_device_that_came_back_before_its_revocation_was_confirmed_has_the_deadline_to_be_out() -> None:
    """It was cut off without a word, and admitted again a moment before: that attempt was no false admission yet."""
    meter = Meter()

    def cuts_twice() -> None:
        meter.connection.closed.set_result(CUT_OFF)
        second = meter.linked()

        def ends() -> None:
            meter.is_connected = False
            meter.machine.ended(CUT_OFF)
            second.set_result(CUT_OFF)

        asyncio.get_running_loop().call_later(0.05, ends)

    around = await revoked(meter, cuts_twice, deadline=30.0)
    assert around.fleet.falsely_admitted == set()
    assert around.recorder.counts[Count.STAYED_IN] == 0
    assert around.recorder.counts[Count.REVOKED] == 1
    measured = (Duration.REVOKED_CLOSED, Duration.REVOKED_REFUSED, Duration.SUSPENDED_CLOSED)
    assert [around.recorder.value(each, "count", 0.0) for each in measured] == [1.0, 1.0, 0.0]
    assert around.recorder.response[Duration.REVOKED_CLOSED].highest < 60_000
    assert (told(around), around.fleet.condemned["meter-1"] < time.monotonic()) == (["meter-1"], True)
    assert [(each.kind, each.what) for each in around.recorder.markers] == [("revoke", "meter-1")]


async def test_from_the_call_on_a_refusal_is_right_and_if_the_service_cannot_be_asked_nothing_is_judged() -> None:
    """The broker may hear of the revocation before the operator has an answer."""
    meter, around = Meter(), scene()
    known: list[bool] = []

    def unavailable_now() -> None:
        known.append(meter.name in around.fleet.condemned)
        unavailable()

    cast("Any", around.target.operator).revokes = unavailable_now
    around.told_devices = [cast("Any", meter)]
    await stages.play(around, 1, Revoke(select=1.0, rate=100.0))
    counts = around.recorder.counts
    assert (known, counts[Count.FAILED_REVOCATIONS], counts[Count.REVOKED], told(around)) == ([True], 1, 0, [])


async def test_a_device_that_has_lost_its_connection_before_its_turn_is_not_revoked() -> None:
    meter = Meter()
    around = scene()
    around.told_devices = [cast("Any", meter)]
    chosen = around.connected()
    meter.is_connected = False
    around.choose = lambda *_: chosen  # type: ignore[method-assign]
    await stages.play(around, 1, Revoke(select=1.0, rate=100.0))
    assert (told(around), around.fleet.condemned, around.recorder.counts[Count.REVOKED]) == ([], {}, 0)


async def test_a_connection_that_the_scenario_broke_is_no_credit_to_the_broker() -> None:
    meter = Meter()

    def breaks() -> None:
        meter.is_connected = False
        meter.connection.closed.set_result(Closure(Layer.TCP, BROKEN, "", 0.0))

    around = await revoked(meter, breaks, deadline=30.0)
    assert around.recorder.value(Duration.REVOKED_CLOSED, "count", 0.0) == 0.0
    assert (around.recorder.counts[Count.REVOKED], around.fleet.refused_by_reason.total()) == (1, 0)


async def test_a_device_whose_network_failed_first_and_that_came_back_in_between_has_the_deadline_as_well() -> None:
    """It was admitted before its revocation was confirmed, and connected nobody looked at it again."""
    meter = Meter()

    def breaks() -> None:
        meter.connection.closed.set_result(Closure(Layer.TCP, BROKEN, "", 0.0))
        meter.linked()

    around = await revoked(meter, breaks, deadline=0.02)
    assert (around.recorder.counts[Count.STAYED_IN], around.fleet.falsely_admitted) == (1, {"meter-1"})
    assert [each.kind for each in around.recorder.markers] == ["revoke", "stayed in"]


async def test_after_the_last_stage_nobody_who_is_revoked_gets_in() -> None:
    """Also one that no longer tries by itself: the broker may have forgotten since."""
    around, meters = scene(), [Meter(f"meter-{number}") for number in range(6)]
    for meter in meters:
        meter.is_connected = False
        meter.machine.state = State.REVOKED
        around.fleet.devices[meter.name] = cast("Any", meter)
    meters[1].machine.state = State.ENROLLED
    meters[4].machine.state = State.CONNECTING  # What comes of that is seen when it is over.
    around.fleet.condemned.update({f"meter-{number}": 1.0 for number in (0, 1, 3, 4, 5)} | {"meter-2": float("inf")})
    around.fleet.falsely_admitted.add("meter-5")  # What is known of it already.
    tried: list[str] = []

    def lets_in(meter: Meter) -> Any:
        async def connect() -> None:
            tried.append(meter.name)
            meter.machine.happened(Event.DIALLED)
            if meter.name == "meter-0":
                raise NotAdmitted(TURNED_AWAY)
            if meter.name == "meter-3":
                raise NotAdmitted(unasked_session(0.0))

        return connect

    for meter in meters:
        meter.connect = lets_in(meter)  # type: ignore[method-assign]
    await stages.stay_out(around)
    assert sorted(tried) == ["meter-0", "meter-1", "meter-3"]
    assert around.fleet.falsely_admitted == {"meter-1", "meter-3", "meter-5"}
    assert around.recorder.counts[Count.READMITTED] == 2
    assert sorted(each.what[:7] for each in around.recorder.markers) == ["meter-1", "meter-3"]
    assert [meter.closed for meter in meters] == [False, True, False, True, False, False]


async def test_what_is_not_answered_and_what_is_refused_are_both_commands_that_are_not_done() -> None:
    async def commands(*_: object, **__: object) -> object:
        return SimpleNamespace(answered={}, sent={}, missing=["meter-1"], refused={"meter-1": "no"})

    around = Watched(WHOLE, 1)
    around.backend = cast("Any", SimpleNamespace(distance=lambda: NEARBY, command=commands))
    await stages.play(around, 1, Command(rate=10.0))
    await around.action(around.meters[0], 0.0)
    assert not around.settled
    assert around.recorder.counts[Count.UNANSWERED_COMMANDS] == 2


async def test_a_command_for_a_sleeper_waits_until_it_sleeps_and_has_no_latency() -> None:
    async def commands(*_: object, **__: object) -> object:
        return SimpleNamespace(answered={"meter-0": 1.0}, sent={"meter-0": 0.0}, missing=[], refused={})

    around = Watched(WHOLE, 0)
    around.backend = cast("Any", SimpleNamespace(distance=lambda: NEARBY, command=commands))
    await stages.play(around, 1, Command(rate=10.0, asleep=True, deadline=7.0))
    meter = Meter()
    meter.is_asleep = True  # type: ignore[attr-defined]
    await around.action(meter, 0.0)
    ((sleeps, patience),) = around.settled
    assert (sleeps(), patience) == (True, 7.0)
    assert Duration.COMMAND not in around.recorder.response


@pytest.mark.parametrize(("groups", "told"), [((), "a, b"), (("b", "probe"), "b, probe")])
async def test_trouble_is_that_of_the_groups_named_or_of_all_that_are_no_probe_and_ends(
    groups: tuple[str, ...], told: str
) -> None:
    around = Watched(WHOLE)
    named = [SimpleNamespace(name=name, probe=name == "probe") for name in ("a", "b", "probe")]
    around.scenario = cast("Any", SimpleNamespace(groups=named))
    seen: list[tuple[str, bool]] = []

    class Noted:
        def __init__(self, name: str) -> None:
            self._name = name

        def set(self, state: Any) -> None:
            seen.append((self._name, state.slice_bytes == 5))

    around.proxies = cast("Any", {name: Noted(name) for name in ("a", "b", "probe")})
    await stages.play(around, 1, Trouble(seconds=0.001, slice_bytes=5, groups=list(groups)))
    expected = told.split(", ")
    assert seen == [(name, True) for name in expected] + [(name, False) for name in expected]
    (mark,) = around.recorder.markers
    assert (mark.kind, mark.what) == ("trouble", f"{told}: in pieces of 5 B")
