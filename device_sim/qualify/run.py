"""Take one device through the stages.

Rules
-----
1. Each stage has a stand, a directory and, if the device is a program, a process of its own.
2. Hardware keeps its address and credential through all stages; what that makes impossible is skipped and reported.
3. The good stage comes first. A device that is not served in it is judged no further: later results would mean nothing.
4. A stage's window begins when the device first connects: its start-up time, long on a busy machine, is not judged. A
   program that has not connected within a window is judged as one that stayed away.
5. A program that has ended is not waited for: what it did until then is all.
6. A line that came about by slowness, on a machine that others hold, is no verdict (`device_sim.qualify.starvation`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from device_sim.attack.verdict import Judgement, Layer, Outcome, Seen, Verdict
from device_sim.qualify import judging, secrecy, subscription_judging
from device_sim.qualify.attempt import Failures
from device_sim.qualify.device import BadCommand, Device, Hardware, Presence
from device_sim.qualify.enrolment_stand import EnrolmentStand
from device_sim.qualify.judging import Line
from device_sim.qualify.papers import Papers
from device_sim.qualify.stages import Stage, Witness, conduct_of_program
from device_sim.qualify.stand import CannotListen, Stand
from device_sim.qualify.starvation import NOTHING, Waited, Watch, Watching, on_this_machine
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import NONE
from provisioning.program.host_and_port import with_port
from provisioning.program.printable import printable

_TO_COME = 120.0
_TO_END = 5.0
_LOOK = 0.02
_TO_INSTALL = 1.0
"""Seconds for a device to store its next certificate, and to begin to use it by itself."""
_LOOK_AGAIN = 0.2
_TAIL = 4096
_LINE = 200
_LIFE_BEYOND = 5.0

Told = Callable[[Outcome], None]
Begins = Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all stages share."""

    papers: Papers
    device: Device
    directory: Path
    host: str
    port: int
    window: float
    watching: Watching = Watch
    """Begins to measure how long stand and device wait for a core, given the device's session, if it has one here."""
    ignores_staples: bool = False
    """Whether its maker says that it does not check staples, though it may ask for them."""
    leaves: bool | None = None
    """Whether it has left, or ended, in the good stage: it sleeps, or does its work once, and does so in others too.

    None: that stage is left out.
    """
    filters: frozenset[str] = frozenset()
    """What it has subscribed to in the first stage in which it did, if it is hardware, which is not started anew."""


async def qualify(bench: Bench, stages: Sequence[Stage], parallel: int, begins: Begins, told: Told) -> list[Outcome]:
    """Take the device through *stages*, *parallel* at a time; report each line as it is known, and return all."""
    outcomes: dict[str, list[Outcome]] = {}
    failures = Failures()
    waited_failing = NOTHING
    places = asyncio.Semaphore(1 if isinstance(bench.device, Hardware) else parallel)

    async def one(stage: Stage) -> None:
        nonlocal waited_failing, bench
        async with places:
            begins(stage)
            witness, waited = await _witnessed(bench, stage)
        bench = _knowing(bench, stage, witness)
        if witness is not None:
            failures.add(witness.attempts, failing=stage.failing, goes_on=isinstance(bench.device, Hardware))
        if stage.failing:
            waited_failing += waited
        lines = [on_this_machine(line, waited) for line in _judged(stage, bench, witness)]
        outcomes[stage.name] = [_outcome(stage.name, stage.description, line, bench.window) for line in lines]
        for outcome in outcomes[stage.name]:
            told(outcome)

    rest = list(stages)
    if rest and rest[0].name == "good":
        await one(rest.pop(0))
        if any(
            outcome.verdict in {Verdict.FAIL, Verdict.INVALID} and outcome.name == "good.connects"
            for outcome in outcomes["good"]
        ):
            return outcomes["good"]
    try:
        async with asyncio.TaskGroup() as together:
            for stage in rest:
                together.create_task(one(stage), name=stage.name)
    except* (BadCommand, CannotListen, OSError) as errors:
        raise errors.exceptions[0] from None
    together_judged = [on_this_machine(line, waited_failing) for line in judging.waits(failures.sequences)]
    overall = [_outcome("reconnect", "in all stages together", line, bench.window) for line in together_judged]
    for outcome in overall:
        told(outcome)
    return [outcome for stage in stages for outcome in outcomes[stage.name]] + overall


