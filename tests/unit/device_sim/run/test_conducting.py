"""What the conductor of a run does with an order and with a broker that restarts, and what it is told by a worker."""

from __future__ import annotations

import asyncio
import signal
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_sim.fleet.backend import Backend
from device_sim.fleet.tally import Sent
from device_sim.latency import Latency
from device_sim.link.closure import Closure, Layer
from device_sim.link.distance import NEARBY
from device_sim.run import dialogue, runner
from device_sim.run.health import HealthSample
from device_sim.run.manner import Manner, Share
from device_sim.run.order import InvalidOrder, Order, Pause, Rate, Status, Stop
from device_sim.run.part import PartOutcome, PartState
from device_sim.run.recorder import Recorder, Sample, StageSpan
from device_sim.run.runner import Process, Run
from device_sim.run.stages import Acted
from device_sim.run.workers import RemotePart
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.model import build

HEALTH = HealthSample(1.0, 3.0, 0.2, 60, 20_000, 40, 28_232, 80.0)
STAGES = [{"ramp": {"rate": 1}}, {"restart": {}}, {"hold": "3s"}]


class Told:
    """A part that keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def change(self, rate: float | None, paused: bool | None) -> None:
        self.heard.append((rate, paused))

    def stop(self) -> None:
        self.heard.append("stop")

    async def play(self, number: int, stage: Any) -> Acted:
        self.heard.append((number, stage.kind))
        return Acted(1, 1)


def conducting() -> tuple[Run, list[Told]]:
    """Return a run in its second second, and its two parts."""
    run, parts = Run.__new__(Run), [Told(), Told()]
    run.scenario = build({"name": "x", "devices": 5, "stages": STAGES}, "test")
    run.target = cast("Any", SimpleNamespace(broker_name="there"))
    run.recorder, run.started, run.stopped_by = Recorder(), time.monotonic() - 2.0, None
    run._extra, run._rate, run._paused, run.backends = 0, 1.0, False, []
    run.manner = Manner(workers=2)
    run.processes = [Process(f"worker {number}", cast("Any", part)) for number, part in enumerate(parts, 1)]
    run.processes.append(Process("conductor", None))
    run.recorder.stages.append(StageSpan("ramp", "ramp to 100%, 1/s", 0.0))
    run.recorder.samples.append(Sample(2.0, 4, 5, 30, 29, {}, {}, HEALTH))
    return run, parts


async def test_each_part_does_as_it_is_told_and_the_answer_says_what_is_so_now() -> None:
    run, parts = conducting()
    status = "x on there: 2 s, ramp to 100%, 1/s: connected 4 of 5, published 30, received 29"
    assert await run.obey(Status()) == status
    orders: list[tuple[Order, str, str]] = [
        (Rate(2.0), "publishing 2 times as often as the scenario says", ", rate x2"),
        (Pause(True), "paused: connected, and publishing nothing", ", paused, rate x2"),
        (Rate(1.0), "publishing as often as the scenario says", ", paused"),
        (Pause(False), "publishing again", ""),
    ]
    for order, answer, state in orders:
        assert await run.obey(order) == answer
        assert await run.obey(Status()) == status + state
    assert [part.heard for part in parts] == [[(2.0, None), (None, True), (1.0, None), (None, False)]] * 2
    marked = [(marker.kind, marker.what) for marker in run.recorder.markers]
    assert marked == [("ctl", "rate x2"), ("ctl", "pause"), ("ctl", "rate x1"), ("ctl", "resume")]
    assert all(2.0 <= marker.at < 60.0 for marker in run.recorder.markers), "since the run began"


async def test_a_run_that_is_told_to_stop_stops_in_each_part_and_plays_no_further_stage() -> None:
    run, parts = conducting()
    assert await run.obey(Stop()) == "ending: it drains, and reports"
    assert run.stopped_by is signal.SIGINT
    await run._play_stages()
    assert [part.heard for part in parts] == [["stop"]] * 2
    assert len(run.recorder.stages) == 1


async def test_a_run_that_has_not_begun_takes_no_order() -> None:
    run, _ = conducting()
    run.processes = []
    for order in (Status(), Stop(), Rate(2.0)):
        with pytest.raises(InvalidOrder, match="has not begun: try again in a moment"):
            await run.obey(order)


async def test_while_the_broker_restarts_no_receiver_is_there() -> None:
    """One that was cut off may correctly get again what it had not acknowledged: that would count as duplicated."""
    run, parts = conducting()
    done: list[str] = []

    def receiver(name: str) -> Any:
        async def close() -> None:
            done.append(f"{name} leaves")

        async def come_back() -> None:
            done.append(f"{name} returns")

        return SimpleNamespace(close=close, come_back=come_back)

    async def restart() -> None:
        done.append("restarted")

    run.backends = [receiver("one"), receiver("two")]
    run.target = cast("Any", SimpleNamespace(restart=restart))
    run.recorder.stages.clear()
    await run._play_stages()
    assert done == ["one leaves", "two leaves", "restarted", "one returns", "two returns"]
    assert [(marker.kind, marker.what) for marker in run.recorder.markers] == [("restart", "broker restarts")]
    assert [part.heard for part in parts] == [[(1, "ramp"), (2, "restart"), (3, "hold")]] * 2
    ends = [(span.kind, span.end is not None and 2.0 <= span.start <= span.end) for span in run.recorder.stages]
    assert ends == [("ramp", True), ("restart", True), ("hold", True)]
    assert run.number == 3


async def test_of_two_states_within_a_second_no_measurement_is_dropped_and_none_is_counted_twice() -> None:
    def state(published: int, **windows: list[float]) -> PartState:
        return PartState(3, 4, published, 1, 2, 0.5, {"tls unknown_ca": 1},
                         {Duration(name): values for name, values in windows.items()}, HEALTH)  # fmt: skip

    said: list[dialogue.Order] = []
    child = SimpleNamespace(say=lambda line: said.append(dialogue.order(line)))
    part = RemotePart(cast("Any", child), Share(0, 2))
    with pytest.raises(RuntimeError, match="comes first"):
        part.state()
    part._take(state(10, puback=[1.0]))
    part._take(state(20, puback=[2.0], tls=[9.0]))
    assert part.state() == state(20, puback=[1.0, 2.0], tls=[9.0])
    assert part.state() == state(20), "each is told once"
    part._take(state(30, puback=[3.0]))
    assert part.state() == state(30, puback=[3.0])
    part.change(2.0, None)
    part.stop()
    assert said == [dialogue.Change(rate=2.0, paused=None), dialogue.Stop()]


async def test_a_worker_that_ends_before_its_outcome_is_an_error() -> None:
    class Ends:
        async def lines(self) -> Any:
            yield dialogue.line(dialogue.Ready())

        async def watch(self) -> None:
            raise RuntimeError("ended with status 1")

    part = RemotePart(cast("Any", Ends()), Share(0, 2))
    with pytest.raises(RuntimeError, match="ended with status 1"):
        await part.listen()
    assert part._ready.is_set()


async def test_each_receiver_lost_is_counted_and_the_first_of_them_are_told() -> None:
    run, _ = conducting()

    async def stay(lost: Any) -> None:
        for number in range(25):
            lost(Closure(Layer.TCP, f"reset {number}", "", 0.0))

    await run._stay(cast("Any", SimpleNamespace(name="backend", stay=stay)))
    assert run.recorder.counts[Count.LOST_RECEIVERS] == 25
    told = [marker.what for marker in run.recorder.markers]
    assert told == [f"backend: tcp reset {n}; what comes until it is back counts as lost" for n in range(20)]
    assert all(2.0 <= marker.at < 60.0 for marker in run.recorder.markers)


def returns(backend: Backend) -> None:
    """Have *backend* connected and subscribed."""
    closed = asyncio.get_running_loop().create_future()
    backend.connection = backend._hears = cast("Any", SimpleNamespace(closed=closed))
    backend._arrived.set()


def draining(sent: Sent) -> tuple[Run, Backend, list[PartOutcome]]:
    """Return a run whose one device has *sent* something, its receiver, and what the device's part says."""
    run, _ = conducting()
    run._distance, run._read = NEARBY, False
    backend = Backend("backend", ["meter-1"])
    returns(backend)
    run.backends = [backend]
    nothing = Latency().encoded()
    return run, backend, [PartOutcome({"meter-1": sent}, {}, {}, {}, nothing, nothing, 0, {}, {}, 0.0)]


