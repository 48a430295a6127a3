"""Many devices on one loop: connect them, let them publish, bring back those that lost their connection.

Rules
-----
1. Enrolment and connection run a bounded number at a time: a fleet is no denial of service by accident.
2. A device that lost its connection comes back with backoff and full jitter, each from its own seed.
3. A device that is refused or revoked is left alone.
4. Whatever a task of the fleet raises ends the fleet, with that exception.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from device_sim.backoff import Backoff
from device_sim.client import StageTimes
from device_sim.closure import Closure, Verdict
from device_sim.device import Device, Event, State
from device_sim.latency import Latency
from device_sim.live_device import LiveDevice, Surroundings
from device_sim.parallel import in_parallel
from device_sim.schedule import Schedule
from device_sim.telemetry import randomness_of
from device_sim.tls_dial import NotAdmitted


class Fleet:
    """The devices named *names*, all of one *group*. An async context manager that leaves no connection behind."""

    def __init__(
        self,
        names: Sequence[str],
        group: str,
        surroundings: Surroundings,
        *,
        interval: float,
        backoff: Backoff | None = None,
    ) -> None:
        self._surroundings = surroundings
        self._backoff = backoff or Backoff()
        self._tasks = asyncio.TaskGroup()
        self._closing = False
        self.counters = surroundings.counters
        self.lateness = Latency()
        self.connecting = Latency()
        self.skipped = 0
        self.refusals: list[tuple[str, Closure]] = []
        self.lost: list[tuple[str, Closure]] = []
        self.devices = {name: LiveDevice(Device(name, group), surroundings, interval, self._ended) for name in names}

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        try:
            await asyncio.gather(*(device.close() for device in self.devices.values()))
        finally:
            await self._tasks.__aexit__(kind, error, trace)

    @property
    def connected(self) -> int:
        """How many devices are connected now."""
        return sum(device.machine.state is State.CONNECTED for device in self.devices.values())

    async def connect(self, limit: int, progress: Callable[[StageTimes], None] | None = None) -> None:
        """Connect every device, *limit* at a time. A refusal is noted in `refusals`; a lost one comes back later."""

        async def connect(device: LiveDevice) -> None:
            started = time.monotonic()
            try:
                connection = await device.connect()
            except NotAdmitted as error:
                self._not_admitted(device, error.closure)
            else:
                self.connecting.record(time.monotonic() - started)
                if progress is not None:
                    progress(connection.stage_times)

        await in_parallel(limit, self.devices.values(), connect)

    async def stream(self) -> None:
        """Let every device publish at its interval, until cancelled."""
        schedule: Schedule[LiveDevice] = Schedule()
        now = time.monotonic()
        for device in self.devices.values():
            phase = randomness_of(self._surroundings.seed, device.name, "phase").uniform(0.0, device.interval)
            schedule.add(device, now + phase)
        while (due := schedule.next_due()) is not None:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            for item_due, device in tuple(schedule.pop_due(now)):
                if device.publish_reading(item_due):
                    self.lateness.record(now - item_due)
                schedule.again(device, item_due, device.interval, now)
            self.skipped = schedule.skipped

    def _not_admitted(self, device: LiveDevice, closure: Closure) -> None:
        if device.machine.state is State.WAITING:
            self._come_back(device)
        else:
            self.refusals.append((device.name, closure))

    def _ended(self, device: LiveDevice) -> None:
        if self._closing:
            return
        closure = device.machine.closure
        if closure is not None and device.machine.state is not State.ENROLLED:
            self.lost.append((device.name, closure))
        if device.machine.state is State.WAITING:
            self._come_back(device)

    def _come_back(self, device: LiveDevice) -> None:
        self._tasks.create_task(self._reconnect(device), name=f"reconnect {device.name}")

    async def _reconnect(self, device: LiveDevice) -> None:
        randomness = randomness_of(self._surroundings.seed, device.name, "backoff")
        while not self._closing:
            await asyncio.sleep(self._backoff.pause(device.machine.attempts - 1, randomness))
            device.machine.happened(Event.RETRIED)
            try:
                await device.connect()
            except NotAdmitted as error:
                if error.closure.verdict is not Verdict.AGAIN:
                    self.refusals.append((device.name, error.closure))
                    return
            else:
                self.counters.reconnections += 1
                return  # Should it be lost again, that is another task.
