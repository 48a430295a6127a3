"""What the stages of a scenario do: each lets things happen at the times its pacer says, and waits for no reply.

Rules
-----
1. Who is chosen follows from the seed and the stage's number, among those who are there.
2. An action is due at a time; it starts then or late, and both are recorded.
3. When the user interrupts, no further action starts; those under way end by their own deadlines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from device_sim.backend import Backend
from device_sim.closure import BROKEN
from device_sim.device import State
from device_sim.fleet import Fleet
from device_sim.live_device import LiveDevice
from device_sim.randomness import randomness_of
from device_sim.revocation_trial import cut_off, try_again
from device_sim.run.manner import WHOLE, Share
from device_sim.run.recorder import FAILED_REVOCATION, Marker, Recorder
from device_sim.run.target import Target
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.model import Scenario
from device_sim.scenario.pacer import arrivals, even, within
from device_sim.scenario.stages import Command, Hold, Ramp, Renew, Restart, Revoke, Stage, Storm, Suspend, Trouble
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import NONE, Direction
from device_sim.trouble.trouble import Trouble as TroubleState
from provisioning.client.operator import RequestRefused, ServiceUnavailable

_SETTLE = 30.0
_MOST_TOLD = 20
_LOOK_AGAIN = 0.05

Action = Callable[[LiveDevice, float], Awaitable[None]]
"""Done to one device; told when it was due (`time.monotonic`)."""


class Scene:
    """Everything a stage works on, and how far it is.

    *share* is which part of the fleet this is, and of every rate; *proxies* stand between a group and the broker.
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
        """Let the stages end early."""
        self._stopping.set()

    def mark(self, kind: str, what: str) -> None:
        """Put a marker on the time line."""
        self.recorder.markers.append(Marker(time.monotonic() - self._started, kind, what))

    def not_done(self, device: LiveDevice, error: Exception) -> None:
        """Take note that the service did not revoke, suspend or resume *device*, or did not say that it did."""
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
        """Return when *condition* holds, after *seconds*, or when the user interrupts."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline and not self.stopping:
            await self.sleep(_LOOK_AGAIN)

    def choose(self, devices: Iterable[LiveDevice], share: float) -> list[LiveDevice]:
        """Return a *share* of *devices*, at least one if there are any; the same for the same seed, stage and part."""
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
            # Leaving the group waits for what is under way.

    def arrival_order(self, share: float) -> list[LiveDevice]:
        """Return those who are to be told next, so that *share* of the fleet is told."""
        return self._order[self.told : round(share * len(self._order))]

    def connected(self) -> list[LiveDevice]:
        """Return the devices that are connected and not condemned."""
        condemned = self.fleet.condemned
        return [device for device in self.told_devices if device.is_connected and device.name not in condemned]


async def _done(action: Action, device: LiveDevice, due: float) -> None:
    await action(device, due)


async def play(scene: Scene, number: int, stage: Stage) -> None:
    """Play *stage*, the scenario's *number*-th (1, 2, …)."""
    if not scene.stopping:
        scene.number = number
        scene.done = 0.0
        await _play_one(scene, stage)


def label_of(stage: Stage) -> str:
    """Return what a stage does, in a few words."""
    match stage:
        case Ramp():
            return f"ramp to {stage.to:.0%}, {stage.rate:g}/s"
        case Hold():
            return f"hold {stage.seconds:g} s"
        case Storm():
            return f"storm {stage.drop:.0%}"
        case Revoke():
            return f"revoke {stage.select:.0%}, {stage.rate:g}/s"
        case Suspend():
            return f"suspend {stage.select:.0%}, {stage.rate:g}/s"
        case Trouble():
            return f"trouble {trouble_in_words(stage.state())}, {stage.seconds:g} s"
        case Renew():
            return f"renew {stage.select:.0%}, {stage.rate:g}/s"
        case Command():
            return f"command {stage.select:.0%}, {stage.rate:g}/s"
        case Restart():
            return "broker restart"


async def _play_one(scene: Scene, stage: Stage) -> None:
    match stage:
        case Ramp():
            await _ramp(scene, stage)
        case Hold():
            await _hold(scene, stage)
        case Storm():
            await _storm(scene, stage)
        case Revoke():
            await _revoke(scene, stage)
        case Suspend():
            await _suspend(scene, stage)
        case Trouble():
            await _trouble(scene, stage)
        case Renew():
            await _renew(scene, stage)
        case Command():
            await _command(scene, stage)
        case Restart():
            await _restart(scene, stage)