async def test_what_is_acknowledged_is_waited_for_also_if_something_else_of_its_device_is_not() -> None:
    run, backend, outcomes = draining(Sent(3, frozenset({2})))
    check = backend.checks["meter-1"]

    def arrives(number: int) -> None:
        check.record(number)
        backend._arrived.set()

    loop = asyncio.get_running_loop()
    loop.call_later(0.05, arrives, 1)
    loop.call_later(0.1, arrives, 3)
    await run._drain(outcomes)
    assert (check.received, run._read) == (2, True)


@pytest.mark.parametrize("silent", [True, False])
async def test_what_is_lost_is_proven_if_the_receivers_have_read_all(
    monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    async def is_silent(_backend: Backend) -> bool:
        return silent

    monkeypatch.setattr(runner, "_DRAIN_DEADLINE", 0.05)
    monkeypatch.setattr(Backend, "silent", is_silent)
    run, _, outcomes = draining(Sent(3, frozenset({2})))
    await run._drain(outcomes)
    assert run._read is silent
    run.names = ["meter-1"]
    run._absorb(outcomes, [])
    assert run.recorder.counts[Count.LOST] == 2
    assert run._proven == ({Count.LOST: 2} if silent else {})


@pytest.mark.parametrize("there", ["again", "without its subscription", "no longer"])
async def test_a_receiver_that_is_not_back_at_the_end_is_unreached(monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    """Where every device sleeps or is revoked, nothing else tells that the broker is gone."""
    run, backend, outcomes = draining(Sent(0, frozenset()))
    run.names = ["meter-1"]
    if there == "without its subscription":
        backend._hears = None
    else:
        assert backend.connection is not None
        backend.connection.closed.set_result(Closure(Layer.TCP, "reset", "", 0.0))
    if there == "again":
        asyncio.get_running_loop().call_later(0.05, returns, backend)
    else:
        monkeypatch.setattr(runner, "_DRAIN_DEADLINE", 0.05)
    await run._drain(outcomes)
    run._absorb(outcomes, [])
    assert run.recorder.counts[Count.UNREACHED] == (there != "again")
