"""What every case has at hand: the target, a watcher that receives everything, and fresh devices.

Theory
------
"Never delivered" is a claim about the future. The watcher makes it one about order: behind the forbidden message the
attacker sends one that is allowed, on the same connection; when that has arrived and the other has not, the other
never will.

Rules
-----
1. Each case has devices of its own: no case can spoil another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Pingreq, Pingresp, Publish, Suback, Subscribe, SubscriptionRequest
from device_sim.attack.capabilities import Feature
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.target import Impossible, Starved, Target
from device_sim.attack.verdict import DELIVERED, OPEN, ClosedBy, Layer, Seen, seen_in
from device_sim.remedies import with_remedy
from device_sim.tls_dial import Endpoint, NotAdmitted
from provisioning.pki.tls import CredentialPem, client_context

PATIENCE = 60.0
"""Seconds for which an innocent device waits to be served while another misbehaves, and for what must come.

Not a bound on speed: of a machine that others use too, a broker has what it gets. What must come is waited for, and one
that serves nobody as long as the trouble lasts is found.
"""
_ANSWER = 10.0
_PAUSE = 0.1


class Watcher:
    """A service that subscribes to all that devices of the attack say, and remembers what it got."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._payloads: set[bytes] = set()
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._watch(), name="watcher")

    async def got(self, payload: bytes, deadline: float) -> bool:
        """Whether *payload* has come, or comes within *deadline* seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                while payload not in self._payloads and not self._task.done():
                    self._arrived.clear()
                    await self._arrived.wait()
        return payload in self._payloads

    async def close(self) -> None:
        """Leave."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._client.close()

    async def _watch(self) -> None:
        while True:
            packet = await self._client.receive(deadline=30.0)
            if isinstance(packet, Publish):
                self._payloads.add(packet.payload[:64])
            elif isinstance(packet, Seen) and not packet.got_in:
                self._arrived.set()
                return
            else:
                await self._client.send(Pingreq().encode(self._client.version))
            self._arrived.set()


