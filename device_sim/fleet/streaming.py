"""The telemetry of a fleet: each device publishes at its interval; an operator can raise the rate or pause it.

Rules
-----
1. Phases and jitter follow from the seed and the device's name: two runs publish at the same moments.
2. A reading is published when due or late, with the lateness recorded; one overdue by a whole interval is skipped and
   counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

from device_sim.fleet.live_device import LiveDevice
from device_sim.fleet.schedule import Schedule
from device_sim.latency import Latency
from device_sim.randomness import Redrawn, randomness_of

_JITTER = Redrawn()
_URGENT = 0.1
"""The fraction of its interval that a device waits when it has something urgent to report."""


class Streaming:
    """Lets *devices* publish, each at its interval."""

    def __init__(self, devices: Mapping[str, LiveDevice], seed: int) -> None:
        self._devices = devices
        self._seed = seed
        self.rate = 1.0
        """The multiple of the scenario's rate."""
        self.lateness = Latency()
        self.skipped = 0
        self._schedule: Schedule[LiveDevice] = Schedule()
        self._paused_at: float | None = None
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._changed = asyncio.Event()

    def change(self, rate: float | None = None, paused: bool | None = None) -> None:
        """Publish *rate* times as often as the scenario says, or pause."""
        now = time.monotonic()
        if rate is not None:
            self._schedule.stretch(now, self.rate / rate)
            self.rate = rate
        if paused is True and self._paused_at is None:
            self._paused_at = now
            self._unpaused.clear()
        elif paused is False and self._paused_at is not None:
            self._schedule.shift(now - self._paused_at)
            self._paused_at = None
            self._unpaused.set()
        self._changed.set()

    async def run(self) -> None:
        """Let every device publish at its interval, until cancelled."""
        schedule = self._schedule
        now = time.monotonic()
        for device in self._devices.values():
            if device.interval:
                phase = randomness_of(self._seed, device.name, "phase").uniform(0.0, device.interval)
                schedule.add(device, now + phase)
        while (due := schedule.next_due()) is not None:
            await self._until(due)
            await self._unpaused.wait()
            now = time.monotonic()
            for item_due, device in tuple(schedule.pop_due(now)):
                if device.publish_reading(item_due):
                    self.lateness.record(now - item_due)
                interval = device.interval * (_URGENT if device.urgent else 1.0) / self.rate
                schedule.again(device, item_due, interval, now, interval * self._jitter(device))
            self.skipped = schedule.skipped

    async def _until(self, due: float) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._changed.wait()

    def _jitter(self, device: LiveDevice) -> float:
        """Return by what the next interval of *device* is multiplied."""
        telemetry = device.group.telemetry
        if telemetry is None or not telemetry.jitter:
            return 1.0
        source = _JITTER.of(self._seed, device.name, f"jitter {device.machine.sequence}")
        return source.uniform(1.0 - telemetry.jitter, 1.0 + telemetry.jitter)
