"""Run a scenario against a target: stages in sequence, traffic all the while, everything counted at the end.

Theory
------
The fleet publishes from the first arrival to the end, so that every stage happens under traffic. A stage lets things
happen at the times that its pacer says (`stages`); beside it one task samples the state each second. When the last
stage is over, or the user has interrupted once, nothing more is published, and what is under way may arrive: then what
was sent is held against what was received.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from device_sim.backend import Backend
from device_sim.fleet import Fleet, Member
from device_sim.fleet_directory import FleetUnusable
from device_sim.interruption import Interruption
from device_sim.keep_alive import KeepAlive
from device_sim.live_device import Counters, Surroundings
from device_sim.run.health import GeneratorWatch
from device_sim.run.recorder import Recorder
from device_sim.run.result import RunResult
from device_sim.run.stages import Scene, play
from device_sim.run.target import Target
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.model import Scenario
from device_sim.tally import account, is_complete, total
from device_sim.telemetry import Telemetry
from provisioning.pki.tls import client_context

_DRAIN_DEADLINE = 10.0
_SAMPLE_SECONDS = 1.0


class Run:
    """One run of *scenario* against *target*."""

    def __init__(self, scenario: Scenario, target: Target) -> None:
        target.check(scenario)
        self.scenario = scenario
        self.target = target
        self.recorder = Recorder()
        self.names = target.fleet.devices[: scenario.devices]
        self.started = time.monotonic()
        self.fleet: Fleet | None = None
        self.backends: list[Backend] = []
        self.scene: Scene | None = None
        self._watch = GeneratorWatch(len(target.sources))

    async def play(self, interruption: Interruption) -> RunResult:
        """Play all stages, drain, and judge. The first interruption ends the stages, not the report."""
        wall = datetime.now(UTC)
        surroundings = Surroundings(
            self.target.broker,
            client_context(self.target.fleet.anchors),
            KeepAlive(),
            Counters(),
            self.scenario.seed,
            record=self.recorder.record,
            sources=self.target.sources,
        )
        async with AsyncExitStack() as stack:
            stack.enter_context(self.target.fleet.changing())
            await stack.enter_async_context(surroundings.keep_alive)
            reconnect = await self._connect_backends(stack, surroundings)
            fleet = self.fleet = await stack.enter_async_context(Fleet(self._members(), surroundings))
            for name, device in fleet.devices.items():
                device.issued(self.target.fleet.credential(name))
            await stack.enter_async_context(self._watch)
            # A full collection walks all of the fleet's objects, none of which will die soon, while messages wait.
            gc.collect()
            gc.freeze()
            self.started = time.monotonic()
            scene = self.scene = Scene(
                self.scenario, self.target, fleet, self.backends[0], self.recorder, self.started, reconnect
            )
            async with asyncio.TaskGroup() as tasks:
                sampling = tasks.create_task(self._sample(), name="sample")
                streaming = tasks.create_task(fleet.stream(), name="stream")
                stopping = tasks.create_task(self._until_interrupted(interruption, scene), name="interruption")
                await play(scene)
                streaming.cancel()
                await self._drain(fleet, scene)
                sampling.cancel()
                stopping.cancel()
            self._take_sample()
            self._count(fleet, scene)
        result = RunResult(
            self.scenario,
            wall,
            time.monotonic() - self.started,
            self.recorder,
            self._watch.lag,
            dict(fleet.refused_by_reason),
            fleet.falsely_refused,
            scene.stopped_by,
        )
        result.judge(fleet.skipped, fleet.counters.published)
        return result

    def _members(self) -> list[Member]:
        fleet, now = self.target.fleet, datetime.now(UTC)
        members = []
        for name in self.names:
            entry = fleet.entries[name]
            if entry.not_after <= now:
                raise FleetUnusable(f"the certificate of {name} has expired: enrol the fleet anew")
            members.append(Member(name, entry.identity.group or "", self.scenario.group_of(name)))
        return members

    async def _connect_backends(
        self, stack: AsyncExitStack, surroundings: Surroundings
    ) -> Callable[[], Awaitable[None]]:
        """Connect them; return how to do it again after a restart of the broker."""
        service = self.target.fleet.service
        names = [service, *(f"{service}-{number}" for number in range(2, self.scenario.receivers + 1))]
        context = self.target.fleet.credential(service).context(self.target.fleet.anchors)
        probes = frozenset(name for name in self.names if self.scenario.group_of(name).probe)

        def arrived(device: str, telemetry: Telemetry, now: float) -> None:
            metric = Duration.PROBE_END_TO_END if device in probes else Duration.END_TO_END
            late = (telemetry.sent_ns - telemetry.due_ns) / 1e9
            self.recorder.record(metric, max(now - telemetry.sent_ns / 1e9, 0.0), late)

        for name in names:
            siblings = [sibling for sibling in names if sibling != name]
            backend = Backend(name, self.names, siblings=siblings, arrived=arrived)
            self.backends.append(backend)
            stack.push_async_callback(backend.close)

        async def connect() -> None:
            for backend in self.backends:
                await backend.connect(surroundings.endpoint, context, surroundings.keep_alive)

        await connect()
        return connect

    async def _until_interrupted(self, interruption: Interruption, scene: Scene) -> None:
        scene.stop(await interruption.wait())

    async def _sample(self) -> None:
        due = self.started
        while True:
            due += _SAMPLE_SECONDS
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._take_sample()

    def _take_sample(self) -> None:
        fleet, scene = self.fleet, self.scene
        if fleet is None or scene is None:
            raise RuntimeError("there is no sample before the run has begun")
        self.recorder.sample(
            time.monotonic() - self.started,
            fleet.connected,
            scene.told,
            fleet.counters.published,
            sum(backend.received for backend in self.backends),
            fleet.refused_by_reason,
            self._watch.sample(fleet.connected),
        )

    async def _drain(self, fleet: Fleet, scene: Scene) -> None:
        span = scene.begin("drain", "drain")
        living = [device for device in fleet.devices.values() if device.is_connected]

        def complete(backend: Backend) -> bool:
            return all(is_complete(device.sent(), backend.checks[device.name]) for device in living)

        try:
            async with asyncio.timeout(_DRAIN_DEADLINE):
                for backend in self.backends:
                    await backend.until(lambda backend=backend: complete(backend))  # type: ignore[misc]
        except TimeoutError:
            pass  # What has not arrived by now is lost, and counted so.
        scene.finish(span)

    def _count(self, fleet: Fleet, scene: Scene) -> None:
        counts = self.recorder.counts
        sums = total(
            account(device.sent(), backend.checks[name])
            for backend in self.backends
            for name, device in fleet.devices.items()
        )
        unreached = [
            device for device in scene.told_devices if not device.is_connected and device.name not in fleet.condemned
        ]
        counts.update(
            {
                Count.ADMISSIONS: fleet.admissions,
                Count.REFUSALS: sum(fleet.refused_by_reason.values()),
                Count.UNREACHED: len(unreached),
                Count.LOST_CONNECTIONS: fleet.lost_connections,
                Count.RECONNECTIONS: fleet.counters.reconnections,
                Count.PUBLISHED: fleet.counters.published,
                Count.RECEIVED: sums.received,
                Count.LOST: sums.lost,
                Count.REPEATED: fleet.counters.repeated,
                Count.DUPLICATED: max(0, sums.duplicated - fleet.counters.repeated * len(self.backends)),
                Count.OUT_OF_ORDER: sums.out_of_order,
                Count.IN_FLIGHT: sums.in_flight,
                Count.HELD_BACK: fleet.counters.held_back,
                Count.SKIPPED: fleet.skipped,
                Count.UNEXPECTED: sum(backend.unexpected for backend in self.backends),
                Count.FALSE_ADMISSIONS: len(fleet.falsely_admitted),
                Count.FALSE_REFUSALS: len(fleet.falsely_refused),
            }
        )
