"""Many devices on one loop: connect them, reconnect those that lost their connection, note wrong admissions.

Rules
-----
1. A device may be told to connect at any time (`arrive`), without waiting for the outcome of earlier ones.
2. A device that lost its connection reconnects after the pauses of its group (`device_sim.backoff`), each drawn from
   its own seed.
3. A device that is refused or revoked is left alone. A refusal without a preceding `condemn` is a false refusal; a
   condemned device that gets in is a false admission.
4. Whatever a task of the fleet raises ends the fleet, with that exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from device_sim.behaviour.behaviour import Acting, Behaviour
from device_sim.behaviour.catalogue import behaviours_of
from device_sim.device import Device, Event, State
from device_sim.fleet.live_device import LiveDevice
from device_sim.fleet.streaming import Streaming
from device_sim.fleet.surroundings import Surroundings
from device_sim.link.closure import Closure
from device_sim.link.distance import NEARBY
from device_sim.link.link import Link, StageTimes
from device_sim.link.tls_dial import Endpoint, NotAdmitted
from device_sim.parallel import in_parallel
from device_sim.randomness import randomness_of
from device_sim.scenario.groups import Group
from device_sim.scenario.metrics import Duration
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable

_MOST_KEPT = 1000
_LOOK_AGAIN = 0.05


@dataclass(frozen=True, slots=True)
class Member:
    """A device to create: its name, the group in its certificate, and the group it behaves like."""

    name: str
    topic_group: str
    group: Group
    endpoint: Endpoint | None = None
    """Its own broker address, if it differs from that of the others."""
    client_id: str | None = None
    """Its client identifier, if that is not its name."""


class Fleet:
    """The devices of *members*. An async context manager that leaves no connection behind."""

    def __init__(self, members: Iterable[Member], surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._tasks = asyncio.TaskGroup()
        self._closing = False
        self._running: dict[asyncio.Task[object], LiveDevice] = {}
        self._frozen = False
        self.renewal_failures: list[tuple[float, str]] = []
        self.counters = surroundings.counters
        self.distance = NEARBY
        """The worst that a device's connection had when it was admitted."""
        self.admissions = 0
        self.refusals: list[tuple[str, Closure]] = []
        self.lost: list[tuple[str, Closure]] = []
        self.lost_connections = 0
        self.refused_by_reason: Counter[str] = Counter()
        self.condemned: dict[str, float] = {}
        self.falsely_admitted: set[str] = set()
        self.falsely_refused: dict[str, Closure] = {}
        self.devices: dict[str, LiveDevice] = {}
        behaviours: dict[str, tuple[Behaviour, ...]] = {}
        members = tuple(members)
        ways = {
            member.endpoint: replace(surroundings, endpoint=member.endpoint)
            for member in members
            if member.endpoint is not None
        }
        for member in members:
            shared = behaviours.setdefault(member.group.name, behaviours_of(member.group))
            machine = Device(member.name, member.topic_group, identifier=member.client_id)
            around = surroundings if member.endpoint is None else ways[member.endpoint]
            self.devices[member.name] = LiveDevice(machine, around, member.group, self._ended, shared)
        self.streaming = Streaming(self.devices, surroundings.seed)

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
        """Connect every device, *limit* at a time. A refusal is noted in `refusals`; a lost device reconnects later."""

        async def connect(device: LiveDevice) -> None:
            connection = await self._attempt(device, time.monotonic())
            if connection is not None and progress is not None:
                progress(connection.stage_times)

        await in_parallel(limit, self.devices.values(), connect)

    def arrive(self, device: LiveDevice, due: float) -> None:
        """Tell *device* to connect, which was due at *due* (`time.monotonic`); do not wait for it."""
        self._start("connect", device, self._attempt(device, due))

    def condemn(self, name: str) -> None:
        """Note that *name* is being revoked: from now on refusing it is correct."""
        self.condemned.setdefault(name, math.inf)

    def revoked(self, name: str, at: float) -> None:
        """Note that the service confirmed the revocation of *name* at *at*: from then on admitting it is wrong."""
        self.condemned[name] = min(at, self.condemned.get(name, math.inf))

    def pardon(self, name: str) -> None:
        """Note that the suspension of *name* is being lifted: for now both admission and refusal are acceptable."""
        self.condemned[name] = math.inf

    async def readmit(self, device: LiveDevice, resumed: float, deadline: float) -> float | None:
        """Let *device*, whose suspension ended at *resumed*, try until it is admitted; return when that was.

        After *deadline* seconds its refusal counts as false, and None is returned. A broker not reached then has
        refused nobody: the device stays unreached.
        """
        while (started := time.monotonic()) < resumed + deadline and not self._closing:
            state = device.machine.state
            if state is State.CONNECTED:  # It had lost its connection earlier and reconnected by itself.
                break
            if state is not State.CONNECTING:
                if state is not State.ENROLLED:
                    device.machine.happened(Event.RETRIED)
                with contextlib.suppress(NotAdmitted):
                    await device.connect()
                    self._admitted(device, started)
                    break
            await asyncio.sleep(_LOOK_AGAIN)
        del self.condemned[device.name]
        device.out_since = None  # It was kept out, and correctly.
        if device.is_connected:
            return time.monotonic()
        closure = device.machine.closure
        if closure is not None and closure.is_answer:
            self.falsely_refused[device.name] = closure
        return None

    # ---- what behaviours ask for (`behaviour.Host`)

    @property
    def seed(self) -> int:
        """The scenario's seed."""
        return self._surroundings.seed

    def now(self) -> datetime:
        """Return the true time."""
        return datetime.now(UTC)

    async def renew(self, device: Acting, due: float) -> None:
        """Let *device* renew its certificate, which was due at *due*, and reconnect with the new one."""
        live, renew = self.devices[device.name], self._surroundings.renew
        if renew is None:
            raise RuntimeError("`Target.check` lets no renewal through without a service")
        if live.credential is None or not live.is_connected:
            return
        started = time.monotonic()
        try:
            held = await renew(live.credential)
        except (EnrolmentRefused, EnrolmentUnavailable) as error:
            if live.name not in self.condemned:
                self._not_renewed(live, str(error))
            return
        if not live.renewed(held):  # It lost its connection or fell asleep meanwhile: it reconnects with the new one.
            self.counters.renewed += 1
            return
        await live.close()
        if await self._attempt(live, started) is None:
            self._not_renewed(live, f"the new certificate is not admitted: {live.machine.closure}")
            return
        self.counters.renewed += 1
        self._surroundings.record(Duration.RENEWAL, time.monotonic() - started, started - due)

    def copy_admitted(self, device: Acting, started: float) -> None:
        """Record that a copy of *device*, which dialled at *started*, was admitted."""
        self.counters.copies_admitted += 1
        if started > self.condemned.get(device.name, math.inf):
            self.falsely_admitted.add(device.name)

    def copy_refused(self, device: Acting) -> None:
        """Record that a copy was refused."""
        del device
        self.counters.copies_refused += 1

    def stalled(self) -> None:
        """Record that a device stopped reading."""
        self.counters.stalls += 1

    def _not_renewed(self, device: LiveDevice, why: str) -> None:
        self.counters.failed_renewals += 1
        if len(self.renewal_failures) < _MOST_KEPT:
            self.renewal_failures.append((time.monotonic(), f"{device.name}: {why}"))

    # ----

    async def freeze(self, seconds: float) -> None:
        """Stop devices from connecting or leaving by themselves: what is connected then stays so.

        Connections and departures under way may complete within *seconds*.
        """
        self._frozen = True
        deadline = time.monotonic() + seconds
        while True:
            late = time.monotonic() >= deadline
            moving = [device for device in self.devices.values() if device.is_moving]
            for task, device in self._running.items():
                if (late or not device.is_moving) and not task.cancelling():
                    task.cancel()
            if late or not moving:
                break
            await asyncio.sleep(_LOOK_AGAIN)
        await asyncio.sleep(0)  # The state of a device that has just left follows in the loop's next turn.

    async def quiet(self, seconds: float) -> frozenset[str]:
        """Return when the broker has acknowledged all that connected devices have published, or after *seconds*.

        Returns the names of those it has kept waiting for all of that time on one and the same connection.
        """
        deadline = time.monotonic() + seconds
        waiting = [(device, device.connection) for device in self.devices.values() if device.unacknowledged]
        while waiting and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_AGAIN)
            waiting = [
                (device, link)
                for device, link in waiting
                if device.unacknowledged and device.is_connected and device.connection is link
            ]
        return frozenset(device.name for device, _ in waiting)

    def _start(self, what: str, device: LiveDevice, work: Coroutine[Any, Any, object]) -> None:
        task = self._tasks.create_task(work, name=f"{what} {device.name}")
        self._running[task] = device
        task.add_done_callback(self._running.pop)

    async def _attempt(self, device: LiveDevice, due: float) -> Link | None:
        """Let *device* connect once; return its connection, or None if it was not admitted."""
        started = time.monotonic()
        if device.out_since is None:
            device.out_since = due
        try:
            connection = await device.connect()
        except NotAdmitted as error:
            self._not_admitted(device, error.closure, started)
            return None
        late = started - due
        out_since, device.out_since = device.out_since, None
        stages, record = connection.stage_times, self._surroundings.record
        record(Duration.TCP, stages.tcp, late)
        record(Duration.TLS, stages.tls, late)
        if stages.upgrade:
            record(Duration.UPGRADE, stages.upgrade, late)
        record(Duration.CONNACK, stages.connack, late)
        record(Duration.ADMITTED, stages.total, late)
        if device.name not in self.condemned:
            record(Duration.OUTAGE, time.monotonic() - out_since, 0.0)
        self._admitted(device, started)
        self.distance = self.distance.or_worse(connection.distance())
        return connection

    def _admitted(self, device: LiveDevice, started: float) -> None:
        self.admissions += 1
        self._judge_admission(device, started)
        link = device.connection
        if link is not None and device.is_connected and not self._frozen:
            for behaviour in device.behaviours:
                if behaviour.accompanies:
                    self._start("accompany", device, behaviour.accompany(device, link, self))

    def _judge_admission(self, device: LiveDevice, started: float) -> None:
        if started > self.condemned.get(device.name, math.inf) or _had_expired(device, started):
            self.falsely_admitted.add(device.name)

    def _not_admitted(self, device: LiveDevice, closure: Closure, started: float) -> None:
        if closure.was_let_in:
            self._judge_admission(device, started)
        self.refused_by_reason[f"{closure.layer} {closure.code}"] += 1
        if device.machine.state is State.WAITING:
            self._come_back(device)
            return
        device.out_since = None
        self.refusals.append((device.name, closure))
        self._judge_refusal(device, closure)

    def _ended(self, device: LiveDevice) -> None:
        if self._closing:
            return
        if device.machine.state is State.ENROLLED and device.away is not None:
            self.counters.sleeps += 1
            if not self._frozen:
                self._start("wake", device, self._wake(device, device.away))
            return
        closure = device.machine.closure
        if closure is not None and device.machine.state is not State.ENROLLED:
            self.lost_connections += 1
            if len(self.lost) < _MOST_KEPT:
                self.lost.append((device.name, closure))
            if device.machine.state in {State.REFUSED, State.REVOKED}:
                self._judge_refusal(device, closure)
        if device.machine.state is State.WAITING:
            if device.away is None:  # Otherwise it is away by its own choice.
                device.out_since = time.monotonic()
            self._come_back(device)

    def _judge_refusal(self, device: LiveDevice, closure: Closure) -> None:
        if device.name not in self.condemned and not _had_expired(device, time.monotonic()):
            self.falsely_refused[device.name] = closure

    async def _wake(self, device: LiveDevice, seconds: float) -> None:
        due = time.monotonic() + seconds
        await asyncio.sleep(seconds)
        if device.machine.state is State.ENROLLED:
            await self._attempt(device, due)

    def _come_back(self, device: LiveDevice) -> None:
        if not self._frozen:
            self._start("reconnect", device, self._reconnect(device))

    async def _reconnect(self, device: LiveDevice) -> None:
        """Pause, and try once; a transient failure starts the next such task."""
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
        # Seeded by the device's history, so that each pause differs, but is the same in another run.
        randomness = randomness_of(self._surroundings.seed, device.name, f"backoff {device.machine.dialled} {attempts}")
        if device.away is not None:
            return device.away
        return device.group.backoff.pause(attempts - 1, randomness, device.machine.closure)


def _had_expired(device: LiveDevice, at: float) -> bool:
    """Return whether the certificate of *device* had expired at *at* (`time.monotonic`)."""
    if device.credential is None:
        return False
    return device.credential.not_after.timestamp() < time.time() - (time.monotonic() - at)