def _knowing(bench: Bench, stage: Stage, witness: Witness | None) -> Bench:
    """Return *bench* with what the stage shows of the device, for those behind it."""
    if witness is None:
        return bench
    if isinstance(bench.device, Hardware) and not bench.filters:
        bench = replace(bench, filters=subscription_judging.filters_of(witness.attempts))
    if stage.name != "good":
        return bench
    return replace(bench, leaves=judging.leaves(witness.attempts) or bool(witness.ending))


def _judged(stage: Stage, bench: Bench, witness: Witness | None) -> list[Line]:
    if witness is None:
        return [_unable(stage, bench)]
    lines = stage.judge(witness)
    if witness.stayed_away and lines[0].verdict is Verdict.SKIP:
        lines = [judging.skipped("tried", stage.description, witness.ending)]
    failed = {line.name for line in lines if line.verdict is Verdict.FAIL}
    wrong = [line for line in conduct_of_program(witness) if line.name not in failed]
    # What the stage itself could not tell is known all the same.
    return [*(line for line in lines if line.name not in {each.name for each in wrong}), *wrong]


async def _witnessed(bench: Bench, stage: Stage) -> tuple[Witness | None, Waited]:
    """Return what was seen, and what was waited; None if this stage is impossible for this device."""
    if _is_impossible(bench, stage):
        return None, NOTHING
    directory = bench.directory / stage.name
    directory.mkdir()
    if not isinstance(bench.device, Hardware):
        life = timedelta(seconds=2 * bench.window + _LIFE_BEYOND) if stage.enrols else None
        bench.papers.write(directory, life=life)
    async with AsyncExitStack() as stack:
        stand, port = await _stand(bench, stage, stack)
        service = await stack.enter_async_context(_enrolment_stand(bench, stage))
        values = _values(bench, directory, port, service.port if stage.enrols else None)
        presence = await stack.enter_async_context(bench.device.present(values, directory / "device.log"))
        watch = bench.watching(presence.session)
        looking = asyncio.create_task(watch.keep_looking(), name="watch")
        stack.callback(looking.cancel)
        if stage.enrols:
            breaking = asyncio.create_task(_break_when_renewed(service, stand), name="break")
            stack.callback(breaking.cancel)
        await _waited_for(bench, stage, stand, service, presence, watch)
        # Before the device is stopped: that would end its connections too.
        watch.look()
        return _witness(bench, directory, stand, service, presence), watch.waited


def _is_impossible(bench: Bench, stage: Stage) -> bool:
    if isinstance(bench.device, Hardware) and (stage.enrols or stage.trouble != NONE):
        return True
    return stage.staples_wrongly and bench.ignores_staples


async def _stand(bench: Bench, stage: Stage, stack: AsyncExitStack) -> tuple[Stand, int]:
    """Return the open stand, and the port where the device is to connect: the stand's, or that of trouble before it."""
    port = bench.port if isinstance(bench.device, Hardware) else 0
    stand = await stack.enter_async_context(Stand(bench.papers, stage.conduct, bench.host, port))
    if stage.trouble == NONE:
        return stand, stand.port
    proxy = await stack.enter_async_context(Proxy(bench.host, stand.port, listen=bench.host))
    proxy.set(stage.trouble)
    return stand, proxy.port


def _enrolment_stand(bench: Bench, stage: Stage) -> EnrolmentStand:
    return EnrolmentStand(
        bench.papers,
        bench.host,
        paper=stage.enrolment_paper,
        stapled=stage.enrolment_staple,
        status=stage.enrolment_status,
        retry_after=stage.retry_after,
        other_key=stage.other_key,
    )


