"""Coming in: names, certificates and connections of those who take part in a run against one target.

Rules
-----
1. Each case has devices of its own: no case can spoil another's.
2. Refusing a good party is a finding, once another of its role was admitted here (`TurnedAway`, `Starved`). Before
   that, all that is known is that this broker does not know such parties (`Impossible`).

Does not handle: what becomes of those who are revoked, and what is heard (`device_sim.attack.scene`, which builds on
this).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from dataclasses import replace
from typing import Any

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Disconnect, Pingreq, Pingresp, Suback, Subscribe, SubscriptionRequest
from device_sim.attack.bystander import Bystander
from device_sim.attack.capabilities import Feature
from device_sim.attack.far_broker import TIMED
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.target import Impossible, Starved, Target, TurnedAway
from device_sim.attack.verdict import OPEN, ClosedBy, Seen, is_answer, seen_in
from device_sim.link.closure import REFUSED, Closure
from device_sim.link.tls_dial import NotAdmitted
from device_sim.remedies import with_remedy
from provisioning.pki.identity import identity_of
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialPem, client_context

_ANSWER = 10.0
_AT_ONCE = 1.0  # No broker drops a client as soon as that.


class Entry:
    """The way to one target, for anybody."""

    def __init__(self, target: Target, named: Counter[str], patience: float) -> None:
        """*named*: how many names of each stem have been handed out; *patience*: how long a good device waits."""
        self.target = target
        self.patience = patience
        self._named = named
        self.bystander = Bystander(self._innocent, patience)
        self.knows_own_tls = False
        """Whether a good device was let in that connects with a TLS stack of our own."""
        self._let_in: set[Role] = set()

    # Parties

    def fresh(self, stem: str = "device") -> str:
        """Return an unused name."""
        self._named[stem] += 1
        return f"{self.target.prefix}{stem}-{self._named[stem]:03d}"

    async def device(self, name: str = "") -> Paper:
        """Return a good device."""
        return await self.target.registrar.certify(self.target.device(name or self.fresh()))

    def forged(self, name: str = "") -> Paper:
        """Return a certificate that the CA signs for a device without the registrar's knowledge."""
        return self.target.issuer.issue(self.target.device(name or self.fresh()))

    def topic(self, name: str, suffix: str = "telemetry") -> str:
        """Return a topic of the device called *name*."""
        return f"fleet/{self.target.group}/{name}/{suffix}"

    # Connecting

    def at_most(self, seconds: float) -> float:
        """Return how long to wait for what a broker nearby has *seconds* for.

        Across a long link an answer may come later: then it is judged late, and not missing.
        """
        return seconds + self.bystander.distance.longest(TIMED)

    @property
    def version(self) -> ProtocolVersion:
        """The MQTT version used unless a case says otherwise: the newest that the target claims."""
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
        server_name: str | None = None,
    ) -> RawClient:
        """Return a connection to the target; raise `device_sim.link.tls_dial.NotAdmitted`.

        *server_name*: whom it asks for, if that is not the target: of an address the TLS extension says nothing.
        """
        version, endpoint = version or self.version, self.target.endpoint
        if server_name is not None:
            endpoint = replace(endpoint, server_name=server_name)
        return await RawClient.dial(
            endpoint, context, version=version, session=session, source=source, deadline=self.at_most(_ANSWER)
        )

    def context(self, pem: CredentialPem | None, *, allow_tls12: bool = False) -> ssl.SSLContext:
        """Return a client context for the target."""
        return client_context(self.target.anchors, pem, allow_tls12=allow_tls12)

    async def present(
        self,
        context: ssl.SSLContext,
        client_id: str,
        *,
        version: ProtocolVersion | None = None,
        session: ssl.SSLSession | None = None,
        goodbye: bool = True,
        clean: bool = True,
        server_name: str | None = None,
    ) -> Seen:
        """Connect with *context*, send a harmless CONNECT, and return the answer, timed from the first packet.

        If it is let in, it says DISCONNECT unless not *goodbye*: a broker may ban who breaks off again and again, and
        that ban is not the refusal which is asked for. Not *clean*: it asks for the session that the broker has kept.
        *server_name* is as for `dial`.
        """
        started = time.monotonic()
        try:
            client = await self.dial(context, version=version, session=session, server_name=server_name)
        except NotAdmitted as error:
            return seen_in(error.closure).since(started)
        try:
            hello = self.connect(client_id, version=version, keep_alive=60, clean_start=clean)
            seen = await client.connect(hello, self.at_most(_ANSWER))
            if goodbye and seen.got_in and seen.code != OPEN:
                await client.send(Disconnect().encode(client.version))
        finally:
            resumed = client.socket.session_reused
            client.close()
        seen = seen.since(started)
        if session is None:
            return seen
        how = "TLS session resumed" if resumed else "full handshake: the broker did not resume"
        return replace(seen, reason=f"{how}; {seen.reason}" if seen.reason else how)

    async def show(self, paper: Paper, pem: CredentialPem | None = None, *, clean: bool = True) -> Seen:
        """Connect with *paper*, or *pem* in its place, under the name in *paper*; *clean* as for `present`."""
        return await self.present(self.context(pem or paper.pem), paper.name, clean=clean)

    async def admitted(
        self, paper: Paper, connect: Connect | None = None, context: ssl.SSLContext | None = None
    ) -> RawClient:
        """Return a connection of the good *paper*, in its own *context* if given.

        Raises, if it is refused, `TurnedAway`, or `Starved` if without a reason; `Impossible` if no party of its role
        has ever been admitted (rule 2).
        """
        started = time.monotonic()
        client = await self.dialled(paper, context)
        await self.let_in(client, paper, connect or self.connect(paper.name, keep_alive=600), started)
        return client

    async def let_in(self, client: RawClient, paper: Paper, connect: Connect, started: float | None = None) -> None:
        """Send *connect* on the dialled connection of the good *paper*, begun at *started*; raise as `admitted`."""
        started = time.monotonic() if started is None else started
        try:
            seen = await client.connect(connect, self.at_most(_ANSWER))
        except BaseException:
            client.close()
            raise
        if not seen.got_in or seen.code == OPEN:
            client.close()
            raise self._refusal(paper, seen.since(started))
        self._let_in.add(identity_of(paper.certificate).role)

    async def _innocent(self) -> RawClient:
        return await self.admitted(await self.device())

    async def dialled(self, paper: Paper, context: ssl.SSLContext | None = None) -> RawClient:
        """Return a TLS connection of the good *paper*, in its own *context* if given; raise as `admitted`."""
        started = time.monotonic()
        try:
            return await self.dial(context or self.context(paper.pem))
        except NotAdmitted as error:
            raise self._refusal(paper, seen_in(error.closure).since(started), error.closure) from error

    def _refusal(self, paper: Paper, seen: Seen, closure: Closure | None = None) -> Exception:
        role = identity_of(paper.certificate).role
        text = f"a good {role} is not let in: {closure or f'{seen.text} {seen.reason}'.rstrip()}"
        if role not in self._let_in:
            return Impossible(with_remedy(text, closure or seen))
        # On a slow machine a broker's own deadline may have expired, but none is as short as that. That nobody listens
        # is the machine's own answer, however slow it is.
        at_once = seen.closed_by is ClosedBy.PEER and (seen.seconds or 0.0) < _AT_ONCE
        nobody = closure is not None and closure.code == REFUSED
        return TurnedAway(text) if is_answer(seen) or at_once or nobody else Starved(text)

    async def subscribe(self, client: RawClient, *filters: str, qos: QoS = QoS.AT_MOST_ONCE) -> Seen:
        """Subscribe in one packet and return the answer, about the last of *filters*."""
        request = Subscribe(1, tuple(SubscriptionRequest(each, qos) for each in filters))
        await client.send(request.encode(client.version))
        return await client.answer(Suback, deadline=self.at_most(_ANSWER))

    async def arrived(self, client: RawClient) -> None:
        """Wait until what *client* sent last has come to the broker: an operator may have a shorter way to it."""
        distance = self.bystander.distance
        await asyncio.sleep(distance.usual if distance.is_far else 0.0)
        await client.arrived(self.at_most(_ANSWER))  # A lost packet comes later.

    async def served(self, client: RawClient) -> float:
        """Return how long the innocent *client* waits for a PINGRESP; raise `Starved` if none comes."""
        started = time.monotonic()
        await client.send(Pingreq().encode(client.version))
        while True:
            packet = await client.receive(max(0.0, started + self.patience - time.monotonic()))
            if isinstance(packet, Disconnect):
                packet = client.seen(packet)
            if isinstance(packet, Seen):
                what = f"an innocent device was not served: {packet.text} {packet.reason}".rstrip()
                raise Starved(what) if packet.got_in else TurnedAway(what)
            if isinstance(packet, Pingresp):
                return time.monotonic() - started