async def _ramp(scene: Scene, stage: Ramp) -> None:
    devices = scene.arrival_order(stage.to)
    randomness = randomness_of(scene.scenario.seed, "stage", f"{scene.number} arrivals")

    async def arrive(device: LiveDevice, due: float) -> None:
        scene.told_devices.append(device)
        scene.fleet.arrive(device, due)

    await scene.pace(devices, arrivals(stage.spread, len(devices), stage.rate * scene.rate_share, randomness), arrive)
    await scene.settle(lambda: not any(device.is_undecided for device in devices), _SETTLE)


async def _hold(scene: Scene, stage: Hold | Trouble) -> None:
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < stage.seconds and not scene.stopping:
        scene.done = elapsed / stage.seconds
        await scene.sleep(min(0.2, stage.seconds - elapsed))


async def _storm(scene: Scene, stage: Storm) -> None:
    devices = scene.choose(scene.connected(), stage.drop)
    randomness = randomness_of(scene.scenario.seed, "stage", f"{scene.number} breaks")
    scene.mark("storm", f"{len(devices)} connections break")

    async def cut(device: LiveDevice, _due: float) -> None:
        device.cut()

    await scene.pace(devices, within(len(devices), stage.within, randomness), cut)
    await scene.settle(lambda: not any(device.is_undecided for device in devices), stage.settle)


async def _restart(scene: Scene, stage: Restart) -> None:
    # The conductor has restarted the broker: nobody is connected, everybody is on the way back.
    await scene.settle(lambda: not any(device.is_undecided for device in scene.told_devices), stage.settle)


async def _revoke(scene: Scene, stage: Revoke) -> None:
    operator = scene.target.operator
    if operator is None:
        raise RuntimeError("Target.check lets no revocation through without an operator")
    recorder, fleet = scene.recorder, scene.fleet

    async def revoke(device: LiveDevice, due: float) -> None:
        if not device.is_connected:
            return  # It lost its connection since it was chosen.
        fleet.condemn(device.name)
        scene.mark("revoke", device.name)
        late = time.monotonic() - due
        try:
            cut = await cut_off(operator, device, stage.deadline, stage.reason)
        except (RequestRefused, ServiceUnavailable) as error:
            scene.not_done(device, error)
            return
        scene.target.fleet.revoked(device.name)
        fleet.revoked(device.name, time.monotonic())
        recorder.counts[Count.REVOKED] += 1
        if cut.closure is not None and cut.closure.code == BROKEN:
            return  # Its own network was quicker, which is no merit of the broker: it comes back, to be refused.
        if cut.closure is not None:
            recorder.record(Duration.REVOKED_CLOSED, cut.since_sent, late)
        if not await _out(device, stage.deadline if cut.closure is not None else 0.0):
            await _stayed_in(scene, device)
        await _tries_again(scene, device, Duration.REVOKED_REFUSED)

    devices = scene.choose(scene.connected(), stage.select)
    await scene.pace(devices, even(len(devices), stage.rate * scene.rate_share), revoke)


async def _out(device: LiveDevice, seconds: float) -> bool:
    """Return whether *device*, which must be out, is so within *seconds*.

    Who was cut off without being told why comes back at once, perhaps before the operator's call was answered. That
    attempt is no false admission yet; but its session must be closed as well.
    """
    until = time.monotonic() + seconds
    while True:
        link = device.connection
        if device.machine.state is State.CONNECTING:  # An attempt has a deadline of its own.
            await asyncio.sleep(_LOOK_AGAIN)
        elif link is None or not device.is_connected:
            return True
        elif (left := until - time.monotonic()) > 0:
            await asyncio.wait([link.closed], timeout=left)
            await asyncio.sleep(0)  # The state follows in the loop's next turn.
        else:
            return False


async def _stayed_in(scene: Scene, device: LiveDevice) -> None:
    """Take note that nobody closed the connection of *device*; it leaves, so that its next attempts can be seen."""
    scene.recorder.counts[Count.STAYED_IN] += 1
    scene.fleet.falsely_admitted.add(device.name)
    scene.mark("stayed in", device.name)
    # With a goodbye: after an abrupt end OpenSSL would forget the TLS session, and its resumption is worth a try.
    await device.close()


