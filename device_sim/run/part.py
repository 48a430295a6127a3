"""The part of a fleet that one process runs: its devices, what they do in each stage, and what was observed of them.

Theory
------
A run on one core has one part. Beyond one core, each worker process has its own part, with every n-th device of the
fleet and the corresponding share of every rate; the conductor (`runner`) makes all parts begin each stage at the same
moment, runs the backends, and merges. Clocks need no synchronisation: `time.monotonic` is one clock for all processes
of a machine.

Rules
-----
1. A part never sees another part's devices. The choice of devices in a stage follows from the seed, stage and part.
2. What it observed leaves it complete: histograms, not percentiles (`PartOutcome`).
3. What it has sent is known when it has finished, what reaches it only when the receivers have drained (`strays`).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self

from device_sim.credentials.credential import HeldCredential, renew
from device_sim.credentials.fleet_directory import FleetUnusable
from device_sim.fleet.backend import Backend
from device_sim.fleet.fleet import Fleet, Member
from device_sim.fleet.live_device import LiveDevice
from device_sim.fleet.surroundings import Counters, Surroundings
from device_sim.fleet.tally import Sent
from device_sim.link.closure import Closure
from device_sim.link.distance import ADMISSION
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.shared_context import SharedContext
from device_sim.run.health import GeneratorWatch, HealthSample, resident_memory
from device_sim.run.manner import Manner, Share
from device_sim.run.recorder import FAILED_RENEWAL, Marker, Recorder
from device_sim.run.scene import Scene
from device_sim.run.stages import Acted, play, stay_out
from device_sim.run.target import Target
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.model import Scenario
from device_sim.scenario.stages import Stage
from device_sim.trouble.proxy import Proxy
from provisioning.pki.tls import client_context

_DRAIN_DEADLINE = 10.0
_ACKNOWLEDGEMENT = 2
"""Round trips that it needs, at QoS 2."""
_COLLECTIONS = (10_000, 5, 50)
"""New objects before a youngest-generation collection, and collections of each generation before one of the next."""


@dataclass(slots=True)
class PartState:
    """A part at one moment. *windows* holds the milliseconds measured since the previous state."""

    connected: int
    told: int
    published: int
    lost_connections: int
    revoked: int
    done: float
    refused: dict[str, int]
    windows: dict[Duration, list[float]]
    health: HealthSample


@dataclass(slots=True)
class PartOutcome:
    """Everything that a part has observed. Histograms are encoded (`device_sim.latency`)."""

    sent: dict[str, Sent]
    counts: dict[Count, int]
    service: dict[Duration, str]
    response: dict[Duration, str]
    lag: str
    standstill: str
    skipped: int
    refused: dict[str, int]
    false_refusals: dict[str, Closure]
    memory_before_mb: float
    paused: float = 0.0
    """For how many seconds its process was stopped."""
    present: dict[str, bool] = field(default_factory=dict)
    """For devices that announce their presence: whether they were online at the end. Excludes revoked ones."""
    markers: list[Marker] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Strays:
    """How many messages have come to a part altered, and how many answers to its commands that it did not expect."""

    altered: int = 0
    unexpected: int = 0


class Played(Protocol):
    """A part as the conductor sees it, in this process or in another."""

    share: Share

    async def begin(self, started: float) -> None:
        """Let the fleet publish; *started* (`time.monotonic`) is when the run began."""

    async def play(self, number: int, stage: Stage) -> Acted:
        """Play one stage to its end; return what came of it."""

    def stop(self) -> None:
        """End stages early."""

    def change(self, rate: float | None, paused: bool | None) -> None:
        """Let the fleet publish *rate* times as often as the scenario says, or pause."""

    async def finish(self) -> PartOutcome:
        """Stop publishing, wait for what is in flight, and return what was observed."""

    async def strays(self) -> Strays:
        """Return what has come, by now, that should not have."""

    def state(self) -> PartState:
        """Return the state since the last call."""


class Part:
    """A part in this process. An async context manager; *commander* sends its devices their commands."""

    def __init__(
        self, scenario: Scenario, target: Target, manner: Manner, share: Share, commander: Backend | None = None
    ) -> None:
        self.share = share
        self.names = share.names(target.fleet.devices[: scenario.devices])
        self.commander = commander
        self.fleet: Fleet | None = None
        self.scene: Scene | None = None
        self.proxies: dict[str, Proxy] = {}
        self._scenario = scenario
        self._target = target
        self._manner = manner
        self._recorder = Recorder()
        self._watch = GeneratorWatch(len(manner.sources))
        self._memory_before = 0.0
        self._stack = AsyncExitStack()
        self._streaming: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            await self._open()
        except BaseException as error:
            await self._stack.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._streaming is not None:
            self._streaming.cancel()
        await self._stack.__aexit__(kind, error, trace)

    async def _open(self) -> None:
        anchors = self._target.fleet.anchors
        self._manner.driver.load()
        gc.collect()
        self._memory_before = resident_memory()
        surroundings = Surroundings(
            self._target.broker,
            SharedContext(lambda: client_context(anchors, classic_key_exchange=not self._manner.hybrid_key_exchange)),
            await self._stack.enter_async_context(KeepAlive()),
            Counters(),
            self._scenario.seed,
            self._manner.mark,
            record=self._recorder.record,
            sources=self._manner.sources,
            driver=self._manner.driver,
            renew=self._renewal(),
        )
        for group in sorted(self._scenario.troubled()):
            proxy = Proxy(self._target.broker.host, self._target.broker.port, seed=self._scenario.seed)
            self.proxies[group] = await self._stack.enter_async_context(proxy)
        fleet = self.fleet = await self._stack.enter_async_context(Fleet(self._members(), surroundings))
        for name, device in fleet.devices.items():
            held = self._target.fleet.credential(name)
            device.issued(held)
            surroundings.context.of(held.pem)  # What is wrong with the trust anchors is told before anybody connects.
        await self._stack.enter_async_context(self._watch)

    async def begin(self, started: float) -> None:
        """Let the fleet publish; see `Played`."""
        fleet = self._fleet()
        self.scene = Scene(
            self._scenario, self._target, fleet, self.commander, self._recorder, started, self.share,
            self.proxies,
        )  # fmt: skip
        # A full collection walks all of the fleet's objects, nearly all long-lived, while messages wait: 0.2 s at ten
        # thousand connections. By default there is one whenever their number has grown by a quarter.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECTIONS)
        self._streaming = asyncio.create_task(fleet.streaming.run(), name="stream")

    async def play(self, number: int, stage: Stage) -> Acted:
        """Play one stage; whatever ends the stream also ends the stage."""
        scene, streaming = self._scene(), self._streaming
        if streaming is None:
            raise RuntimeError("begin() comes before play()")
        playing = asyncio.create_task(play(scene, number, stage), name=stage.kind)
        try:
            await asyncio.wait([playing, streaming], return_when=asyncio.FIRST_COMPLETED)
            if not playing.done() and streaming.done() and not streaming.cancelled() and streaming.exception():
                streaming.result()
            return await playing
        finally:
            playing.cancel()

    def stop(self) -> None:
        """End stages early."""
        self._scene().stop()

    def change(self, rate: float | None, paused: bool | None) -> None:
        """Change how much the fleet publishes; see `Played`."""
        self._fleet().streaming.change(rate, paused)

    async def finish(self) -> PartOutcome:
        """End; see `Played`."""
        fleet, scene = self._fleet(), self._scene()
        if self._streaming is not None:
            self._streaming.cancel()
            await asyncio.wait([self._streaming])
        # First: connecting devices still resend what was not acknowledged.
        await fleet.freeze(scene.patience(_DRAIN_DEADLINE, ADMISSION))
        kept_waiting = await fleet.quiet(scene.patience(_DRAIN_DEADLINE, _ACKNOWLEDGEMENT))
        await stay_out(scene)
        recorder, now = self._recorder, time.monotonic()
        for device in _unreached(fleet, scene):
            if device.out_since is not None:  # It lasts on: left out, the longest of all would be in no figure.
                recorder.record(Duration.OUTAGE, now - device.out_since, 0.0)
        owed = sum(len(fleet.devices[name].unacknowledged) for name in kept_waiting)
        return PartOutcome(
            sent={name: device.sent(kept_waiting=name in kept_waiting) for name, device in fleet.devices.items()},
            counts={**recorder.counts, **self._counted(fleet, scene), Count.UNACKNOWLEDGED: owed},
            service={metric: latency.encoded() for metric, latency in recorder.service.items()},
            response={metric: latency.encoded() for metric, latency in recorder.response.items()},
            lag=self._watch.lag.encoded(),
            standstill=self._watch.standstill.encoded(),
            skipped=fleet.streaming.skipped,
            paused=self._watch.paused,
            refused={**fleet.refused_by_reason, **fleet.counters.refused},
            false_refusals=fleet.falsely_refused,
            memory_before_mb=self._memory_before,
            present=self._present(fleet),
            markers=recorder.markers + scene.marked(FAILED_RENEWAL, fleet.renewal_failures),
        )

    async def strays(self) -> Strays:
        """Return what has come to the devices, by now; what comes to the *commander* is counted by its owner."""
        return Strays(altered=self._fleet().counters.altered)

    def state(self) -> PartState:
        """Return the state since the last call."""
        fleet, scene = self._fleet(), self._scene()
        connected = fleet.connected
        return PartState(
            connected,
            scene.told,
            fleet.counters.published,
            fleet.lost_connections,
            self._recorder.counts[Count.REVOKED],
            scene.done,
            dict(fleet.refused_by_reason),
            self._recorder.window(),
            self._watch.sample(connected),
        )

    def _renewal(self) -> Callable[[HeldCredential], Awaitable[HeldCredential]] | None:
        url, fleet = self._target.provisioning_url, self._target.fleet
        if url is None:
            return None

        async def renewed(held: HeldCredential) -> HeldCredential:
            successor = await renew(url, fleet.anchors, held)
            fleet.keep(successor)
            return successor

        return renewed

    def _present(self, fleet: Fleet) -> dict[str, bool]:
        return {
            device.name: device.is_connected
            for device in fleet.devices.values()
            if device.group.presence is not None and device.machine.admitted and device.name not in fleet.condemned
        }

    def _members(self) -> list[Member]:
        fleet, now = self._target.fleet, datetime.now(UTC)
        members = []
        for name in self.names:
            entry = fleet.entries[name]
            if entry.not_after <= now:
                remedy = f"import its next one with {fleet.adding}" if fleet.origin.imported else "enrol the fleet anew"
                raise FleetUnusable(f"the certificate of {name} has expired: {remedy}")
            group = self._scenario.group_of(name)
            proxy = self.proxies.get(group.name)
            way = None if proxy is None else replace(self._target.broker, host=proxy.listens_at, port=proxy.port)
            members.append(Member(name, entry.identity.group or "", group, way, entry.client_id))
        return members

    def _counted(self, fleet: Fleet, scene: Scene) -> dict[Count, int]:
        counters = fleet.counters
        return {
            Count.ADMISSIONS: fleet.admissions,
            Count.REFUSALS: sum(fleet.refused_by_reason.values()),
            Count.UNREACHED: len(_unreached(fleet, scene)),
            Count.LOST_CONNECTIONS: fleet.lost_connections,
            Count.RECONNECTIONS: counters.reconnections,
            Count.PUBLISHED: counters.published,
            Count.REFUSED_MESSAGES: counters.refused.total(),
            Count.REPEATED: counters.repeated,
            Count.HELD_BACK: counters.held_back,
            Count.MISSED: counters.missed,
            Count.SKIPPED: fleet.streaming.skipped,
            Count.SESSIONS_RESUMED: counters.sessions_resumed,
            Count.SESSIONS_LOST: counters.sessions_lost,
            Count.TAKEOVERS: counters.takeovers,
            Count.COPIES_ADMITTED: counters.copies_admitted,
            Count.COPIES_REFUSED: counters.copies_refused,
            Count.STALLS: counters.stalls,
            Count.SLEEPS: counters.sleeps,
            Count.RENEWED: counters.renewed,
            Count.FAILED_RENEWALS: counters.failed_renewals,
            Count.FALSE_ADMISSIONS: len(fleet.falsely_admitted),
            Count.FALSE_REFUSALS: len(fleet.falsely_refused),
        }

    def _fleet(self) -> Fleet:
        if self.fleet is None:
            raise RuntimeError("a part is used inside its context only")
        return self.fleet

    def _scene(self) -> Scene:
        if self.scene is None:
            raise RuntimeError("begin() comes first")
        return self.scene


def _unreached(fleet: Fleet, scene: Scene) -> list[LiveDevice]:
    """Return the devices that should be connected and are not, and are not away by their own choice."""
    return [
        device
        for device in scene.told_devices
        if not device.is_connected and device.away is None and device.name not in fleet.condemned
    ]
