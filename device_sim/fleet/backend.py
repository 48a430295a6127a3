"""The fleet's backend service: receives everything, checks that nothing is missing, sends commands.

Rules
-----
1. Every message under ``fleet/``, and to the scenario's own topics, is accounted for: telemetry by its sender's
   sequence number, answers by their command, either as altered if it is not as it was sent (`telemetry.seal`,
   `telemetry.stamp`), anything else as unexpected. What is altered has not been received: its number may be altered
   too.
2. Latency runs from when the device was due to send, not from when it actually sent, to the message's first arrival;
   duplicates do not count.
3. What an unknown party can make the backend store is bounded.
4. A backend that loses its connection reconnects. With *lasting* it resumes its session, as the backend of a real fleet
   does: devices often reconnect before it, and what they publish until then is queued for it and not lost.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from broker.mqtt.topics import covers
from device_sim.backoff import Backoff
from device_sim.behaviour.presence import OFFLINE, ONLINE
from device_sim.fleet.commands import Command, UnreadableCommand, decode_answer
from device_sim.fleet.sequence import Arrival, SequenceCheck
from device_sim.latency import Latency
from device_sim.link.closure import Closure
from device_sim.link.distance import NEARBY, Distance
from device_sim.link.driver import Driver
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import Link, NotConnected, SubscriptionRefused, Terms, UserProperties
from device_sim.link.tls_dial import Endpoint, NotAdmitted
from device_sim.telemetry.payload import Telemetry, UnreadableTelemetry, decode
from device_sim.telemetry.seal import is_intact, key_of, sealed_object
from device_sim.telemetry.stamp import fits, read_stamp
from provisioning.program.shielded import shielded

EVERYTHING = "fleet/#"
_STATES = "fleet/+/+/state"
_AT_LEAST_ONCE = 1
_MOST_KEPT, _MOST_SHOWN = 3, 250
"""How many altered and unexpected messages are kept, and how much of each: a reading in JSON is shorter."""
_MOST_IN_FLIGHT = 50
_LOOKS, _LOOK = 20, 0.1
"""How often, and in what intervals (seconds), nothing must have come."""
_SESSION_SECONDS = 300
_BACKOFF = Backoff(base=0.1, cap=2.0)


@dataclass(slots=True)
class Answers:
    """The answers to one command: when it was sent and to whom, who answered after how many seconds, who refused."""

    identifier: str
    sent: dict[str, float] = field(default_factory=dict)
    answered: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> set[str]:
        """The devices that have not answered."""
        return self.sent.keys() - self.answered.keys() - self.refused.keys()


class Own(NamedTuple):
    """What comes to a topic that the scenario has chosen: whose, and whether its payload is the scenario's own too."""

    device: str
    stamped: bool


Arrived = Callable[[str, Telemetry, float], None]
"""Called for each message on its first arrival, with its device, content, and arrival time (`time.monotonic`)."""


