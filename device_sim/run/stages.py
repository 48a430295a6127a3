"""What the stages of a scenario do: each starts actions at the times its pacer gives, without waiting for replies.

Rules
-----
1. What is measured is recorded with how late it began.
2. A device that should be out and is not, or is wrongly admitted, is counted, and the stage goes on.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

from device_sim.device import Event, State
from device_sim.fleet.live_device import LiveDevice
from device_sim.fleet.revocation_trial import cut_off, try_again
from device_sim.link.closure import BROKEN
from device_sim.link.distance import ADMISSION
from device_sim.link.tls_dial import NotAdmitted
from device_sim.parallel import in_parallel
from device_sim.randomness import randomness_of
from device_sim.run.scene import Scene
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.pacer import arrivals, even, within
from device_sim.scenario.stages import Command, Hold, Ramp, Renew, Restart, Revoke, Stage, Storm, Suspend, Trouble
from device_sim.trouble.trouble import NONE, Direction
from device_sim.trouble.trouble import Trouble as TroubleState
from provisioning.client.operator import RequestRefused, ServiceUnavailable

_SETTLE = 30.0
_LOOK_AGAIN = 0.05
_MOST_AGAIN = 20
_AGAIN_AT_ONCE = 8
_CLOSING, _COMMAND = 1, 2
"""Round trips that they need."""


@dataclass(frozen=True, slots=True)
class Acted:
    """On how many devices a stage was to act, and on how many it has: with none connected that is nothing at all."""

    chosen: int = 0
    done: int = 0

    def __add__(self, other: Acted) -> Acted:
        return Acted(self.chosen + other.chosen, self.done + other.done)


async def play(scene: Scene, number: int, stage: Stage) -> Acted:
    """Play *stage*, the scenario's *number*-th (1, 2, …); return what came of it, if a user may order such a stage."""
    if scene.stopping:
        return Acted()
    scene.number = number
    scene.done = 0.0
    return await _play_one(scene, stage)


def label_of(stage: Stage) -> str:
    """Return what a stage does, in a few words."""
    match stage:
        case Ramp():
            return f"ramp to {_percent(stage.to)}, {stage.rate:g}/s"
        case Hold():
            return f"hold {stage.seconds:g} s"
        case Storm():
            return f"storm {_percent(stage.drop)}"
        case Revoke():
            return f"revoke {_percent(stage.select)}, {stage.rate:g}/s"
        case Suspend():
            return f"suspend {_percent(stage.select)}, {stage.rate:g}/s"
        case Trouble():
            return f"trouble {trouble_in_words(stage.state())}, {stage.seconds:g} s"
        case Renew():
            return f"renew {_percent(stage.select)}, {stage.rate:g}/s"
        case Command():
            return f"command {_percent(stage.select)}, {stage.rate:g}/s" + (", asleep" if stage.asleep else "")
        case Restart():
            return "broker restart"


def _percent(share: float) -> str:
    """Return *share* in percent: a thousandth of a large fleet is not 0 %."""
    return f"{100 * share:.6g}%"


async def _play_one(scene: Scene, stage: Stage) -> Acted:
    match stage:
        case Ramp():
            await _ramp(scene, stage)
        case Hold():
            await _hold(scene, stage)
        case Storm():
            return await _storm(scene, stage)
        case Revoke():
            return await _revoke(scene, stage)
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
    return Acted()


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


async def _storm(scene: Scene, stage: Storm) -> Acted:
    cuts = 0
    devices = scene.choose(scene.connected(), stage.drop)
    randomness = randomness_of(scene.scenario.seed, "stage", f"{scene.number} breaks")
    scene.mark("storm", f"{len(devices)} connections break")

    async def cut(device: LiveDevice, _due: float) -> None:
        nonlocal cuts
        cuts += device.is_connected
        device.cut()

    await scene.pace(devices, within(len(devices), stage.within, randomness), cut)
    await scene.settle(lambda: not any(device.is_undecided for device in devices), stage.settle)
    return Acted(len(devices), cuts)


async def _restart(scene: Scene, stage: Restart) -> None:
    # The conductor has restarted the broker: all devices are disconnected and reconnecting.
    await scene.settle(lambda: not any(device.is_undecided for device in scene.told_devices), stage.settle)


async def _revoke(scene: Scene, stage: Revoke) -> Acted:
    done = 0
    operator = scene.target.operator
    if operator is None:
        raise RuntimeError("Target.check lets no revocation through without an operator")
    recorder, fleet = scene.recorder, scene.fleet

    async def revoke(device: LiveDevice, due: float) -> None:
        nonlocal done
        if not device.is_connected:
            return  # It lost its connection after it was chosen.
        fleet.condemn(device.name)
        scene.mark("revoke", device.name)
        late = time.monotonic() - due
        try:
            cut = await cut_off(operator, device, scene.patience(stage.deadline, _CLOSING), stage.reason)
        except (RequestRefused, ServiceUnavailable) as error:
            scene.not_done(device, error)
            return
        scene.target.fleet.revoked(device.name)
        fleet.revoked(device.name, time.monotonic())
        recorder.counts[Count.REVOKED] += 1
        done += 1
        broken = cut.closure is not None and cut.closure.code == BROKEN
        if cut.closure is not None and not broken:
            recorder.record(Duration.REVOKED_CLOSED, cut.since_sent, late)
            scene.took(cut.since_answer, stage.deadline, f"{device.name} was disconnected")
        await _stays_out(scene, device, stage.deadline if cut.closure is not None else 0.0)
        if not broken:  # If its network failed first, that is no credit to the broker: it reconnects, to be refused.
            await _tries_again(scene, device, Duration.REVOKED_REFUSED)

    devices = scene.choose(scene.connected(), stage.select)
    await scene.pace(devices, even(len(devices), stage.rate * scene.rate_share), revoke)
    return Acted(len(devices), done)


