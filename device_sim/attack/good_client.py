"""Good parties of a `fleet-sim delivery` case: they record every packet, and acknowledge only as they are told.

Theory
------
A broker's obligations are in the details that a client library hides: which flags a message had, under which packet
identifier it came again, how many were in flight at once. So a party is a `RawClient` that records each PUBLISH
unchanged, and whose acknowledgements a case can hold back.

Absence of (further) messages is checked as in `device_sim.attack.scene.Scene.retained`: behind a PINGRESP, and a moment
later.

Rules
-----
1. `GoodClient.unfinished` counts by our own packets: the broker learns of our acknowledgements later than we send them,
   so whatever is in flight by our count is in flight by its count too. A party that acknowledges while reading sees one
   at a time, however many the broker sent at once: a case that counts holds its acknowledgements back.
2. What a party must get is waited for as long as an innocent device waits (`PATIENCE`); what never comes is
   `BrokenPromise` with *never*, which only a starved machine excuses.
3. All connections of a case are closed when it ends, and what it had retained is cleared.
4. A topic alias that the party has not allowed, or that was not introduced on this connection, is a broken promise in
   every case (`device_sim.attack.told_aliases`). What is recorded has the full topic.

Handles: MQTT 5 and 3.1.1, all QoS, topic aliases. Does not handle: keep alive (`device_sim.attack.stay_cases`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode, RetainHandling
from broker.mqtt.connect import Will
from broker.mqtt.packets import (
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
)
from broker.mqtt.properties import NO_PROPERTIES, Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import SOON, Scene
from device_sim.attack.target import BrokenPromise, Impossible, Starved, TurnedAway
from device_sim.attack.told_aliases import ToldAliases
from device_sim.attack.verdict import Seen

EVERYTHING: frozenset[type[Packet]] = frozenset({Puback, Pubrec, Pubcomp})
NOTHING: frozenset[type[Packet]] = frozenset()
_Answer = TypeVar("_Answer", bound=Packet)
_KEEP_ALIVE = 600
_CLEARING = 5.0
"""Seconds for a case that has failed to clear what it had retained: of a broker like that no more can be asked."""
SESSION_SECONDS = 120
"""How long a session is kept, unless a case says otherwise."""


class GoodClient:
    """One connection of a good party. Created by `Parties`."""

    def __init__(self, raw: RawClient, paper: Paper, patience: float, most_aliases: int = 0) -> None:
        self.raw = raw
        self.paper = paper
        self.aliases = ToldAliases(most_aliases)
        self.came: list[Publish] = []
        self.released: list[int] = []
        """The packet identifiers of each PUBREL, in order."""
        self.answers = EVERYTHING
        """Which acknowledgements are sent automatically."""
        self.last_came = 0.0
        """When the last PUBLISH came, `time.monotonic`."""
        self.patience = patience
        """How many seconds to wait for what must come."""
        self._unfinished: set[int] = set()
        self._next_id = 0

    @property
    def name(self) -> str:
        """Its name and client identifier."""
        return self.paper.name

    @property
    def unfinished(self) -> int:
        """How many incoming QoS 1 and 2 messages have an unfinished exchange (rule 1)."""
        return len(self._unfinished)

    @property
    def session_present(self) -> bool:
        """The Session Present flag of CONNACK."""
        return self.raw.connack is not None and self.raw.connack.session_present

    @property
    def told(self) -> Properties:
        """The properties of CONNACK."""
        return NO_PROPERTIES if self.raw.connack is None else self.raw.connack.properties

    @property
    def payloads(self) -> list[bytes]:
        """The received payloads, in order."""
        return [each.payload for each in self.came]

    async def send(self, packet: Packet) -> None:
        """Send *packet*."""
        await self.raw.send(packet.encode(self.raw.version))

    async def answer(self, packet: Puback | Pubrec | Pubcomp) -> None:
        """Acknowledge with *packet*."""
        if not isinstance(packet, Pubrec):
            self._unfinished.discard(packet.packet_id)
        await self.send(packet)

    async def take(self, within: float) -> Packet | None:
        """Return the next packet, which is recorded, and acknowledged unless held back; None: none came.

        Raises `BrokenPromise` if the connection ends.
        """
        packet = await self.raw.receive(within)
        if isinstance(packet, (Seen, Disconnect)):
            seen = packet if isinstance(packet, Seen) else self.raw.seen(packet)
            if seen.got_in:
                return None
            raise BrokenPromise(f"the good {self.name} was put out: {seen.text} {seen.reason}".rstrip())
        if isinstance(packet, Publish):
            await self._took(self.aliases.resolved(packet))
        elif isinstance(packet, Pubrel):
            self.released.append(packet.packet_id)
            if Pubcomp in self.answers:
                await self.answer(Pubcomp(packet.packet_id))
        return packet

    async def _took(self, packet: Publish) -> None:
        self.came.append(packet)
        self.last_came = time.monotonic()
        if packet.packet_id is None:
            return
        self._unfinished.add(packet.packet_id)
        kind = Puback if packet.qos is QoS.AT_LEAST_ONCE else Pubrec
        if kind in self.answers:
            await self.answer(kind(packet.packet_id))

    async def until(self, condition: Callable[[], bool], what: str, within: float | None = None) -> None:
        """Take packets until *condition* holds; raise `BrokenPromise` *what* if it does not in time."""
        until = time.monotonic() + (self.patience if within is None else within)
        while not condition():
            if await self.take(max(0.0, until - time.monotonic())) is None:
                raise BrokenPromise(what, never=True)

    async def until_came(self, count: int, what: str, within: float | None = None) -> None:
        """Take packets until *count* messages have come in all; raise `BrokenPromise` *what* if they do not in time."""
        await self.until(lambda: len(self.came) >= count, what, within)

    async def until_payloads(self, due: Iterable[bytes], what: str, within: float | None = None) -> None:
        """Take packets until all payloads in *due* have come; raise `BrokenPromise` *what* if they do not in time."""
        wanted = set(due)
        await self.until(lambda: wanted <= set(self.payloads), what, within)

    async def answered(self, kind: type[_Answer], packet_id: int | None = None) -> _Answer:
        """Return the next packet of *kind*, about *packet_id* if given; raise `BrokenPromise` if none comes."""
        until = time.monotonic() + self.patience
        while True:
            packet = await self.take(max(0.0, until - time.monotonic()))
            if packet is None:
                raise BrokenPromise(f"no {kind.__name__.upper()} came", never=True)
            if isinstance(packet, kind) and packet_id in {None, getattr(packet, "packet_id", None)}:
                return packet

    async def pinged(self) -> None:
        """Return when a PINGREQ is answered: everything the broker wrote before has then arrived."""
        await self.send(Pingreq())
        await self.answered(Pingresp)

    async def taken(self, packet: Packet) -> Pingresp | Disconnect | Seen:
        """Send the forbidden *packet*, and return the outcome: PINGRESP if its sender may continue.

        Raises `BrokenPromise` if the broker neither continues nor closes.
        """
        await self.send(packet)
        await self.send(Pingreq())  # Packets are handled in order: a broker that has closed does not answer it.
        while True:
            answer = await self.raw.receive(self.patience)
            if isinstance(answer, Seen) and answer.got_in:
                raise BrokenPromise("neither an answer nor the end of the connection came", never=True)
            if isinstance(answer, (Pingresp, Disconnect, Seen)):
                return answer

    async def settled(self) -> None:
        """Return when all that the broker has for it has arrived: behind a PINGRESP, and a moment later."""
        await self.pinged()
        until = time.monotonic() + SOON
        while await self.take(max(0.0, until - time.monotonic())) is not None:
            pass

    async def subscribe(
        self,
        topic_filter: str,
        qos: QoS = QoS.AT_MOST_ONCE,
        *,
        as_published: bool = False,
        handling: RetainHandling = RetainHandling.SEND,
        no_local: bool = False,
        identifier: int | None = None,
    ) -> QoS:
        """Subscribe and return the QoS granted; raise `Impossible` if refused."""
        request = SubscriptionRequest(topic_filter, qos, no_local, as_published, handling)
        identifiers = Properties(subscription_identifiers=() if identifier is None else (identifier,))
        packet_id = self.new_id()
        await self.send(Subscribe(packet_id, (request,), identifiers))
        suback = await self.answered(Suback, packet_id)
        code = suback.reason_codes[0] if suback.reason_codes else ReasonCode.UNSPECIFIED_ERROR
        if code.is_failure:
            raise Impossible(f"{self.name} may not subscribe to {topic_filter} here: 0x{code:02x}")
        return QoS(int(code))

    async def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe; raise `BrokenPromise` if the answer says that it was not subscribed."""
        packet_id = self.new_id()
        await self.send(Unsubscribe(packet_id, (topic_filter,)))
        answer = await self.answered(Unsuback, packet_id)
        if any(code is not ReasonCode.SUCCESS for code in answer.reason_codes):
            code = answer.reason_codes[0]
            raise BrokenPromise(f"UNSUBACK 0x{code:02x} was the answer to a client that had subscribed")

    async def publish(
        self,
        topic: str,
        payload: bytes,
        qos: QoS = QoS.AT_LEAST_ONCE,
        *,
        retain: bool = False,
        properties: Properties = NO_PROPERTIES,
    ) -> None:
        """Publish, and return when the acknowledgement is complete; raise `Impossible` if it is refused."""
        packet_id = self.new_id() if qos else None
        await self.send(Publish(topic, payload, qos, retain, packet_id=packet_id, properties=properties))
        if packet_id is None:
            return
        kind: type[Puback | Pubrec] = Puback if qos is QoS.AT_LEAST_ONCE else Pubrec
        answer = await self.answered(kind, packet_id)
        if answer.reason_code.is_failure:
            raise Impossible(f"{self.name} may not publish to {topic} here: 0x{answer.reason_code:02x}")
        if kind is Pubrec:
            await self.send(Pubrel(packet_id))
            await self.answered(Pubcomp, packet_id)

    async def say_goodbye(
        self, reason: ReasonCode = ReasonCode.NORMAL_DISCONNECTION, properties: Properties = NO_PROPERTIES
    ) -> None:
        """Send DISCONNECT with *reason*, give the broker a moment to close, and close."""
        await self.send(Disconnect(reason, properties))
        await self.raw.end(SOON)
        self.raw.close()

    def cut(self) -> None:
        """End the connection by a reset, as a network does."""
        self.raw.abort()

    def new_id(self) -> int:
        """Return a packet identifier not yet used on this connection."""
        self._next_id += 1
        return self._next_id