async def _tries_again(scene: Scene, device: LiveDevice, refused: Duration | None) -> None:
    """Let *device*, which must stay out, try in both ways; its refusal is recorded as *refused*."""
    recorder, fleet = scene.recorder, scene.fleet
    for retry in await try_again(device):
        if retry.closure is None:
            recorder.counts[Count.READMITTED] += 1
            fleet.falsely_admitted.add(device.name)
        else:
            fleet.refused_by_reason[f"{retry.closure.layer} {retry.closure.code}"] += 1
            if refused is not None:
                recorder.record(refused, retry.seconds, 0.0)


async def _suspend(scene: Scene, stage: Suspend) -> None:
    operator = scene.target.operator
    if operator is None:
        raise RuntimeError("Target.check lets no suspension through without an operator")
    recorder, fleet = scene.recorder, scene.fleet

    async def suspend(device: LiveDevice, due: float) -> None:
        link = device.connection
        if link is None or not device.is_connected:
            return
        fleet.condemn(device.name)
        scene.mark("suspend", device.name)
        late, sent = time.monotonic() - due, time.monotonic()
        try:
            await operator.suspend(device=device.name)
        except (RequestRefused, ServiceUnavailable) as error:
            scene.not_done(device, error)
            return
        fleet.revoked(device.name, time.monotonic())
        recorder.counts[Count.SUSPENDED] += 1
        done, _ = await asyncio.wait([link.closed], timeout=stage.deadline)
        if done:
            closure = link.closed.result()
            if closure.code != BROKEN:
                recorder.record(Duration.SUSPENDED_CLOSED, closure.at - sent, late)
        if not await _out(device, stage.deadline if done else 0.0):
            await _stayed_in(scene, device)
        await _tries_again(scene, device, None)
        await scene.sleep(stage.seconds)
        fleet.pardon(device.name)
        resumed = time.monotonic()
        try:
            await operator.resume(device=device.name)
        except (RequestRefused, ServiceUnavailable) as error:
            scene.not_done(device, error)
            return
        admitted = await fleet.readmit(device, resumed, stage.deadline)
        if admitted is not None:
            recorder.counts[Count.RESUMED] += 1
            recorder.record(Duration.RESUMED_ADMITTED, admitted - resumed, 0.0)

    devices = scene.choose(scene.connected(), stage.select)
    await scene.pace(devices, even(len(devices), stage.rate * scene.rate_share), suspend)


async def _trouble(scene: Scene, stage: Trouble) -> None:
    groups = stage.groups or [group.name for group in scene.scenario.groups if not group.probe]
    proxies = [scene.proxies[name] for name in groups if name in scene.proxies]
    scene.mark("trouble", f"{', '.join(groups)}: {trouble_in_words(stage.state())}")
    for proxy in proxies:
        proxy.set(stage.state())
    try:
        await _hold(scene, stage)
    finally:
        for proxy in proxies:
            proxy.set(NONE)
    await scene.settle(lambda: not any(device.is_undecided for device in scene.told_devices), stage.settle)


def trouble_in_words(trouble: TroubleState) -> str:
    """Return what is wrong with the network, in a few words."""
    words = [f"{trouble.latency * 1000:g} ms late"] if trouble.latency else []
    words += [f"±{trouble.jitter * 1000:g} ms"] if trouble.jitter else []
    words += [f"{trouble.bandwidth} B/s"] if trouble.bandwidth is not None else []
    words += [f"in pieces of {trouble.slice_bytes} B"] if trouble.slice_bytes is not None else []
    words += [word for word in ("blackhole", "reset", "half_open") if getattr(trouble, word)]
    words += [str(trouble.direction)] if trouble.direction is not Direction.BOTH else []
    return " ".join(words).replace("_", "-")


async def _renew(scene: Scene, stage: Renew) -> None:
    scene.mark("renew", "renewal begins")

    devices = scene.choose(scene.connected(), stage.select)
    await scene.pace(devices, even(len(devices), stage.rate * scene.rate_share), scene.fleet.renew)


async def _command(scene: Scene, stage: Command) -> None:
    recorder, backend = scene.recorder, scene.backend
    if backend is None:
        raise RuntimeError("a part of a scenario with a command has a backend to send it")

    async def command(device: LiveDevice, due: float) -> None:
        late = time.monotonic() - due
        answers = await backend.command(device.machine.group, [device.name], "identify", {}, deadline=stage.deadline)
        for seconds in answers.answered.values():
            recorder.record(Duration.COMMAND, seconds, late)
        recorder.counts[Count.UNANSWERED_COMMANDS] += len(answers.missing) + len(answers.refused)

    devices = scene.choose(scene.connected(), stage.select)
    await scene.pace(devices, even(len(devices), stage.rate * scene.rate_share), command)