class Scene:
    """One run against one target."""

    def __init__(self, target: Target, numbers: Iterator[int] | None = None, patience: float = PATIENCE) -> None:
        self.target = target
        self.patience = patience
        self._numbers = itertools.count(1) if numbers is None else numbers
        self._watcher: Watcher | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Let go of what the cases shared."""
        if self._watcher is not None:
            await self._watcher.close()
            self._watcher = None

    def at(self, endpoint: Endpoint) -> Scene:
        """Return the same at another broker of the fleet; the names go on, and its `close` is the caller's to call."""
        return Scene(replace(self.target, endpoint=endpoint), self._numbers, self.patience)

    # Parties

    def fresh(self, stem: str = "device") -> str:
        """Return a name that nobody has."""
        return f"{self.target.prefix}{stem}-{next(self._numbers):03d}"

    async def device(self, name: str = "") -> Paper:
        """Return a good device."""
        return await self.target.registrar.certify(self.target.device(name or self.fresh()))

    def forged(self, name: str = "") -> Paper:
        """Return what the CA signs for a device behind the registrar's back."""
        return self.target.issuer.issue(self.target.device(name or self.fresh()))

    def topic(self, name: str, suffix: str = "telemetry") -> str:
        """Return a topic of the device called *name*."""
        return f"fleet/{self.target.group}/{name}/{suffix}"

    async def watcher(self) -> Watcher:
        """Return the watcher; the first call connects it."""
        async with self._opening:
            if self._watcher is None:
                name, topics = self.fresh("watcher"), f"fleet/{self.target.group}/#"
                client = await self.admitted(await self.target.registrar.certify(self.target.service(name)))
                seen = await self.subscribe(client, topics)
                if not seen.got_in:
                    raise Impossible(f"a service may not subscribe to {topics} here ({seen.text}): nobody can watch")
                self._watcher = Watcher(client)
            return self._watcher

    # Connecting

    @property
    def version(self) -> ProtocolVersion:
        """The version of MQTT that is spoken where a case does not say: the newest that the target claims."""
        return ProtocolVersion.V5 if Feature.MQTT5 in self.target.capabilities.supports else ProtocolVersion.V311

    def connect(self, client_id: str, *, version: ProtocolVersion | None = None, **fields: Any) -> Connect:
        """Return a CONNECT; *fields* are those of `broker.mqtt.connect.Connect`."""
        return Connect(client_id=client_id, protocol_version=version or self.version, **fields)

    async def dial(
        self,
        context: ssl.SSLContext,
        *,
        version: ProtocolVersion | None = None,
        session: ssl.SSLSession | None = None,
        source: str | None = None,
    ) -> RawClient:
        """Return a connection to the target; raise `device_sim.tls_dial.NotAdmitted`."""
        version = version or self.version
        return await RawClient.dial(self.target.endpoint, context, version=version, session=session, source=source)

    def context(self, pem: CredentialPem | None, *, allow_tls12: bool = False) -> ssl.SSLContext:
        """Return a client's context for the target."""
        return client_context(self.target.anchors, pem, allow_tls12=allow_tls12)

    async def present(
        self,
        context: ssl.SSLContext,
        client_id: str,
        *,
        version: ProtocolVersion | None = None,
        session: ssl.SSLSession | None = None,
    ) -> Seen:
        """Connect with *context*, send a harmless CONNECT, and return the answer."""
        try:
            client = await self.dial(context, version=version, session=session)
        except NotAdmitted as error:
            return seen_in(error.closure)
        try:
            seen = await client.connect(self.connect(client_id, version=version, keep_alive=60), _ANSWER)
        finally:
            resumed = client.socket.session_reused
            client.close()
        if session is None:
            return seen
        how = "TLS session resumed" if resumed else "full handshake: the broker did not resume"
        return replace(seen, reason=f"{how}; {seen.reason}" if seen.reason else how)

    async def show(self, paper: Paper, pem: CredentialPem | None = None) -> Seen:
        """Present *paper*, or *pem* in its place, under the name that *paper* bears."""
        return await self.present(self.context(pem or paper.pem), paper.name)

    async def until_refused(self, paper: Paper) -> Seen:
        """Show *paper*, which is revoked, until it is refused or the target's time for that is over."""
        until = time.monotonic() + self.target.capabilities.limits.revocation
        while True:
            seen = await self.show(paper)
            if not seen.got_in or time.monotonic() > until:
                return seen

    async def until_admitted(self, paper: Paper, deadline: float) -> None:
        """Show *paper* until it is let in, *deadline* seconds at most."""
        until = time.monotonic() + deadline
        while True:
            if (await self.show(paper)).got_in or time.monotonic() > until:
                return
            await asyncio.sleep(_PAUSE)

    async def admitted(self, paper: Paper, connect: Connect | None = None) -> RawClient:
        """Return a connection of the good *paper*; raise `Impossible` if it is refused."""
        connect = connect or self.connect(paper.name, keep_alive=600)
        try:
            client = await self.dial(self.context(paper.pem))
        except NotAdmitted as error:
            raise Impossible(with_remedy(f"a good device is not let in: {error.closure}", error.closure)) from error
        seen = await client.connect(connect)
        if not seen.got_in or seen.code == OPEN:
            client.close()
            words = f"a good device is not let in: {seen.text} {seen.reason}".rstrip()
            raise Impossible(with_remedy(words, seen))
        return client

    async def subscribe(self, client: RawClient, topic_filter: str, qos: QoS = QoS.AT_MOST_ONCE) -> Seen:
        """Subscribe and return the answer."""
        request = Subscribe(1, (SubscriptionRequest(topic_filter, qos),))
        await client.send(request.encode(client.version))
        return await client.answer(Suback, deadline=_ANSWER)

    async def fate(self, client: RawClient, name: str, payload: bytes) -> Seen:
        """Tell whether *payload*, which *client* of the device *name* has sent just now, reaches the watcher."""
        watcher = await self.watcher()
        marker = f"marker {self.fresh()}".encode()
        await client.send(Publish(self.topic(name), marker).encode(client.version))
        if not await watcher.got(marker, self.patience):
            ended = await client.end(1.0)
            if not ended.got_in:
                return ended
            return Seen(Layer.MQTT, "marker-lost", "even an allowed message did not arrive", ClosedBy.NOBODY)
        if await watcher.got(payload, 0):
            return Seen(Layer.MQTT, DELIVERED, "", ClosedBy.NOBODY, got_in=True)
        return Seen(Layer.MQTT, "not-delivered", "", ClosedBy.NOBODY)

    async def served(self, client: RawClient) -> float:
        """Return how long the innocent *client* waits for a PINGRESP; raise `Starved` if none comes."""
        started = time.monotonic()
        await client.send(Pingreq().encode(client.version))
        while True:
            packet = await client.receive(max(0.0, started + self.patience - time.monotonic()))
            if isinstance(packet, Seen):
                raise Starved(f"an innocent device was not served: {packet.text} {packet.reason}")
            if isinstance(packet, Pingresp):
                return time.monotonic() - started

    def broker_memory(self) -> int | None:
        """Return the broker's resident memory in bytes, where it is a process of ours."""
        if self.target.broker_pid is None:
            return None
        for line in Path(f"/proc/{self.target.broker_pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return None