class Parties:
    """The parties of one case. An async context manager."""

    def __init__(self, scene: Scene, version: ProtocolVersion | None = None) -> None:
        """*version*: the MQTT version that all of them use, None for the newest that the target claims."""
        self.scene = scene
        self.version = version or scene.version
        self._clients: list[GoodClient] = []
        self._retained: list[tuple[GoodClient, str]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for client, topic in self._retained:
                    await client.publish(topic, b"", retain=True)
            else:
                await self._clear_anew()
        finally:
            for client in self._clients:
                client.raw.close()

    async def _clear_anew(self) -> None:
        """Clear what is retained by new connections, for a moment: those of a case that has failed may be of no use."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLEARING):
                for client, topic in self._retained:
                    with contextlib.suppress(BrokenPromise, Impossible, Starved, TurnedAway, OSError):
                        await (await self.connected(client.paper)).publish(topic, b"", retain=True)

    @property
    def is_v5(self) -> bool:
        """Whether MQTT 5 is spoken."""
        return self.version is ProtocolVersion.V5

    @property
    def best_qos(self) -> QoS:
        """The highest QoS that the broker claims."""
        return QoS.EXACTLY_ONCE if Feature.QOS2 in self.scene.target.capabilities.supports else QoS.AT_LEAST_ONCE

    def topic(self, device: GoodClient | Paper, suffix: str) -> str:
        """Return a topic of *device*."""
        return self.scene.topic(device.name, suffix)

    async def device(self, paper: Paper | None = None, **fields: Any) -> GoodClient:
        """Return a device that has just connected; *fields* as of `connected`."""
        return await self.connected(paper or await self.scene.device(), **fields)

    async def service(self, stem: str = "watcher", **fields: Any) -> GoodClient:
        """Return a newly connected service: a *watcher*, which may hear everything, or a *sender* of commands.

        *fields* as of `connected`.
        """
        name = self.scene.fresh(stem)
        paper = await self.scene.target.registrar.certify(self.scene.target.service(name))
        return await self.connected(paper, **fields)

    async def connected(
        self,
        paper: Paper,
        *,
        keeps: bool = False,
        clean: bool = True,
        will: Will | None = None,
        seconds: int = SESSION_SECONDS,
        answers: frozenset[type[Packet]] = EVERYTHING,
        keep_alive: int = _KEEP_ALIVE,
        name: str | None = None,
        version: ProtocolVersion | None = None,
        **properties: Any,
    ) -> GoodClient:
        """Return a connection of *paper*; *keeps*: its session outlives it by *seconds*; not *clean*: it resumes one.

        *name* is its client identifier, None for that of *paper*. What MQTT 3.1.1 cannot express is omitted there.
        """
        version = version or self.version
        is_v5 = version is ProtocolVersion.V5
        if keeps and is_v5:
            properties["session_expiry_interval"] = seconds
        connect = self.scene.connect(
            paper.name if name is None else name,
            version=version,
            clean_start=clean and not (keeps and not is_v5),
            keep_alive=keep_alive,
            will=will,
            properties=Properties(**properties) if is_v5 else NO_PROPERTIES,
        )
        raw = await self.scene.admitted(paper, connect)
        client = GoodClient(raw, paper, self.scene.patience, properties.get("topic_alias_maximum", 0))
        client.answers = answers
        self._clients.append(client)
        return client

    async def returned(self, client: GoodClient, **fields: Any) -> GoodClient:
        """Return the connection that resumes the session of *client*; raise `BrokenPromise` if the session is gone."""
        fields = {"keeps": True, "clean": False, **fields}
        again = await self.connected(client.paper, **fields)
        if not again.session_present:
            raise BrokenPromise("it came back in time, and its session was gone (CONNACK without session present)")
        return again

    def retained(self, client: GoodClient, topic: str) -> None:
        """Record that *client* has a retained message at *topic*, to be cleared."""
        self._retained.append((client, topic))
