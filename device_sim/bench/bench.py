"""Run a benchmark: clients connect and publish at scheduled times, and everything is counted.

Theory
------
An open model, as in scenarios: the times at which clients connect and publish are fixed beforehand, so a slow broker
does not slow its own load down; latencies count from when an action was due. What the generator could not send in time
is counted as skipped, and makes the benchmark INVALID when it is more than a little.

Does not handle: reconnection. A connection that ends is counted with its reason, and when all have ended, so does the
benchmark; to benchmark storms, use a scenario.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random

from device_sim.bench.arrivals import Arrivals
from device_sim.bench.keyring import Keyring, Party
from device_sim.bench.payload import NUMBERED, AlteredPayload, Stamp, payload, stamp_of, this_clock
from device_sim.bench.plan import Kind, Plan, topic_for
from device_sim.fleet.schedule import Schedule
from device_sim.interruption import Interruption
from device_sim.latency import Latency
from device_sim.link.closure import Closure
from device_sim.link.driver import Driver
from device_sim.link.endpoint import transport_of
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import FAILURE, Link, NotConnected, SubscriptionRefused, Terms
from device_sim.link.shared_context import SharedContext
from device_sim.link.tls_dial import Endpoint, NotAdmitted
from device_sim.run.health import GeneratorWatch, HealthSample, faults, why_skipped
from device_sim.scenario.model import GeneratorLimits
from device_sim.scenario.pacer import even
from provisioning.pki.tls import client_context

_DRAIN_DEADLINE = 10.0
_LOOK_AGAIN = 0.05
_CLOSING_DEADLINE = 10.0
_SHARED = "$share/"
_SEED = 42


@dataclass(slots=True)
class Figures:
    """What a benchmark has counted and measured."""

    connected: int = 0
    transport: str = transport_of(None)
    benchmark: int = field(default_factory=lambda: secrets.randbits(32))
    """Distinguishes its messages from those of another benchmark."""
    drawing: Random = field(default_factory=lambda: Random(_SEED))  # noqa: S311 - sizes, the same in every benchmark
    leaving: bool = False
    """Whether it is over: a client that disconnects now is not lost."""
    refused: Counter[str] = field(default_factory=Counter)
    first_refusal: Closure | None = None
    lost: Counter[str] = field(default_factory=Counter)
    published: int = 0
    acknowledged: int = 0
    rejected: int = 0
    unacknowledged: int = 0
    """QoS 1 and 2 messages that the broker had not acknowledged by the end."""
    held_back: int = 0
    skipped: int = 0
    received: int = 0
    unchecked: int = 0
    """Those of them that had no number: a user's own payload, a short one, or somebody else's."""
    other_clock: int = 0
    """Those of them that another machine had stamped, or this one before it was booted: they have no latency."""
    altered: int = 0
    """Those of them that were not as a benchmark had published them."""
    arrivals: list[Arrivals] = field(default_factory=list)
    """What each subscriber received of the numbered messages."""
    subscribed: int = 0
    subscribers: int = 0
    """How many clients should subscribe."""
    publishers: int = 0
    """How many clients should publish."""
    wanted: int = 0
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when *wanted* messages have been received."""
    tcp: Latency = field(default_factory=Latency)
    tls: Latency = field(default_factory=Latency)
    upgrade: Latency = field(default_factory=Latency)
    connack: Latency = field(default_factory=Latency)
    admitted: Latency = field(default_factory=Latency)
    puback: Latency = field(default_factory=Latency)
    end_to_end: Latency = field(default_factory=Latency)
    health: list[HealthSample] = field(default_factory=list)
    connecting_seconds: float = 0.0
    while_connecting: tuple[int, int] = (0, 0)
    """How many messages were published, and received, before the last client had tried to connect."""
    seconds: float = 0.0
    invalid: list[str] = field(default_factory=list)

    @property
    def troubled(self) -> bool:
        """Whether a client was refused, lost or not subscribed, or a message rejected, or not as was promised.

        A message held back has no latency, which would make the other latencies look better. Where there was no message
        at all, none was lost.
        """
        promised = any(each.lost or each.forbidden or each.out_of_order for each in self.arrivals)
        unserved = self.subscribed < self.subscribers
        return bool(
            self.refused or self.lost or self.rejected or self.unacknowledged or self.held_back or self.altered
            or promised or unserved or self.idle
        )  # fmt: skip

    @property
    def idle(self) -> str | None:
        """What was not done at all, though it was to be measured; None if there is no such thing."""
        if self.publishers and not self.published:
            return "published"
        return "received" if self.subscribers and not self.received else None

    @property
    def missing(self) -> int:
        """Messages that did not reach a subscriber, though a later one of their publisher did."""
        return sum(each.missing for each in self.arrivals)

    @property
    def duplicated(self) -> int:
        """Messages that reached a subscriber more than once."""
        return sum(each.duplicated for each in self.arrivals)

    @property
    def out_of_order(self) -> int:
        """Messages that reached a subscriber after a later one of their publisher."""
        return sum(each.out_of_order for each in self.arrivals)

    @property
    def latencies(self) -> dict[str, Latency]:
        """Return what was measured, by name."""
        named = {
            "tcp": self.tcp, "tls": self.tls, "upgrade": self.upgrade, "connack": self.connack,
            "admitted": self.admitted, "puback": self.puback, "end_to_end": self.end_to_end,
        }  # fmt: skip
        return {name: latency for name, latency in named.items() if latency.count}


