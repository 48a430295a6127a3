"""Many devices on one loop: connect them, let them publish, bring back those that lost their connection.

Rules
-----
1. A device may be told to connect at any time (`arrive`); nobody waits for how the last one fared.
2. A device that lost its connection comes back with backoff and full jitter, each from its own seed.
3. A device that is refused or revoked is left alone. If nobody condemned it, that was a false refusal; if a condemned
   one gets in, that was a false admission.
4. Whatever a task of the fleet raises ends the fleet, with that exception.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from device_sim.closure import Closure, Verdict
from device_sim.device import Device, Event, State
from device_sim.latency import Latency
from device_sim.link import Link, StageTimes
from device_sim.live_device import LiveDevice, Surroundings
from device_sim.parallel import in_parallel
from device_sim.scenario.metrics import Duration
from device_sim.scenario.model import Group
from device_sim.schedule import Schedule
from device_sim.telemetry import randomness_of
from device_sim.tls_dial import NotAdmitted

_JITTER_SOURCE = random.Random()  # noqa: S311 - repeatable by intent
_MOST_KEPT = 1000
_LOOK_AGAIN = 0.05


@dataclass(frozen=True, slots=True)
class Member:
    """A device to be: its name, the group in its certificate, and the group it behaves like."""

    name: str
    topic_group: str
    group: Group


class Fleet:
    """The devices of *members*. An async context manager that leaves no connection behind."""

    def __init__(self, members: Iterable[Member], surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._tasks = asyncio.TaskGroup()
        self._closing = False
        self._running: set[asyncio.Task[None]] = set()
        self._flapped: set[str] = set()
        self.counters = surroundings.counters
        self.lateness = Latency()
        self.skipped = 0
        self.admissions = 0
        self.refusals: list[tuple[str, Closure]] = []
        self.lost: list[tuple[str, Closure]] = []
        self.lost_connections = 0
        self.refused_by_reason: Counter[str] = Counter()
        self.condemned: dict[str, float] = {}
        self.falsely_admitted: set[str] = set()
        self.falsely_refused: dict[str, Closure] = {}
        self.devices = {
            member.name: LiveDevice(Device(member.name, member.topic_group), surroundings, member.group, self._ended)
            for member in members
        }

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        for task in self._running:
            task.cancel()
        try:
            await asyncio.gather(*(device.close() for device in self.devices.values()))
        finally:
            await self._tasks.__aexit__(kind, error, trace)

    @property
    def connected(self) -> int:
        """How many devices are connected now."""
        return sum(device.is_connected for device in self.devices.values())

    async def connect(self, limit: int, progress: Callable[[StageTimes], None] | None = None) -> None:
        """Connect every device, *limit* at a time. A refusal is noted in `refusals`; a lost one comes back later."""

        async def connect(device: LiveDevice) -> None:
            connection = await self._attempt(device, time.monotonic())
            if connection is not None and progress is not None:
                progress(connection.stage_times)

        await in_parallel(limit, self.devices.values(), connect)

    def arrive(self, device: LiveDevice, due: float) -> None:
        """Tell *device* to connect, which was due at *due* (`time.monotonic`); do not wait for it."""
        self._start(self._arrive(device, due), f"connect {device.name}")

    def condemn(self, name: str) -> None:
        """Note that *name* is being revoked: from now on its refusal is right."""
        self.condemned.setdefault(name, math.inf)

    def revoked(self, name: str, at: float) -> None:
        """Note that the service confirmed the revocation of *name* at *at*: from then on its admission is wrong."""
        self.condemned[name] = min(at, self.condemned.get(name, math.inf))

    async def stream(self) -> None:
        """Let every device publish at its interval, until cancelled."""
        schedule: Schedule[LiveDevice] = Schedule()
        now = time.monotonic()
        for device in self.devices.values():
            if device.interval:
                phase = randomness_of(self._surroundings.seed, device.name, "phase").uniform(0.0, device.interval)
                schedule.add(device, now + phase)
        while (due := schedule.next_due()) is not None:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            for item_due, device in tuple(schedule.pop_due(now)):
                if device.publish_reading(item_due):
                    self.lateness.record(now - item_due)
                schedule.again(device, item_due, self._interval(device), now)
            self.skipped = schedule.skipped

    async def quiet(self, seconds: float) -> None:
        """Return when the broker has acknowledged all that connected devices have published, or after *seconds*."""
        deadline = time.monotonic() + seconds
        waiting = [device for device in self.devices.values() if device.unacknowledged]
        while waiting and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_AGAIN)
            waiting = [device for device in waiting if device.unacknowledged and device.is_connected]

    def _interval(self, device: LiveDevice) -> float:
        telemetry = device.group.telemetry
        if telemetry is None or not telemetry.jitter:
            return device.interval
        # One source for all devices, seeded each time: a source of its own would be 2.5 KB a device.
        _JITTER_SOURCE.seed(f"{self._surroundings.seed}:{device.name}:jitter:{device.machine.sequence}")
        return device.interval * _JITTER_SOURCE.uniform(1.0 - telemetry.jitter, 1.0 + telemetry.jitter)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._tasks.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _arrive(self, device: LiveDevice, due: float) -> None:
        await self._attempt(device, due)

    async def _attempt(self, device: LiveDevice, due: float) -> Link | None:
        """Let *device* connect once; return its connection, or None when it was not admitted."""
        started = time.monotonic()
        try:
            connection = await device.connect()
        except NotAdmitted as error:
            self._not_admitted(device, error.closure)
            return None
        late = started - due
        stages, record = connection.stage_times, self._surroundings.record
        record(Duration.TCP, stages.tcp, late)
        record(Duration.TLS, stages.tls, late)
        record(Duration.CONNACK, stages.connack, late)
        record(Duration.ADMITTED, stages.tcp + stages.tls + stages.connack, late)
        self.admissions += 1
        if started > self.condemned.get(device.name, math.inf):
            self.falsely_admitted.add(device.name)
        if device.group.flap is not None and device.is_connected:
            self._start(self._flap(device, connection, device.group.flap.up), f"flap {device.name}")
        return connection

    def _not_admitted(self, device: LiveDevice, closure: Closure) -> None:
        self.refused_by_reason[f"{closure.layer} {closure.code}"] += 1
        if device.machine.state is State.WAITING:
            self._come_back(device)
            return
        self.refusals.append((device.name, closure))
        self._judge_refusal(device, closure)

    def _ended(self, device: LiveDevice) -> None:
        if self._closing:
            return
        closure = device.machine.closure
        if closure is not None and device.machine.state is not State.ENROLLED:
            self.lost_connections += 1
            if len(self.lost) < _MOST_KEPT:
                self.lost.append((device.name, closure))
            if closure.verdict is not Verdict.AGAIN:
                self._judge_refusal(device, closure)
        if device.machine.state is State.WAITING:
            self._come_back(device)

    def _judge_refusal(self, device: LiveDevice, closure: Closure) -> None:
        if device.name not in self.condemned:
            self.falsely_refused[device.name] = closure

    def _come_back(self, device: LiveDevice) -> None:
        self._start(self._reconnect(device), f"reconnect {device.name}")

    async def _reconnect(self, device: LiveDevice) -> None:
        """Pause, and try once; an attempt that fails for the moment makes the next such task."""
        lost_at = time.monotonic()
        pause = self._pause(device)
        await asyncio.sleep(pause)
        if self._closing or device.machine.state is not State.WAITING:
            return
        device.machine.happened(Event.RETRIED)
        if await self._attempt(device, lost_at + pause) is not None:
            self.counters.reconnections += 1

    def _pause(self, device: LiveDevice) -> float:
        attempts = device.machine.attempts
        # Seeded by what has happened to the device before, so that each pause is another, and the same in another run.
        randomness = randomness_of(self._surroundings.seed, device.name, f"backoff {device.machine.dialled} {attempts}")
        if device.name in self._flapped and device.group.flap is not None:
            self._flapped.discard(device.name)
            return randomness.expovariate(1.0 / device.group.flap.down)
        return device.group.backoff.backoff().pause(attempts - 1, randomness)

    async def _flap(self, device: LiveDevice, connection: Link, up: float) -> None:
        randomness = randomness_of(self._surroundings.seed, device.name, f"flap {device.machine.dialled}")
        await asyncio.wait([connection.closed], timeout=randomness.expovariate(1.0 / up))
        if not connection.closed.done() and not self._closing:
            self._flapped.add(device.name)
            connection.abort()
