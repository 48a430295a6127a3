"""What a stage of a scenario works on: the fleet, the target, the recorder; and its progress.

Rules
-----
1. Which devices are chosen follows from the seed and the stage's number, among those that are present.
2. An action is due at a time; it starts then or later.
3. When the user interrupts, no further action starts; those under way end by their own deadlines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from device_sim.fleet.backend import Backend
from device_sim.fleet.fleet import Fleet
from device_sim.fleet.live_device import LiveDevice
from device_sim.link.distance import ADMISSION
from device_sim.randomness import randomness_of
from device_sim.run.manner import WHOLE, Share
from device_sim.run.recorder import FAILED_REVOCATION, PAST_DEADLINE, Marker, Recorder
from device_sim.run.target import Target
from device_sim.scenario.metrics import Count
from device_sim.scenario.model import Scenario
from device_sim.trouble.proxy import Proxy

_MOST_TOLD = 20
_LOOK_AGAIN = 0.05

Action = Callable[[LiveDevice, float], Awaitable[None]]
"""Applied to one device; called with the time it was due (`time.monotonic`)."""


class Scene:
    """Everything a stage works on, and its progress.

    *share* is this part's portion of the fleet and of every rate; *proxies* stand between a group and the broker.
    """

    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        fleet: Fleet,
        backend: Backend | None,
        recorder: Recorder,
        started: float,
        share: Share = WHOLE,
        proxies: Mapping[str, Proxy] | None = None,
    ) -> None:
        self.scenario = scenario
        self.target = target
        self.fleet = fleet
        self.backend = backend
        self.recorder = recorder
        self.share = share
        self.rate_share = 1.0 / share.of
        self.proxies = proxies or {}
        self.done = 0.0
        self.told_devices: list[LiveDevice] = []
        self.number = 0
        self._started = started
        self._past = 0
        self._stopping = asyncio.Event()
        order = sorted(fleet.devices.values(), key=lambda device: device.name)
        randomness_of(scenario.seed, "run", "arrivals").shuffle(order)
        self._order = order

    @property
    def told(self) -> int:
        """How many devices have been told to connect."""
        return len(self.told_devices)

    @property
    def stopping(self) -> bool:
        """Whether the user has interrupted."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """End the stages early."""
        self._stopping.set()

    def mark(self, kind: str, what: str) -> None:
        """Put a marker on the time line."""
        self.recorder.markers.append(Marker(time.monotonic() - self._started, kind, what))

    def not_done(self, device: LiveDevice, error: Exception) -> None:
        """Record that the service did not revoke, suspend or resume *device*, or did not confirm it."""
        counts = self.recorder.counts
        counts[Count.FAILED_REVOCATIONS] += 1
        if counts[Count.FAILED_REVOCATIONS] <= _MOST_TOLD:
            self.mark(FAILED_REVOCATION, f"{device.name}: {error}")

    def marked(self, kind: str, moments: Iterable[tuple[float, str]]) -> list[Marker]:
        """Return markers for what happened at *moments* (`time.monotonic`)."""
        return [Marker(at - self._started, kind, what) for at, what in moments]

    async def sleep(self, seconds: float) -> None:
        """Sleep, or return early when the user interrupts."""
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()
            except TimeoutError:
                pass

    async def settle(self, condition: Callable[[], bool], seconds: float) -> None:
        """Return when *condition* holds, after *seconds* and what admissions take here, or when the user interrupts."""
        begun = time.monotonic()
        while not condition() and time.monotonic() < begun + self.patience(seconds, ADMISSION) and not self.stopping:
            await self.sleep(_LOOK_AGAIN)

    def patience(self, seconds: float, round_trips: int) -> float:
        """Return how long to wait for what may take *seconds* near the broker, and needs *round_trips*."""
        distance = self.fleet.distance
        if self.backend is not None:  # A proxy of ours, which is near, may stand before the devices.
            distance = distance.or_worse(self.backend.distance())
        return seconds + distance.longest(round_trips)

    def took(self, seconds: float, deadline: float, what: str) -> None:
        """Note that *what* took so many *seconds*: past the *deadline* of a stage it came in time for the link only."""
        if seconds <= deadline or self.patience(deadline, 1) <= deadline:
            return
        self._past += 1
        if self._past <= _MOST_TOLD:
            self.mark(PAST_DEADLINE, f"{what} after {seconds:.1f} s, {deadline:g} near the broker")

    def choose(self, devices: Iterable[LiveDevice], share: float) -> list[LiveDevice]:
        """Return a *share* of *devices*, at least one if there are any; the same for a given seed, stage and part."""
        among = sorted(devices, key=lambda device: device.name)
        source = randomness_of(self.scenario.seed, "stage", str(self.number))
        return source.sample(among, self.share.quota(share, len(among)))

    async def pace(self, devices: Sequence[LiveDevice], times: Iterable[float], action: Action) -> None:
        """Start *action* for each device when it is due, and return when all have ended."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number, (device, offset) in enumerate(zip(devices, times, strict=True), 1):
                due = started + offset
                await self.sleep(due - time.monotonic())
                if self.stopping:
                    return
                tasks.create_task(_done(action, device, due))
                self.done = number / len(devices)
            # Leaving the task group waits for what is under way.

    def arrival_order(self, share: float) -> list[LiveDevice]:
        """Return the next devices to tell, so that *share* of the fleet has been told."""
        return self._order[self.told : round(share * len(self._order))]

    def connected(self) -> list[LiveDevice]:
        """Return the devices that are connected and not condemned."""
        condemned = self.fleet.condemned
        return [device for device in self.told_devices if device.is_connected and device.name not in condemned]

    def sleepers(self) -> list[LiveDevice]:
        """Return the devices that sleep now and then, and request a session that is kept meanwhile."""
        condemned = self.fleet.condemned
        return [
            device
            for device in self.told_devices
            if device.group.sleep is not None and device.group.sleep.keep_session and device.name not in condemned
        ]


async def _done(action: Action, device: LiveDevice, due: float) -> None:
    await action(device, due)