async def _stays_out(scene: Scene, device: LiveDevice, deadline: float) -> None:
    """Have *device*, which must be out, count as falsely admitted unless it is disconnected by the *deadline*."""
    begun = time.monotonic()
    if await _out(device, scene.patience(deadline, _CLOSING) if deadline else 0.0):
        scene.took(time.monotonic() - begun, deadline, f"{device.name} was out")
    else:
        await _stayed_in(scene, device)


async def _out(device: LiveDevice, seconds: float) -> bool:
    """Return whether *device*, which must be out, is disconnected within *seconds*.

    A device cut off without a reason reconnects at once, perhaps before the operator's call was answered. That attempt
    is no false admission yet; but its session must be closed as well.
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
    """Record that *device* was not disconnected; it leaves by itself, so that its next attempts can be observed."""
    scene.recorder.counts[Count.STAYED_IN] += 1
    scene.fleet.falsely_admitted.add(device.name)
    scene.mark("stayed in", device.name)
    # With a DISCONNECT: after an abrupt end OpenSSL would discard the TLS session, whose resumption is to be tried.
    await device.close()


async def _tries_again(scene: Scene, device: LiveDevice, refused: Duration | None) -> None:
    """Let *device*, which must stay out, try in both ways; its refusal is recorded as *refused*."""
    recorder, fleet = scene.recorder, scene.fleet
    for retry in await try_again(device):
        if retry.closure is None:
            recorder.counts[Count.READMITTED] += 1
            fleet.falsely_admitted.add(device.name)
            scene.mark("readmitted", device.name)
        else:
            fleet.refused_by_reason[f"{retry.closure.layer} {retry.closure.code}"] += 1
            if refused is not None and retry.closure.is_answer:
                recorder.record(refused, retry.seconds, 0.0)


async def stay_out(scene: Scene) -> None:
    """Let revoked devices try once more at the very end: a broker may have forgotten the revocation since.

    Limited to a sample of very many: each costs a handshake.
    """
    fleet = scene.fleet
    out = [
        device
        for name, device in sorted(fleet.devices.items())
        if math.isfinite(fleet.condemned.get(name, math.inf)) and name not in fleet.falsely_admitted
    ]
    chosen = randomness_of(scene.scenario.seed, "run", "out").sample(out, min(len(out), _MOST_AGAIN))

    async def try_once(device: LiveDevice) -> None:
        if device.is_connected or device.machine.state is State.CONNECTING:
            return
        if device.machine.state is not State.ENROLLED:
            device.machine.happened(Event.RETRIED)
        try:
            await device.connect()
        except NotAdmitted as error:
            if not error.closure.was_let_in:
                return
        scene.recorder.counts[Count.READMITTED] += 1
        fleet.falsely_admitted.add(device.name)
        scene.mark("readmitted", f"{device.name}, when all was over")
        await device.close()

    await in_parallel(_AGAIN_AT_ONCE, chosen, try_once)


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
        device.keep_tls_session()
        scene.mark("suspend", device.name)
        late, sent = time.monotonic() - due, time.monotonic()
        try:
            await operator.suspend(device=device.name)
        except (RequestRefused, ServiceUnavailable) as error:
            scene.not_done(device, error)
            return
        fleet.revoked(device.name, time.monotonic())
        recorder.counts[Count.SUSPENDED] += 1
        answered = time.monotonic()
        done, _ = await asyncio.wait([link.closed], timeout=scene.patience(stage.deadline, _CLOSING))
        if done:
            closure = link.closed.result()
            if closure.code != BROKEN:
                recorder.record(Duration.SUSPENDED_CLOSED, closure.at - sent, late)
                scene.took(closure.at - answered, stage.deadline, f"{device.name} was disconnected")
        await _stays_out(scene, device, stage.deadline if done else 0.0)
        await _tries_again(scene, device, None)
        await scene.sleep(stage.seconds)
        fleet.pardon(device.name)
        resumed = time.monotonic()
        try:
            await operator.resume(device=device.name)
        except (RequestRefused, ServiceUnavailable) as error:
            scene.not_done(device, error)
            return
        admitted = await fleet.readmit(device, resumed, scene.patience(stage.deadline, ADMISSION))
        if admitted is not None:
            recorder.counts[Count.RESUMED] += 1
            recorder.record(Duration.RESUMED_ADMITTED, admitted - resumed, 0.0)
            scene.took(admitted - resumed, stage.deadline, f"{device.name} was admitted again")

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
        begun = time.monotonic()
        until = begun + scene.patience(stage.deadline, _COMMAND)
        if stage.asleep:
            await scene.settle(lambda: device.is_asleep, stage.deadline)
        elif device.is_moving:  # It is admitted, and has not heard yet that it is subscribed: it is owed none before.
            await scene.settle(lambda: not (device.is_connected and device.is_moving), stage.deadline)
        left = max(until - time.monotonic(), 0.0)
        recorder.counts[Count.COMMANDS] += 1
        answers = await backend.command(device.machine.group, [device.name], "identify", {}, deadline=left)
        for name, seconds in answers.answered.items():
            if not stage.asleep:  # Late is also what had to wait until the broker had acknowledged earlier ones.
                recorder.record(Duration.COMMAND, seconds, answers.sent[name] - due)
        if answers.answered:
            scene.took(time.monotonic() - begun, stage.deadline, f"{device.name} had answered a command")
        recorder.counts[Count.UNANSWERED_COMMANDS] += len(answers.missing) + len(answers.refused)

    devices = scene.choose(scene.sleepers() if stage.asleep else scene.connected(), stage.select)
    await scene.pace(devices, even(len(devices), stage.rate * scene.rate_share), command)