class Backend:
    """A service client. *devices* are those whose messages it expects, in the run with this *mark*.

    *bystanders* are the fleet's other devices: their retained presence messages may turn up too. *siblings* are other
    backend instances that send commands; *others*: there are also unknown ones. *arrived* is called for each telemetry
    message. With *lasting* the session outlives the connection, for `come_back`. *own* are the topics of devices that
    publish, or what they publish, as the scenario says; all others are the simulator's.
    """

    def __init__(
        self,
        name: str,
        devices: Iterable[str],
        *,
        mark: int = 0,
        bystanders: Container[str] = frozenset(),
        siblings: Iterable[str] = (),
        arrived: Arrived | None = None,
        driver: Driver = Driver.PAHO,
        others: bool = False,
        lasting: bool = False,
        own: Mapping[str, Own] | None = None,
    ) -> None:
        self.name = name
        self._mark = mark
        self._seconds = _SESSION_SECONDS if lasting else 0
        self._bystanders = bystanders
        self._siblings = frozenset(siblings)
        self._others = others
        self._own = own or {}
        self._told = arrived
        self._driver = driver
        driver.load()
        self.connection: Link | None = None
        self._hears: Link | None = None
        """The connection on which it was last granted all that it subscribes to."""
        self.checks = {device: SequenceCheck() for device in devices}
        self.latency = Latency()
        self.presence: dict[str, bytes] = {}
        self.retained: dict[str, bytes] | None = None
        """The presence messages that the broker retains, once they were requested (`look_again`)."""
        self.presence_changes = 0
        self.received = 0
        self.besides = 0
        """How many messages have come that were no telemetry: they lie in the broker's queue for it, too."""
        self.unexpected = 0
        self.unexpected_examples: list[tuple[float, str]] = []
        self.unasked = 0
        """How many of the unexpected are answers that it waits for no longer, or never did."""
        self.altered = 0
        self.altered_examples: list[tuple[float, str]] = []
        """When the first of them arrived (`time.monotonic`), and what."""
        self._arrived = asyncio.Event()
        self._window = asyncio.Semaphore(_MOST_IN_FLIGHT)
        self._commands: dict[str, Answers] = {}
        self._given_up: dict[str, set[str]] = {}
        """For each command no longer waited for: the devices that may still answer it."""
        self._identifiers = itertools.count(1)
        self._dial: Callable[[Terms], Awaitable[None]] | None = None
        self._returning = asyncio.Lock()
        self._wanted = asyncio.Event()

    async def connect(
        self,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        keep_alive: KeepAlive,
        topic_filters: Iterable[str] = (EVERYTHING,),
        qos: int = _AT_LEAST_ONCE,
    ) -> None:
        """Connect and subscribe, at *qos*. Raises `NotAdmitted`, `SubscriptionRefused` or `NotConnected`."""
        topic_filters = tuple(topic_filters)

        async def dial(terms: Terms) -> None:
            link = self.connection = await self._driver.open(
                endpoint,
                context,
                self.name,
                keep_alive=keep_alive,
                terms=terms,
                received=None if self._own else self._received,
                received_whole=self._received_whole if self._own else None,
                acknowledged=self._acknowledged,
            )
            # Also in a kept session: a broker that has lost it gets the subscription again.
            for topic_filter in topic_filters:
                # Of what the broker retains, presence is the run's; below a topic of the user's own it is of others.
                await link.subscribe(topic_filter, qos, retained=covers(EVERYTHING, topic_filter))
            self._hears = link
            self._wanted.set()
            self._arrived.set()

        self._dial = dial
        await dial(Terms(session_seconds=self._seconds))

    async def come_back(self) -> None:
        """Unless it `is_back`, connect again as `connect` did, to the kept session. Raises the same."""
        if self._dial is None:
            raise RuntimeError("the backend has never been connected: call connect() first")
        async with self._returning:
            if self.is_back:
                return
            self._window = asyncio.Semaphore(_MOST_IN_FLIGHT)  # What was in flight will never be acknowledged to us.
            await self._dial(Terms(clean_start=not self._seconds, session_seconds=self._seconds))

    async def stay(self, lost: Callable[[Closure], None]) -> None:
        """Never return; reconnect whenever a connection ends that nobody closed, after calling *lost*."""
        attempt = 0
        while True:
            if self.connection is None:
                raise RuntimeError("the backend has never been connected: call connect() first")
            since = time.monotonic()
            closure = await shielded(self.connection.closed)
            await self._wanted.wait()  # Closed: the caller of `close` decides when to reconnect.
            if self._is_connected:
                continue
            lost(closure)
            # Two backends of one name take the session over from each other: each waits longer after every
            # reconnection.
            attempt = attempt + 1 if time.monotonic() - since < _BACKOFF.cap else 0
            while True:
                await asyncio.sleep(_BACKOFF.bound(attempt))
                attempt += 1
                try:
                    await self.come_back()
                    break
                except (NotAdmitted, NotConnected, SubscriptionRefused):
                    pass  # The next attempt is due later.

    def distance(self) -> Distance:
        """Return how far away the broker is, as far as known by now."""
        return NEARBY if self.connection is None else self.connection.distance()

    @property
    def _is_connected(self) -> bool:
        return self.connection is not None and not self.connection.closed.done()

    @property
    def is_back(self) -> bool:
        """Whether it is connected and subscribed: what is published now reaches it."""
        return self._is_connected and self._hears is self.connection

    async def back(self) -> None:
        """Return when it `is_back`."""
        await self.until(lambda: self.is_back)

    async def look_again(self) -> None:
        """Ask the broker for the presence messages it retains, as a newly connected backend would; see `retained`.

        Repeating a subscription delivers the retained messages (MQTT 5 §3.3.1.3).
        """
        if self.connection is None:
            return
        self.retained = {}
        try:
            await self.connection.subscribe(_STATES, _AT_LEAST_ONCE)
        except (SubscriptionRefused, NotConnected):
            self.retained = None

    async def close(self) -> None:
        """Disconnect cleanly."""
        self._wanted.clear()
        if self.connection is not None:
            await self.connection.close()

    async def command(
        self, group: str, devices: Iterable[str], action: str, arguments: Mapping[str, Any], deadline: float
    ) -> Answers:
        """Send a command to each of *devices*; return the answers when all are in, or at the *deadline* (seconds).

        A device that could not be sent it, because the broker is away, counts as not having answered.
        """
        if self.connection is None:
            raise RuntimeError("the backend is not connected: call connect() first")
        answers = Answers(f"{self.name}-{next(self._identifiers)}")
        self._commands[answers.identifier] = answers
        text = Command(answers.identifier, action, arguments).encode()
        try:
            async with asyncio.timeout(deadline):
                answers.sent = dict.fromkeys(devices, time.monotonic())
                await self.come_back()
                for device in answers.sent:
                    await self._window.acquire()
                    answers.sent[device] = time.monotonic()
                    topic_name = f"fleet/{group}/{device}/cmd/{action}"
                    payload = sealed_object(text, key_of(topic_name, self._mark))
                    self.connection.publish(topic_name, payload, _AT_LEAST_ONCE)
                await self.until(lambda: not answers.missing)
        except (TimeoutError, NotAdmitted, NotConnected, SubscriptionRefused):
            pass  # Devices that have not answered are in `missing`.
        finally:
            del self._commands[answers.identifier]
            if answers.missing:
                self._given_up[answers.identifier] = answers.missing
        return answers

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when *condition* holds; it is checked only when something has arrived, or the backend is back."""
        while not condition():
            self._arrived.clear()
            await self._arrived.wait()

    async def silent(self) -> bool:
        """Return whether nothing comes any more, though the loop looks for it often: all that was sent here is read."""
        self._arrived.clear()
        for _ in range(_LOOKS):
            await asyncio.sleep(_LOOK)
        return not self._arrived.is_set()

    def _acknowledged(self, _packet_id: int, _number: int, _reason: str) -> None:
        self._window.release()

    def _received_whole(self, topic_name: str, payload: bytes, properties: UserProperties) -> None:
        own = self._own.get(topic_name)
        if own is None:
            self._received(topic_name, payload)
            return
        self._arrived.set()
        stamp = properties if own.stamped else None
        self._telemetry(own.device, topic_name, payload, time.monotonic(), stamp)

    def _received(self, topic_name: str, payload: bytes) -> None:
        now = time.monotonic()
        self._arrived.set()
        match topic_name.split("/"):
            case ["fleet", _, device, "telemetry"] if device in self.checks:
                self._telemetry(device, topic_name, payload, now)
                return
            case ["fleet", _, device, "ack"] if device in self.checks:
                self._answer(device, topic_name, payload, now)
            case ["fleet", _, device, "state"] if device in self.checks and payload in {ONLINE, OFFLINE}:
                self.presence_changes += self.presence.get(device) != payload
                self.presence[device] = payload
                if self.retained is not None:
                    self.retained[device] = payload
            case ["fleet", _, device, "state"] if device in self._bystanders and payload in {ONLINE, OFFLINE}:
                pass  # Left by an earlier run, with more devices or with some that are revoked now.
            case ["fleet", _, _, "cmd", *_]:
                pass  # Our own command: we subscribe to everything.
            case _ if not self._others:
                self._not_expected(topic_name, payload)
        self.besides += 1

    def _telemetry(
        self, device: str, topic_name: str, payload: bytes, now: float, stamp: UserProperties | None = None
    ) -> None:
        key = key_of(topic_name, self._mark)
        try:
            telemetry = decode(payload) if stamp is None else read_stamp(stamp)
            if not (is_intact(payload, key) if stamp is None else fits(stamp, payload, key)):
                self._not_as_sent(topic_name, payload, now)
                return
            arrival = self.checks[device].record(telemetry.sequence)
        except UnreadableTelemetry as error:
            self._not_expected(topic_name, payload, "" if stamp is None else f"{error}: ")
            return
        except ValueError:
            self._not_expected(topic_name, payload)
            return
        self.received += 1
        if arrival is Arrival.DUPLICATE:
            return
        self.latency.record(now - telemetry.due_ns / 1e9)
        if self._told is not None:
            self._told(device, telemetry, now)

    def _answer(self, device: str, topic_name: str, payload: bytes, now: float) -> None:
        try:
            answer = decode_answer(payload)
        except UnreadableCommand:
            if not self._others:
                self._not_expected(topic_name, payload)
            return
        asked_by = answer.identifier.rpartition("-")[0]
        if asked_by in self._siblings or (self._others and asked_by != self.name):
            return  # Another instance asked.
        if not is_intact(payload, key_of(topic_name, self._mark)):
            self._not_as_sent(topic_name, payload, now)
            return
        late = self._given_up.get(answer.identifier, set())
        if device in late:
            late.remove(device)  # It was asked and is slow: the answer is genuine.
            return
        answers = self._commands.get(answer.identifier)
        sent = answers.sent.get(device) if answers is not None else None
        if answers is None or sent is None or device not in answers.missing:
            self.unasked += 1  # Never asked, or answered already.
            self._not_expected(topic_name, payload)
        elif answer.done:
            answers.answered[device] = now - sent
        else:
            answers.refused[device] = str(answer.detail)

    def _not_as_sent(self, topic_name: str, payload: bytes, now: float) -> None:
        self.altered += 1
        if len(self.altered_examples) < _MOST_KEPT:
            self.altered_examples.append((now, f"{topic_name}: {_shown(payload)}"))

    def _not_expected(self, topic_name: str, payload: bytes, why: str = "") -> None:
        self.unexpected += 1
        if len(self.unexpected_examples) < _MOST_KEPT:
            self.unexpected_examples.append((time.monotonic(), f"{topic_name}: {why}{_shown(payload)}"))


def _shown(payload: bytes) -> str:
    words = repr(payload[:_MOST_SHOWN])  # A byte may be four characters of it.
    return words if len(words) <= _MOST_SHOWN + len("b''") else f"{words[:_MOST_SHOWN]}…"