async def _waited_for(
    bench: Bench, stage: Stage, stand: Stand, service: EnrolmentStand, presence: Presence, watch: Watch
) -> None:
    """Wait until the device has come and done enough, is gone, or its window is over."""

    def gone() -> bool:  # On a slow network it may be gone before its data arrives.
        return presence.gone and stage.trouble == NONE

    await _until(
        _TO_COME if isinstance(bench.device, Hardware) else bench.window,
        lambda: bool(stand.attempts or service.arrivals) or gone(),
    )
    if stand.attempts:  # Rule 4.
        watch.begin()
    await _until(bench.window, lambda: gone() or stage.enough(stand.attempts, service.arrivals), stand.change)
    if gone():  # Its data has arrived but is still to be read.
        await _moment()
        await _until(_TO_END, lambda: all(each.ended is not None for each in stand.attempts), stand.change)


def _witness(bench: Bench, directory: Path, stand: Stand, service: EnrolmentStand, presence: Presence) -> Witness:
    """Return what was seen by now, which stays as it is."""
    log = directory / "device.log"
    output = secrecy.read_output(log)
    # What a program has left running is the device: it has not ended.
    status = presence.status if presence.gone else None
    return Witness(
        attempts=[replace(attempt, packets=list(attempt.packets)) for attempt in stand.attempts],
        asked=list(service.asked),
        arrivals=[replace(arrival) for arrival in service.arrivals],
        status=status,
        window=bench.window,
        crl_given=bench.device.mentions("crl"),
        ending=judging.ending(status, _last_words(log)),
        est_given=bench.device.mentions("est_url"),
        crash=secrecy.crash(presence.status, output),
        leak=secrecy.leaked(output, directory / "device.key"),
        exposed=secrecy.exposed(directory),
        leaves=bench.leaves,
        filters=bench.filters,
    )


async def _break_when_renewed(service: EnrolmentStand, stand: Stand) -> None:
    """Break the device's connections a while after it has its next certificate: it is to use that when it returns."""
    await service.issued.wait()
    await asyncio.sleep(_TO_INSTALL)
    stand.drop_all()


async def _moment() -> None:
    await asyncio.sleep(_LOOK)


async def _until(seconds: float, enough: Callable[[], bool], change: Callable[[], Awaitable[None]] = _moment) -> None:
    """Wait until *enough*, *seconds* at most.

    It is rechecked after each *change*, as no single event tells which connection was used, and periodically: the end
    of a device's last process is not a change.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not enough():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN):
                        await change()


def _last_words(log: Path) -> str:
    """Return the last line that the device has printed, as far as it is printable."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    return next((printable(line.strip())[-_LINE:] for line in reversed(lines) if line.strip()), "")


def _values(bench: Bench, directory: Path, port: int, service: int | None) -> dict[str, str]:
    identity = bench.papers.identity
    topic = f"fleet/{identity.group}/{identity.name}"
    return {
        "host": bench.host,
        "port": str(port),
        "cafile": str(directory / "ca.crt"),
        "crl": str(directory / "crl.pem"),
        "cert": str(directory / "device.crt"),
        "key": str(directory / "device.key"),
        "client_id": identity.name,
        "topic": f"{topic}/telemetry",
        "commands": f"{topic}/cmd/#",
        "est_url": f"https://{with_port(bench.host, service)}" if service is not None else "",
        "dir": str(directory),
    }


def _unable(stage: Stage, bench: Bench) -> Line:
    why = "its certificate would have to be replaced" if stage.enrols else "it keeps its address: only with --exec"
    if stage.staples_wrongly and bench.ignores_staples:
        why = "by --ignores-staples it does not check: only a CRL, or asking by itself, tells it of a revocation"
    return judging.skipped("tried", stage.description, why)


def _outcome(stage: str, description: str, line: Line, window: float) -> Outcome:
    seen = Seen(Layer.DEVICE, line.seen) if line.seen else None
    judgement = Judgement(line.verdict, line.why)
    return Outcome(f"{stage}.{line.name}", f"{description}: {line.right}", (line.right,), window, judgement, seen)