class Client:
    """One client: its link, its topic, and what it waits for."""

    __slots__ = ("_figures", "_number", "arrivals", "link", "party", "pending", "since", "topic")

    def __init__(self, party: Party, topic: str, figures: Figures) -> None:
        self.party = party
        self.arrivals = Arrivals(shared=topic.startswith(_SHARED))
        self._number = 0
        self.topic = topic
        self.link: Link | None = None
        self.pending: dict[int, float] = {}
        self.since = 0.0
        """When it asked for messages."""
        self._figures = figures

    def publish(self, due: float, plan: Plan) -> bool:
        """Publish what was due at *due*; return whether the link accepted it."""
        if self.link is None or self.link.closed.done():
            return False
        try:
            body = self._body(due, plan)
            packet_id = self.link.publish(self.topic, body, plan.qos, retain=plan.retain)
        except NotConnected:
            self._figures.held_back += 1
            return False
        # A gap in the numbers is a message that is missing: those without one take none.
        self._number += plan.content is None and len(body) >= NUMBERED
        if plan.qos:
            self.pending[packet_id] = due
        self._figures.published += 1
        return True

    def _body(self, due: float, plan: Plan) -> bytes:
        if plan.content is not None:
            return plan.content
        stamp = Stamp(due, self._figures.benchmark, self.party.number, self._number + 1, plan.qos, this_clock())
        return payload(stamp, plan.size.draw(self._figures.drawing))

    def acknowledged(self, packet_id: int, number: int, _reason: str) -> None:
        """Record the end of a QoS 1 or 2 exchange."""
        due = self.pending.pop(packet_id, None)
        if due is None:
            return
        self._figures.puback.record(max(time.monotonic() - due, 0.0))
        if number >= FAILURE:
            self._figures.rejected += 1
        else:
            self._figures.acknowledged += 1

    def received(self, _topic: str, body: bytes) -> None:
        """Record a message. One that was due before it was asked for has waited for that, stored: no latency.

        Nor has one that was due by another clock.
        """
        self._figures.received += 1
        if self._figures.received == self._figures.wanted:
            self._figures.enough.set()
        try:
            stamp = stamp_of(body)
        except AlteredPayload:
            self._figures.altered += 1
            return
        self._figures.unchecked += stamp is None or not stamp.number
        if stamp is not None:
            if stamp.clock != this_clock():
                self._figures.other_clock += 1
            elif stamp.due >= self.since:
                self._figures.end_to_end.record(max(time.monotonic() - stamp.due, 0.0))
            self.arrivals.came(stamp)

    def ended(self, closed: asyncio.Future[Closure]) -> None:
        """Record the end of the link."""
        closure = closed.result()
        if self._figures.leaving:
            return
        self._figures.connected -= 1
        self._figures.lost[f"{closure.layer} {closure.code}"] += 1


