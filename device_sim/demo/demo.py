"""The whole product in one story: enrol, connect, stream, command, revoke, and six intruders that must not get in.

Theory
------
The stage (`stage`) is a provisioning service and a broker, started as any user would. The fleet publishes from the
moment it is connected to the end of the story, so that commands, revocations and intruders all happen under traffic,
and it is visible that they do not disturb the others.

The claims at the end, and what each is based on:

* every message arrived, once, in order: `tally`, published against received;
* a revocation closes the live session, and a revoked device stays out: `revocation_trial`;
* no bad device gets in, and each gets the reason: `intruders`.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from device_sim.core_wait import CoreWatch
from device_sim.credentials.credential import HeldCredential, enrol
from device_sim.demo.demo_plan import DemoPlan
from device_sim.fleet.backend import Backend
from device_sim.fleet.fleet import Fleet, Member
from device_sim.fleet.intruders import Finding, Outcome, Scene, try_all
from device_sim.fleet.revocation_trial import cut_off, try_again
from device_sim.fleet.surroundings import Counters, Surroundings
from device_sim.fleet.tally import account, is_complete, total
from device_sim.latency import Latency, LatencySummary
from device_sim.link.closure import Closure
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import StageTimes
from device_sim.link.shared_context import SharedContext
from device_sim.parallel import in_parallel
from device_sim.report import Report
from device_sim.scenario.groups import Group, Telemetry
from device_sim.stage.stage import Stage, raised
from device_sim.view import Progress, Traffic, View
from provisioning.client.est import EstClient
from provisioning.pki.role import Role
from provisioning.pki.tls import client_context

GROUP = "meters"
BACKEND = "backend"
INSIDER = "insider-1"
LATECOMER = "latecomer-1"

_ENROLLING_AT_ONCE = 16
_CONNECTING_AT_ONCE = 16
_SHORT_LIFE = 10
# Not bounds on speed: on a machine that others hold, slow results still arrive and are waited for.
_COMMAND_DEADLINE = 60.0
_DRAIN_DEADLINE = 60.0
_CLOSE_DEADLINE = 30.0
# Bounds that a slow machine excuses: anything later was late.
_SLOWEST_CLOSE = 3.0
_SLOWEST_HALF_MS = 2000.0
_MOST_SHOWN = 3
KEEP_ALIVE_TIMEOUT = 0x8D


Finished = Callable[[Report, Stage], Awaitable[None]]
"""Called with the result while service and broker still run."""


async def play(plan: DemoPlan, directory: Path, view: View, finished: Finished) -> None:
    """Play the whole story in *directory*, with its own service and broker."""
    view.chapter("Provisioning and broker start")
    async with raised(directory, view.said) as stage, asyncio.TaskGroup() as watchers:
        watching = watchers.create_task(stage.watch(), name="watch the stage")
        story = _Story(plan, stage, view)
        await story.tell()
        story.leave_credentials()
        await finished(story.report, stage)
        watching.cancel()


class _Story:
    def __init__(self, plan: DemoPlan, stage: Stage, view: View) -> None:
        self._plan = plan
        self._stage = stage
        self._view = view
        self._credentials: dict[str, HeldCredential] = {}
        self.report = Report(plan.seed, plan.devices)

    async def tell(self) -> None:
        """Tell it."""
        processes = {"provisioning": self._stage.provisioning.pid, "the broker": self._stage.hosted.pid}
        watch = CoreWatch("the fleet", processes)
        await self._play()
        self.report.judge_machine(watch.shares())

    async def _play(self) -> None:
        await self._enrol()
        async with AsyncExitStack() as stack:
            keep_alive = await stack.enter_async_context(KeepAlive())
            surroundings = Surroundings(
                self._stage.broker,
                SharedContext(lambda: client_context(self._stage.anchors)),
                keep_alive,
                Counters(),
                self._plan.seed,
            )
            conduct = Group(name=GROUP, telemetry=Telemetry(every=self._plan.interval))
            backend = Backend(BACKEND, self._plan.names)
            stack.push_async_callback(backend.close)
            fleet = await stack.enter_async_context(
                Fleet([Member(name, GROUP, conduct) for name in self._plan.names], surroundings)
            )
            for name, device in fleet.devices.items():
                device.issued(self._credentials[name])
            await self._connect(fleet, backend, keep_alive)
            async with asyncio.TaskGroup() as tasks:
                streaming = tasks.create_task(fleet.streaming.run(), name="stream")
                await self._stream(fleet, backend)
                await self._command(fleet, backend)
                await self._revoke(fleet)
                await self._intrude(fleet, keep_alive)
                streaming.cancel()
            await self._count(fleet, backend)

    # ---- the chapters

    async def _enrol(self) -> None:
        plan, operator = self._plan, self._stage.operator
        self._view.chapter(f"{plan.devices} devices enrol: each makes its key, EST certifies it")
        tokens = {token.device: token.token for token in await operator.create_tokens(devices=plan.names, group=GROUP)}
        for request in (
            operator.create_tokens(device=BACKEND, role=Role.SERVICE),
            operator.create_tokens(device=INSIDER, group=GROUP),
            operator.create_tokens(device=LATECOMER, group=GROUP, lifetime_seconds=_SHORT_LIFE),
        ):
            (token,) = await request
            tokens[token.device] = token.token
        latency = Latency()
        randomness = random.Random(plan.seed)  # noqa: S311 - pauses only
        started = time.monotonic()

        async with EstClient(self._stage.provisioning_url, self._stage.anchors, connections=_ENROLLING_AT_ONCE) as est:

            async def one(name: str) -> None:
                began = time.monotonic()
                self._credentials[name] = await enrol(est, name, tokens[name], randomness)
                latency.record(time.monotonic() - began)

            async with self._view.watching(
                lambda: Progress("enrolled", len(self._credentials), len(tokens), time.monotonic() - started)
            ):
                await in_parallel(_ENROLLING_AT_ONCE, [name for name in tokens if name is not None], one)
        seconds = time.monotonic() - started
        self.report.check(
            "every device enrols",
            len(self._credentials) == len(tokens),
            f"{len(self._credentials)} certificates in {seconds:.1f} s ({len(self._credentials) / seconds:.0f}/s), "
            f"p99 {latency.summary().p99:.0f} ms",
        )
        self.report.fact("enrolment", {"seconds": seconds, "milliseconds": latency.summary().as_dict()})

    async def _connect(self, fleet: Fleet, backend: Backend, keep_alive: KeepAlive) -> None:
        plan = self._plan
        self._view.chapter("The backend and all devices connect over mutual TLS")
        context = self._credentials[BACKEND].context(self._stage.anchors)
        await backend.connect(self._stage.broker, context, keep_alive)
        handshakes = Latency()
        started = time.monotonic()

        def connected(stages: StageTimes) -> None:
            handshakes.record(stages.total)

        async with self._view.watching(
            lambda: Progress("connected", fleet.connected, plan.devices, time.monotonic() - started)
        ):
            await fleet.connect(_CONNECTING_AT_ONCE, connected)
        seconds = time.monotonic() - started
        summary = handshakes.summary()
        self.report.check(
            "every device connects",
            fleet.connected == plan.devices,
            f"{fleet.connected} of {plan.devices} in {seconds:.1f} s, admitted in p50 {summary.p50:.0f} ms, "
            f"p99 {summary.p99:.0f} ms" + _examples([f"{name}: {closure}" for name, closure in fleet.refusals]),
            late=_all_late(closure for _, closure in fleet.refusals),
        )
        self.report.fact("connection", {"seconds": seconds, "milliseconds": summary.as_dict()})

    async def _stream(self, fleet: Fleet, backend: Backend) -> None:
        plan = self._plan
        self._view.chapter(f"Telemetry, QoS 1, every device each {plan.interval:g} s")
        # A full collection walks all of the fleet's objects, nearly all long-lived, while messages wait: it more than
        # doubles the 99th percentile of the latency, which would then be blamed on the broker.
        gc.collect()
        gc.freeze()
        started = time.monotonic()
        window = _Window(started)

        def state() -> Traffic:
            now = time.monotonic()
            return Traffic(
                elapsed=now - started,
                total=plan.seconds,
                connected=fleet.connected,
                devices=plan.devices,
                rate=window.rate(now, backend.received),
                received=backend.received,
                unacknowledged=sum(len(device.unacknowledged) for device in fleet.devices.values()),
                latency=backend.latency.summary(),
                lateness=fleet.streaming.lateness.summary(),
            )

        async with self._view.watching(state):
            await asyncio.sleep(plan.seconds)
        latency = backend.latency.summary()
        self.report.fact(
            "telemetry",
            {
                "seconds": plan.seconds,
                "messages_per_second": backend.received / plan.seconds,
                "latency_ms": latency.as_dict(),
                "generator_late_ms": fleet.streaming.lateness.summary().as_dict(),
            },
        )
        self.report.check(
            "telemetry flows",
            backend.received > 0 and fleet.connected == plan.devices and latency.p50 <= _SLOWEST_HALF_MS,
            f"{backend.received / plan.seconds:.0f} msg/s, end to end p50 {latency.p50:.2f} ms, "
            f"p95 {latency.p95:.2f} ms, p99 {latency.p99:.2f} ms",
            late=_all_late(closure for _, closure in fleet.lost),
        )

    async def _command(self, fleet: Fleet, backend: Backend) -> None:
        self._view.chapter("The backend sends every device a command")
        answers = await backend.command(GROUP, list(fleet.devices), "identify", {}, _COMMAND_DEADLINE)
        latency = _summarise(answers.answered.values())
        self._view.said(f"{len(answers.answered)} answers, p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms")
        self.report.check(
            "every device answers a command",
            len(answers.answered) == len(fleet.devices),
            f"{len(answers.answered)} of {len(fleet.devices)}, p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms"
            + _examples(sorted(answers.missing)),
            late=not answers.refused,
        )
        self.report.fact("command_ms", latency.as_dict())

    async def _revoke(self, fleet: Fleet) -> None:
        chosen = self._plan.to_revoke
        self._view.chapter(f"The operator revokes {len(chosen)} connected devices")
        cuts = [await cut_off(self._stage.operator, fleet.devices[name], _CLOSE_DEADLINE) for name in chosen]
        self._view.revocations(cuts)
        closed = sum(cut.told_why for cut in cuts)
        slowest = max(cut.since_sent for cut in cuts)
        self.report.check(
            "a revocation closes the live session",
            closed == len(chosen) and slowest <= _SLOWEST_CLOSE,
            f"{closed} of {len(chosen)} told why and closed, slowest {slowest * 1000:.1f} ms after the call",
            security=True,
            late=closed == len(chosen),
        )
        self.report.fact(
            "revocations",
            [
                {
                    "device": cut.device,
                    "ms_since_sent": cut.since_sent * 1000,
                    "ms_since_answer": cut.since_answer * 1000,
                    "told": str(cut.closure) if cut.closure is not None else None,
                }
                for cut in cuts
            ],
        )
        self._view.chapter("The revoked devices try again")
        retries = [retry for cut in cuts if cut.closure for retry in await try_again(fleet.devices[cut.device])]
        refused = [retry for retry in retries if retry.told_why]
        resumed = sum(retry.tls_resumed for retry in refused)
        told = sorted({str(retry.closure) if retry.closure else f"{retry.device} got in" for retry in retries})
        self._view.said(
            f"{len(refused)} of {len(retries)} attempts refused, {resumed} of them on a resumed TLS session"
        )
        for text in told:
            self._view.said(f"told: {text}")
        self.report.check(
            "a revoked device stays out",
            bool(refused) and refused == retries,
            f"{len(refused)} of {len(retries)} attempts refused, {resumed} on a resumed TLS session"
            + _examples([f"{retry.device}: {retry.closure or 'admitted'}" for retry in retries if not retry.told_why]),
            security=True,
        )
        self.report.fact("retries", {"made": len(retries), "refused": len(refused), "resumed": resumed, "told": told})

    async def _intrude(self, fleet: Fleet, keep_alive: KeepAlive) -> None:
        self._view.chapter("Six devices that must not get in")
        expired = self._credentials[LATECOMER]
        wait = (expired.not_after - datetime.now(UTC)).total_seconds() + 1.0
        if wait > 0:
            self._view.said(f"waiting {wait:.0f} s for a certificate to expire")
            await asyncio.sleep(wait)
        victim = next(name for name in fleet.devices if name not in self._plan.to_revoke)
        scene = Scene(
            self._stage.broker,
            self._stage.anchors,
            keep_alive,
            self._credentials[victim].identity,
            self._credentials[INSIDER],
            expired,
        )
        untouched = fleet.devices[victim].connection
        findings = await try_all(scene)
        self._view.findings(findings)
        self._judge(findings, await self._revoked_that_are_let_in(fleet))
        still = untouched is not None and not untouched.closed.done()  # A device that is put out comes again at once.
        self.report.check(
            "their victim notices nothing",
            still,
            f"{victim} is connected still" if still else f"{victim} was put out",
            security=True,
            late=_all_late(closure for name, closure in fleet.lost if name == victim),
        )

    async def _revoked_that_are_let_in(self, fleet: Fleet) -> list[str]:
        """Return the revoked devices that get in now: a broker may have forgotten the revocation since."""
        devices = [fleet.devices[name] for name in self._plan.to_revoke]
        out = [device for device in devices if not device.is_connected]
        return [
            f"{retry.device}, revoked" for device in out for retry in await try_again(device) if retry.closure is None
        ]

    def _judge(self, findings: list[Finding], revoked: list[str]) -> None:
        exact = sum(finding.outcome is Outcome.REFUSED for finding in findings)
        inside = [finding.case.name for finding in findings if finding.outcome is Outcome.ADMITTED] + revoked
        other = [
            f"{f.case.name}: {f.closure}" for f in findings if f.outcome not in {Outcome.REFUSED, Outcome.ADMITTED}
        ]
        self.report.check("no bad device gets in", not inside, ", ".join(inside) or "none did", security=True)
        self.report.check(
            "every bad device is told why",
            exact == len(findings),
            f"{exact} of {len(findings)}" + _examples(other),
            late=_all_late(
                finding.closure for finding in findings if finding.outcome is not Outcome.REFUSED and finding.closure
            ),
        )
        self.report.fact(
            "intruders",
            [
                {
                    "case": finding.case.name,
                    "expected": f"{finding.case.layer} {finding.case.code}",
                    "observed": str(finding.closure) if finding.closure is not None else None,
                    "outcome": str(finding.outcome),
                    "ms": finding.seconds * 1000,
                }
                for finding in findings
            ],
        )

    async def _count(self, fleet: Fleet, backend: Backend) -> None:
        self._view.chapter("Every message is counted")
        living = [device for name, device in fleet.devices.items() if name not in self._plan.to_revoke]
        # First: an acknowledgement does not wake those waiting for arrivals.
        kept_waiting = await fleet.quiet(_DRAIN_DEADLINE)
        try:
            async with asyncio.timeout(_DRAIN_DEADLINE):
                await backend.until(
                    lambda: all(is_complete(device.sent(), backend.checks[device.name]) for device in living)
                )
        except TimeoutError:
            pass  # What has not arrived by now is lost, and counted as such.
        sums = total(
            account(device.sent(kept_waiting=name in kept_waiting), backend.checks[name])
            for name, device in fleet.devices.items()
        )
        altered = backend.altered + fleet.counters.altered
        self.report.check(
            "every message arrives, once, in order",
            sums.clean and not altered and not fleet.counters.refused and not kept_waiting,
            f"{sums.published} published, {sums.received} received: {sums.lost} lost, {sums.duplicated} duplicated, "
            f"{sums.out_of_order} out of order, {sums.in_flight} cut off in flight"
            + _examples([f"{name}: not acknowledged" for name in sorted(kept_waiting)])
            + (f", {altered} altered" + _examples([what for _, what in backend.altered_examples]) if altered else ""),
        )
        self.report.check(
            "nothing forged is delivered",
            backend.unexpected == sums.forged == 0,
            f"{backend.unexpected + sums.forged} unexpected messages"
            + _examples([what for _, what in backend.unexpected_examples]),
            security=True,
        )
        lost = [(name, closure) for name, closure in fleet.lost if name not in self._plan.to_revoke]
        strangers = [f"{name}: {closure}" for name, closure in lost]
        self.report.check(
            "no other device is disturbed",
            not strangers and fleet.connected == len(living),
            f"{fleet.connected} of {len(living)} connected at the end, {len(strangers)} interruptions"
            + _examples(strangers),
            late=_all_late(closure for _, closure in lost),
        )
        counters = fleet.counters
        self.report.fact(
            "messages", {**sums.as_dict(), "held_back": counters.held_back, "skipped": fleet.streaming.skipped}
        )

    def leave_credentials(self) -> None:
        """Write some credentials into the stage's directory, for the user's own experiments."""
        directory = self._stage.directory / "credentials"
        directory.mkdir(mode=0o700)
        names = self._plan.names
        revoked = self._plan.to_revoke
        spare = next(name for name in names if name not in revoked)
        chosen = {"device": spare, "service": BACKEND, "expired": LATECOMER, "revoked": revoked[0]}
        for stem, name in chosen.items():
            self._credentials[name].write(directory, stem)


def _all_late(closures: Iterable[Closure]) -> bool:
    """Return whether all *closures* (possibly none) mean that one side did not hear from the other in time."""
    return all(closure.code == "timeout" or closure.number == KEEP_ALIVE_TIMEOUT for closure in closures)


class _Window:
    """Messages a second since the last look."""

    def __init__(self, now: float) -> None:
        self._then = now
        self._count = 0
        self._rate = 0.0

    def rate(self, now: float, count: int) -> float:
        if now - self._then >= 1.0:
            self._rate = (count - self._count) / (now - self._then)
            self._then, self._count = now, count
        elif not self._rate and now > self._then:
            return count / (now - self._then)
        return self._rate


def _summarise(durations: Iterable[float]) -> LatencySummary:
    latency = Latency()
    for seconds in durations:
        latency.record(seconds)
    return latency.summary()


def _examples(texts: list[str]) -> str:
    if not texts:
        return ""
    more = f" and {len(texts) - _MOST_SHOWN} more" if len(texts) > _MOST_SHOWN else ""
    return "; " + ", ".join(texts[:_MOST_SHOWN]) + more
