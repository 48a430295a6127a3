"""Run a scenario against a target: stages in sequence, with traffic throughout, and everything counted at the end.

Theory
------
The devices are divided into parts (`part`): one in this process, or one in each of several workers (`workers`). This
module, the conductor, runs the backends, makes all parts begin each stage together, and takes a sample each second.
When the last stage is over, or the user has interrupted once, publishing stops and what is in flight may arrive: then
what the parts report as sent is compared with what the backends received.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from device_sim.credentials.fleet_directory import FleetUnusable
from device_sim.fleet.backend import EVERYTHING, Backend
from device_sim.fleet.tally import has_all
from device_sim.interruption import Interruption
from device_sim.latency import Latency
from device_sim.link.closure import Closure
from device_sim.link.distance import NEARBY
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.tls_dial import NotAdmitted
from device_sim.remedies import with_remedy
from device_sim.run.health import GeneratorWatch, HealthSample, worst
from device_sim.run.manner import ONE_PROCESS, Manner, Share, commander_of, receivers_of
from device_sim.run.order import Extra, InvalidOrder, Order, Pause, Rate, Status, Stop
from device_sim.run.own_topics import own_topics
from device_sim.run.part import Part, PartOutcome, PartState, Played, Strays
from device_sim.run.reckoning import Reckoning, stale
from device_sim.run.recorder import LOST_RECEIVER, SAMPLE_SECONDS, Marker, Recorder, StageSpan
from device_sim.run.result import ProcessHealth, RunResult
from device_sim.run.stages import Acted, label_of
from device_sim.run.target import Impossible, NoReceiver, Target
from device_sim.run.workers import workers
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.model import Scenario
from device_sim.scenario.stages import Stage
from device_sim.telemetry.payload import Telemetry
from provisioning.program.host_and_port import with_port

_DRAIN_DEADLINE = 10.0
_DELIVERY = 2
"""Round trips from a device to a receiver, at QoS 2."""
_MOST_LOSSES = 20
_CONDUCTOR = "conductor"
_DRAIN = "drain"


@dataclass(slots=True)
class Process:
    """One process of the generator: its last state, and every second of its health."""

    name: str
    part: Played | None
    state: PartState | None = None
    health: list[HealthSample] = field(default_factory=list)


def _unheard(line: str) -> None:
    """Say *line* to nobody."""


class Run:
    """One run of *scenario* against *target*, in the given *manner*; *said* is told what is done besides."""

    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        manner: Manner = ONE_PROCESS,
        said: Callable[[str], None] = _unheard,
    ) -> None:
        target.check(scenario, manner)
        self.scenario = scenario
        self.target = target
        self.manner = manner
        self._said = said
        self.recorder = Recorder()
        self.names = target.fleet.devices[: scenario.devices]
        self._own = own_topics(scenario, target.fleet.entries, self.names)
        self.started = time.monotonic()
        self.wall = datetime.now(UTC)
        self.backends: list[Backend] = []
        self.processes: list[Process] = []
        self.number = 0
        self.stopped_by: signal.Signals | None = None
        self._extra = 0
        self._rate, self._paused = 1.0, False
        self._watch = GeneratorWatch()
        self._proven: Counter[Count] = Counter()
        self._read = False
        """Whether the receivers have read all that the broker has sent them."""
        self._distance = NEARBY
        """The worst that a receiver's connection had: no trouble of the scenario is in its way."""

    async def play(
        self, interruption: Interruption, recorded: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    ) -> RunResult:
        """Play all stages, drain, and judge. The first interruption ends the stages, not the report.

        From when it begins, with the backend and all processes there, to when it has drained it is *recorded*.
        """
        self.wall = datetime.now(UTC)
        async with AsyncExitStack() as stack:
            stack.enter_context(self.target.fleet.changing())
            if self.target.fleet.devices[: self.scenario.devices] != self.names:
                raise FleetUnusable(f"{self.target.fleet.path} was changed meanwhile: run the same command again")
            keep_alive = await stack.enter_async_context(KeepAlive())
            await self._connect_backends(stack, keep_alive)
            await self._open_parts(stack)
            await stack.enter_async_context(recorded())
            self.started = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                await asyncio.gather(*(part.begin(self.started) for part in self._parts))
                sampling = tasks.create_task(self._sample(), name="sample")
                stopping = tasks.create_task(self._until_interrupted(interruption), name="interruption")
                staying = [tasks.create_task(self._stay(backend), name=backend.name) for backend in self.backends]
                await self._play_stages()
                span = self._begin(_DRAIN, _DRAIN)
                outcomes = await asyncio.gather(*(part.finish() for part in self._parts))
                await self._drain(outcomes)
                strays = await asyncio.gather(*(part.strays() for part in self._parts))
                self._end(span)
                interruption.too_late()
                for task in (sampling, stopping, *staying):
                    task.cancel()
            self._take_sample()
            reckoning = self._absorb(outcomes, strays)
        result = RunResult(
            self.scenario,
            self.wall,
            time.monotonic() - self.started,
            self.recorder,
            self._process_health(outcomes),
            dict(sum((Counter(outcome.refused) for outcome in outcomes), Counter())),
            {name: closure for outcome in outcomes for name, closure in outcome.false_refusals.items()},
            self.stopped_by,
            self.manner,
            self.target.broker_name,
            self._distance,
            self._proven,
        )
        result.stood = reckoning.stood(self._watch.lag)
        result.judge(sum(outcome.skipped for outcome in outcomes), self.recorder.counts[Count.PUBLISHED])
        return result

    @property
    def _parts(self) -> list[Played]:
        return [process.part for process in self.processes if process.part is not None]

    async def _open_parts(self, stack: AsyncExitStack) -> None:
        if self.manner.workers == 1:
            part = Part(self.scenario, self.target, self.manner, Share(), self.backends[0])
            self.processes = [Process("generator", await stack.enter_async_context(part))]
            return
        parts = await stack.enter_async_context(workers(self.scenario, self.target, self.manner, self._said))
        self.processes = [Process(f"worker {part.share.number + 1}", part) for part in parts]
        self.processes.append(Process(_CONDUCTOR, None))
        await stack.enter_async_context(self._watch)

    async def _connect_backends(self, stack: AsyncExitStack, keep_alive: KeepAlive) -> None:
        service = self.target.fleet.client_id(self.target.fleet.service)
        names = receivers_of(service, self.scenario.receivers)
        count = self.manner.workers
        commanders = [commander_of(service, Share(number, count)) for number in range(count)]
        probes = frozenset(name for name in self.names if self.scenario.group_of(name).probe)
        restarts = any(stage.kind == "restart" for stage in self.scenario.stages)

        def arrived(device: str, telemetry: Telemetry, now: float) -> None:
            metric = Duration.PROBE_END_TO_END if device in probes else Duration.END_TO_END
            late = (telemetry.sent_ns - telemetry.due_ns) / 1e9
            self.recorder.record(metric, max(now - telemetry.sent_ns / 1e9, 0.0), late)

        for name in names:
            siblings = [sibling for sibling in (*names, *commanders) if sibling != name]
            backend = Backend(
                name, self.names, mark=self.manner.mark, bystanders=self.target.fleet.entries, siblings=siblings,
                arrived=arrived, driver=self.manner.driver, lasting=restarts, own=self._own.topics,
            )  # fmt: skip
            self.backends.append(backend)
            stack.push_async_callback(backend.close)
        fleet = self.target.fleet
        context = fleet.credential(fleet.service).context(fleet.anchors)
        broker = self.target.broker
        try:
            for backend in self.backends:
                filters = (EVERYTHING, *self._own.filters)
                await backend.connect(broker, context, keep_alive, filters, qos=self.scenario.qos)
        except NotAdmitted as error:
            why = f"{service} is not let in at {with_port(broker.host, broker.port)}: {error}"
            raise NoReceiver(with_remedy(why, error.closure)) from error

    # ---- the stages

    async def _play_stages(self) -> None:
        for number, stage in enumerate(self.scenario.stages, 1):
            if self.stopped_by is not None:
                return
            self.number = number
            span = self._begin(stage.kind, label_of(stage))
            if stage.kind == "restart" and self.target.restart is not None:
                self.recorder.markers.append(Marker(time.monotonic() - self.started, "restart", "broker restarts"))
                await self._restart(self.target.restart)
            await self.everywhere(number, stage)
            self._end(span)

    async def _stay(self, backend: Backend) -> None:
        def lost(closure: Closure) -> None:
            self.recorder.counts[Count.LOST_RECEIVERS] += 1
            if self.recorder.counts[Count.LOST_RECEIVERS] <= _MOST_LOSSES:
                at, what = time.monotonic() - self.started, f"{backend.name}: {closure}"
                what += "; what comes until it is back counts as lost"
                self.recorder.markers.append(Marker(at, LOST_RECEIVER, what))

        await backend.stay(lost)

    async def _restart(self, restart: Callable[[], Awaitable[None]]) -> None:
        # They leave first: a device that is cut off may correctly get again what it had not acknowledged, and that
        # would count as duplicated.
        for backend in self.backends:
            await backend.close()
        await restart()
        for backend in self.backends:
            await backend.come_back()

    async def everywhere(self, number: int, stage: Stage) -> Acted:
        """Let all parts play *stage*; return what came of it."""
        async with asyncio.TaskGroup() as together:
            playing = [together.create_task(part.play(number, stage), name=f"stage {number}") for part in self._parts]
        return sum((each.result() for each in playing), Acted())

    def stop(self, by: signal.Signals) -> None:
        """End the stages early; what was observed until then is reported."""
        self.stopped_by = by
        for part in self._parts:
            part.stop()

    async def obey(self, order: Order) -> str:
        """Carry out the user's order during the run (`control`); return the answer."""
        if not self.processes:
            raise InvalidOrder("the run has not begun: try again in a moment")
        if self._ends and not isinstance(order, Status):
            if isinstance(order, Stop):
                return "it is ending already: it drains, and reports"
            raise InvalidOrder("the run is ending: it drains, and reports")
        match order:
            case Extra(stage):
                return await self._play_extra(stage)
            case Rate(factor):
                self._change(factor, None)
                often = "as often" if factor == 1 else f"{factor:g} times as often"
                return f"publishing {often} as the scenario says"
            case Pause(paused):
                self._change(None, paused)
                return "paused: connected, and publishing nothing" if paused else "publishing again"
            case Stop():
                self.stop(signal.SIGINT)
                return "ending: it drains, and reports"
            case Status():
                return self._status()

    async def _play_extra(self, stage: Stage) -> str:
        try:
            self.target.check_stage(stage)
        except Impossible as error:
            raise InvalidOrder(str(error)) from error
        self._extra += 1
        started, label = time.monotonic(), label_of(stage)
        self.recorder.markers.append(Marker(started - self.started, "ctl", label))
        # Its number is beyond the scenario's, so that it draws different devices.
        acted = await self.everywhere(len(self.scenario.stages) + self._extra, stage)
        if not acted.chosen:
            raise InvalidOrder(f"{label}: nothing was done, for no device is connected")
        if not acted.done:
            raise InvalidOrder(
                f"{label}: done to none of {acted.chosen} devices: they have left meanwhile, or the service did not "
                "do it, as the report says"
            )
        return f"{label}: done to {acted.done} of {acted.chosen} devices in {time.monotonic() - started:.1f} s"

    def _change(self, rate: float | None, paused: bool | None) -> None:
        what = f"rate x{rate:g}" if rate is not None else "pause" if paused else "resume"
        self.recorder.markers.append(Marker(time.monotonic() - self.started, "ctl", what))
        self._rate = self._rate if rate is None else rate
        self._paused = self._paused if paused is None else paused
        for part in self._parts:
            part.change(rate, paused)

    @property
    def _ends(self) -> bool:
        stages = self.recorder.stages
        return self.stopped_by is not None or (bool(stages) and stages[-1].kind == _DRAIN)

    def _status(self) -> str:
        samples, stages = self.recorder.samples, self.recorder.stages
        which = f"{self.scenario.name} on {self.target.broker_name}"
        if not samples or not stages:
            return f"{which}: it has just begun"
        last = samples[-1]
        told = ", paused" if self._paused else ""
        told += f", rate x{self._rate:g}" if self._rate != 1 else ""
        return (
            f"{which}: {last.at:.0f} s, {stages[-1].label}: connected {last.connected} of {self.scenario.devices}, "
            f"published {last.published}, received {last.received}{told}"
        )

    def _begin(self, kind: str, label: str) -> StageSpan:
        span = StageSpan(kind, label, time.monotonic() - self.started)
        self.recorder.stages.append(span)
        return span

    def _end(self, span: StageSpan) -> None:
        span.end = time.monotonic() - self.started

    async def _until_interrupted(self, interruption: Interruption) -> None:
        self.stop(await interruption.wait())

    # ---- the view during the run

    async def _sample(self) -> None:
        due = self.started
        while True:
            due += SAMPLE_SECONDS
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._take_sample()

    def _take_sample(self) -> None:
        for backend in self.backends:
            self._distance = self._distance.or_worse(backend.distance())
        states = []
        for process in self.processes:
            if process.part is None:
                process.health.append(self._watch.sample(len(self.backends)))
                continue
            process.state = process.part.state()
            process.health.append(process.state.health)
            states.append(process.state)
        self.recorder.sample(
            time.monotonic() - self.started,
            sum(state.connected for state in states),
            sum(state.told for state in states),
            sum(state.published for state in states),
            sum(backend.received for backend in self.backends),
            sum((Counter(state.refused) for state in states), Counter()),
            worst([process.health[-1] for process in self.processes]),
            [state.windows for state in states],
        )

    # ---- the end

    async def _drain(self, outcomes: list[PartOutcome]) -> None:
        # What is still unacknowledged was cut off with its device, so delivery was never promised; or the broker has
        # had its time already (`Fleet.quiet`).
        sent = {name: what for outcome in outcomes for name, what in outcome.sent.items()}

        def complete(backend: Backend) -> bool:
            return not stale([backend], outcomes) and all(
                has_all(what, backend.checks[name]) for name, what in sent.items()
            )

        told = any(outcome.present for outcome in outcomes)
        try:
            async with asyncio.timeout(_DRAIN_DEADLINE + self._distance.longest(_DELIVERY)):
                for backend in self.backends:
                    await backend.back()
                    if told:
                        await backend.look_again()
                    await backend.until(partial(complete, backend))
            self._read = True
        except TimeoutError:  # What has not arrived by now is lost, and counted so.
            self._read = all(await asyncio.gather(*(backend.silent() for backend in self.backends)))

    def _absorb(self, outcomes: list[PartOutcome], strays: list[Strays]) -> Reckoning:
        """Count what all have seen, and return the reckoning."""
        reckoning = Reckoning(self.scenario, self.manner, self.recorder, self.backends, outcomes)
        reckoning.count(strays, self.started)
        self._proven = reckoning.proven(read=self._read)
        return reckoning

    def _process_health(self, outcomes: list[PartOutcome]) -> list[ProcessHealth]:
        found = []
        parts = [process for process in self.processes if process.part is not None]
        for process, outcome in zip(parts, outcomes, strict=True):
            lag, standstill = Latency(), Latency()
            lag.add(outcome.lag)
            standstill.add(outcome.standstill)
            found.append(
                ProcessHealth(
                    process.name,
                    process.health,
                    lag,
                    len(outcome.sent),
                    outcome.memory_before_mb,
                    standstill,
                    outcome.paused,
                )
            )
        found += [
            ProcessHealth(process.name, process.health, self._watch.lag, standstill=self._watch.standstill)
            for process in self.processes
            if process.part is None
        ]
        return found