class Bench:
    """One benchmark against the broker at *endpoint*."""

    def __init__(
        self,
        plan: Plan,
        keyring: Keyring,
        endpoint: Endpoint,
        terms: Terms,
        driver: Driver,
        sources: tuple[str, ...] = (),
    ) -> None:
        self.plan = plan
        self.figures = Figures(
            transport=transport_of(endpoint.path if endpoint.websocket else None),
            wanted=plan.limit,
            subscribers=plan.clients if plan.kind is Kind.SUB else 0,
            publishers=plan.clients if plan.kind is Kind.PUB else 0,
        )
        self.started = time.monotonic()
        self._endpoint = endpoint
        self._terms = terms
        self._driver = driver
        driver.load()
        self._sources = sources
        self._context = SharedContext(
            lambda: client_context(keyring.anchors, keyring.common, classic_key_exchange=True)
        )
        self._clients = [
            Client(party, topic_for(plan.topic, party.number, party.client_id, party.group), self.figures)
            for party in keyring.parties(plan.clients)
        ]
        for client in self._clients:
            self._context.of(client.party.credential)  # What is wrong with the files is told before anybody connects.
        self._watch = GeneratorWatch(len(sources))

    async def run(self, interruption: Interruption) -> Figures:
        """Run to the end of the plan, or until the user interrupts; drain, judge, and return the figures."""
        figures = self.figures
        async with AsyncExitStack() as stack:
            keep_alive = await stack.enter_async_context(KeepAlive())
            await stack.enter_async_context(self._watch)
            stack.push_async_callback(self._leave)
            gc.collect()
            gc.freeze()
            self.started = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                sampling = tasks.create_task(self._sample(), name="sample")
                working = tasks.create_task(self._work(keep_alive), name="bench")
                ending = tasks.create_task(interruption.wait(), name="interruption")
                await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
                for task in (working, ending):
                    task.cancel()
                figures.seconds = time.monotonic() - self.started
                await self._drain()
                figures.unacknowledged = sum(len(client.pending) for client in self._clients)
                sampling.cancel()
                figures.leaving = True
            if not figures.health:
                figures.health.append(self._watch.sample(figures.connected))
        limits = GeneratorLimits()
        figures.invalid = faults(figures.health, self._watch.lag, limits, self._driver)
        if why := why_skipped(
            figures.skipped,
            figures.published,
            figures.seconds,
            self._watch.paused,
            limits,
            "use a larger -I, or fewer -c",
        ):
            figures.invalid.append(why)
        return figures

    async def _work(self, keep_alive: KeepAlive) -> None:
        deadline = self.started + self.plan.seconds if self.plan.seconds else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline), asyncio.TaskGroup() as tasks:
                working = tasks.create_task(
                    self._publish() if self.plan.kind is Kind.PUB else self.figures.enough.wait(),
                    name="publish or receive",
                )
                await self._connect(keep_alive)
                deserted = tasks.create_task(self._deserted(), name="deserted")
                await asyncio.wait([working, deserted], return_when=asyncio.FIRST_COMPLETED)
                for task in (working, deserted):
                    task.cancel()

    async def _deserted(self) -> None:
        """Return when no client is connected any more; none reconnects."""
        if links := [client.link.closed for client in self._clients if client.link is not None]:
            await asyncio.wait(links)

    async def _connect(self, keep_alive: KeepAlive) -> None:
        async with asyncio.TaskGroup() as tasks:
            for client, offset in zip(self._clients, even(len(self._clients), self.plan.rate), strict=True):
                due = self.started + offset
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.create_task(self._open(client, due, keep_alive), name="connect")
        figures = self.figures
        figures.connecting_seconds = time.monotonic() - self.started
        figures.while_connecting = figures.published, figures.received

    async def _open(self, client: Client, due: float, keep_alive: KeepAlive) -> None:
        figures, party, subscribing = self.figures, client.party, self.plan.kind is Kind.SUB
        try:
            link = await self._driver.open(
                self._endpoint,
                self._context.of(party.credential),
                party.client_id,
                keep_alive=keep_alive,
                credential=party.credential,
                terms=self._terms,
                received=client.received if subscribing else None,
                acknowledged=client.acknowledged if self.plan.qos else None,
                source=self._sources[party.number % len(self._sources)] if self._sources else None,
            )
        except NotAdmitted as error:
            figures.refused[f"{error.closure.layer} {error.closure.code}"] += 1
            figures.first_refusal = figures.first_refusal or error.closure
            return
        client.link = link
        figures.connected += 1
        link.closed.add_done_callback(client.ended)
        times = link.stage_times
        figures.tcp.record(times.tcp)
        figures.tls.record(times.tls)
        if times.upgrade:
            figures.upgrade.record(times.upgrade)
        figures.connack.record(times.connack)
        figures.admitted.record(max(time.monotonic() - due, 0.0))
        if subscribing:
            try:
                figures.arrivals.append(client.arrivals)
                client.since = time.monotonic()
                client.arrivals.qos = self.plan.qos  # A retained message may arrive before SUBACK.
                client.arrivals.qos = await link.subscribe(client.topic, self.plan.qos)
                figures.subscribed += 1
            except (SubscriptionRefused, NotConnected) as error:
                figures.refused[str(error)] += 1

    async def _publish(self) -> None:
        plan, figures = self.plan, self.figures
        schedule: Schedule[Client] = Schedule()
        for client, offset in zip(
            self._clients, even(len(self._clients), len(self._clients) / plan.interval), strict=True
        ):
            schedule.add(client, self.started + offset)
        while (due := schedule.next_due()) is not None:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            for item_due, client in tuple(schedule.pop_due(now)):
                if plan.limit and figures.published >= plan.limit:
                    return
                client.publish(item_due, plan)
                schedule.again(client, item_due, plan.interval, now)
                figures.skipped = schedule.skipped

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.figures.health.append(self._watch.sample(self.figures.connected))

    async def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_DEADLINE
        waiting = [client for client in self._clients if client.pending]
        while waiting and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_AGAIN)
            waiting = [c for c in waiting if c.pending and c.link is not None and not c.link.closed.done()]

    async def _leave(self) -> None:
        links = [client.link for client in self._clients if client.link is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_DEADLINE):
                await asyncio.gather(*(link.close() for link in links))
