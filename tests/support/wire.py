"""A whole broker in memory, with MQTT clients: real engine, real connections, fake wire, manual clock.

    broker = MemoryBroker()
    meter = broker.device("meter-1")                 # connected: its CONNACK has been read
    backend = broker.service("backend", version=V311)
    backend.subscribe("fleet/#", qos=1)
    meter.publish("fleet/meters/meter-1/telemetry", b"1")
    assert backend.received() == [Publish(…)]
    broker.advance(30)

Everything a connection writes is checked on the way: each element is one complete packet that can be decoded and
respects the client's Maximum Packet Size, with nothing after the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar

import pytest

from broker.admission.admission import Admission
from broker.admission.freshness import Freshness
from broker.admission.policy import TopicPolicy
from broker.admission.status import RevocationStatus
from broker.connection.connection import ClientConnection
from broker.credentials.own_certificate import OwnCertificate
from broker.engine.engine import Engine
from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode, RetainHandling
from broker.mqtt.connect import Connack, Connect, Will
from broker.mqtt.disconnect import SERVER_REASONS, Disconnect
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import (
    Packet,
    Pingreq,
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
    decode_packet,
)
from broker.mqtt.properties import NO_PROPERTIES, Properties
from broker.settings.limits import Limits
from provisioning.pki.revocation import RevocationIndex
from provisioning.pki.tls import CredentialFiles, CredentialPem
from tests.support.due import do_what_is_due
from tests.support.pki import DOMAIN, Held, shared_device, shared_pki, shared_service
from tests.support.policies import DEFAULT_POLICY

V31, V311, V5 = ProtocolVersion.V31, ProtocolVersion.V311, ProtocolVersion.V5
_ANY_SIZE = 268_435_460

Kind = TypeVar("Kind", bound=Packet)


class KeptSession(TypedDict):
    """What a client says at CONNECT, as keywords of `WireClient.connect`, so that its session outlives it."""

    clean_start: bool
    session_expiry_interval: int


KEPT: Final[KeptSession] = {"clean_start": False, "session_expiry_interval": 600}


class FakeTransport:
    """Records what is written and requested; refuses writes after the end."""

    address = "192.0.2.1:1883"

    def __init__(self) -> None:
        self.packets: deque[bytes] = deque()
        self.writes = 0
        self.probed_after: int | None = None
        # Not bool: what was asserted to be false, mypy takes for false ever after, and skips all behind the contrary.
        self.closed: Any = False
        self.was_reset = False
        self.held: Any = False
        self.unsent = False
        self.untaken = 0
        self.settled = False
        self.dozes = False
        self.rests: list[float] = []
        self.certificate: bytes | None = None
        self.path: Sequence[bytes] = ()
        self.forgets_tls_session: str | None = None
        self.failure: Exception | None = None
        """What a write meets."""

    def write(self, packets: list[bytes]) -> None:
        if self.failure is not None:
            raise self.failure
        if not packets or self.closed:  # No AssertionError: the connection takes that for a bug of its own, and ends.
            pytest.fail(f"written after the end: {packets!r}" if packets else "nothing was written")
        self.writes += 1
        self.packets.extend(packets)

    def close(self, last: Sequence[bytes] = ()) -> None:
        if last:
            self.write(list(last))
        assert not self.closed, "closed twice"
        self.closed = True

    def reset(self) -> None:
        self.packets.clear()
        self.close()
        self.was_reset = True

    def hold(self) -> None:
        assert not self.held, "held twice"
        self.held = True

    def release(self) -> None:
        self.held = False

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)

    def presented(self) -> tuple[bytes | None, Sequence[bytes]]:
        return self.certificate, self.path

    def forget_tls_session(self, *, at_any_price: bool) -> None:
        self.forgets_tls_session = "at any price" if at_any_price else "if it costs nobody else"

    def settle(self, *, dozes: bool = False) -> None:
        assert not self.settled or dozes is not self.dozes, "admitted twice"
        self.settled = True
        self.dozes = dozes

    def probe(self, silence: int) -> None:
        self.probed_after = silence


def own_certificate(held: Held | None = None) -> OwnCertificate:
    """Return what a broker with *held* presents; without it, an unreadable certificate."""
    nowhere = Path("nowhere")
    return OwnCertificate(
        CredentialFiles(nowhere, nowhere), held.credential if held is not None else CredentialPem(b"")
    )


class MemoryBroker:
    """An engine whose clock, loop and revocation data the test controls."""

    connection_type: Callable[..., Any] = ClientConnection

    def __init__(
        self,
        *,
        fresh: bool = True,
        grace: float = 300.0,
        policy: TopicPolicy = DEFAULT_POLICY,
        trust_domain: str | None = DOMAIN,
        connection_type: Callable[..., Any] = ClientConnection,
        **limits: Any,
    ) -> None:
        self.now = 1000.0
        self.wall = shared_pki().now
        self._soon: deque[Callable[[], None]] = deque()
        self.freshness = Freshness(grace)
        admission = Admission(RevocationStatus(RevocationIndex(), self.freshness), policy, trust_domain)
        self.engine = Engine(admission, Limits(**limits), self._soon.append, self.now)
        handovers = self.engine.handovers
        handovers.again = lambda: self._soon.append(lambda: handovers.go_on(self.now))
        self.connection_type = connection_type
        if fresh:
            self.freshness.current(self.now)

    @property
    def metrics(self) -> Any:
        return self.engine.metrics

    def settle(self) -> None:
        """Run the event loop until it has nothing more to do."""
        while self._soon:
            self._soon.popleft()()

    def advance(self, seconds: float) -> None:
        """Let time pass, with one tick per second like the real process, or one jump if that would be many."""
        end = self.now + seconds
        while self.now < end:
            step = 1.0 if seconds <= 600 else seconds
            self.now = min(self.now + step, end)
            self.wall = shared_pki().now + timedelta(seconds=self.now - 1000.0)
            do_what_is_due(self.engine, self.now)
            self.settle()

    def keep_fresh(self) -> None:
        """Let the revocation feed report that nothing has happened."""
        self.freshness.current(self.now)

    def open(self, holder: Held | None, *, version: ProtocolVersion = V5, path: Sequence[bytes] = ()) -> WireClient:
        """Return a client whose TLS is up, with the verified *path* if any, that has not sent anything yet."""
        return WireClient(self, holder, version, path)

    def device(self, name: str, *, version: ProtocolVersion = V5, **connect: Any) -> WireClient:
        """Return a connected device of group ``meters``."""
        client = self.open(shared_device(name), version=version)
        client.connect(client_id=name, **connect)
        return client

    def service(self, name: str = "backend", *, version: ProtocolVersion = V5, **connect: Any) -> WireClient:
        """Return a connected service."""
        client = self.open(shared_service(name), version=version)
        client.connect(**({"client_id": name} | connect))
        return client


class WireClient:
    """An MQTT client whose socket is a `FakeTransport`."""

    def __init__(
        self,
        broker: MemoryBroker,
        holder: Held | None,
        version: ProtocolVersion = V5,
        path: Sequence[bytes] = (),
        *,
        is_secured: bool = True,
    ) -> None:
        """Connect, and complete the handshake, unless the test calls `secure` itself."""
        self.broker = broker
        self.version = version
        self.transport = FakeTransport()
        self.transport.certificate = holder.der if holder is not None else None
        self.transport.path = path
        self.maximum_packet_size = _ANY_SIZE
        self.connection: ClientConnection = broker.connection_type(broker.engine, self.transport, broker.now)
        self._next_id = 0
        if is_secured:
            self.secure()

    def secure(self) -> None:
        """Let TLS be up."""
        if not self.closed:
            broker, transport = self.broker, self.transport
            self.connection.secured(transport.certificate, broker.now, broker.wall, lambda: transport.path)

    @property
    def closed(self) -> Any:
        return self.transport.closed

    @property
    def session(self) -> Any:
        session = self.connection.session
        assert session is not None, "not connected"
        return session

    # Sending

    def send_bytes(self, data: bytes) -> None:
        """Let the broker read *data*, and end the turn, as the poller does."""
        self.broker.engine.turn.begin()
        if not self.closed:
            self.connection.receive(data, self.broker.now)
        self.broker.engine.turn.end()
        self.broker.settle()

    def send(self, *packets: Packet) -> None:
        """Send *packets* in one read."""
        self.send_bytes(b"".join(packet.encode(self.version) for packet in packets))

    def connect(self, *, expect: ReasonCode | None = ReasonCode.SUCCESS, **fields: Any) -> Connack:
        """Send CONNECT with these *fields*; return the CONNACK, which must have *expect*, if given."""
        packet = connect_packet(self.version, **fields)
        self.maximum_packet_size = packet.properties.maximum_packet_size or _ANY_SIZE
        self.send(packet)
        answer = self.next_packet(Connack)
        assert expect is None or answer.reason_code is expect, answer
        return answer

    def subscribe(self, *filters: str | SubscriptionRequest, qos: int = 0, identifier: int | None = None) -> Suback:
        """Subscribe and return the SUBACK; what follows it stays to be received."""
        requests = tuple(SubscriptionRequest(f, QoS(qos)) if isinstance(f, str) else f for f in filters)
        properties = Properties(subscription_identifiers=(identifier,)) if identifier else NO_PROPERTIES
        self.send(Subscribe(self.packet_id(), requests, properties))
        return self.next_packet(Suback)

    def unsubscribe(self, *filters: str) -> Unsuback:
        self.send(Unsubscribe(self.packet_id(), filters))
        return self.next_packet(Unsuback)

    def publish(self, topic: str, payload: bytes = b"", *, qos: int = 0, **fields: Any) -> Puback | None:
        """Publish; at QoS 1 return the PUBACK, at QoS 2 complete the exchange."""
        packet_id = self.packet_id() if qos else None
        self.send(publication(topic, payload, qos, packet_id=packet_id, **fields))
        if qos < 2 or packet_id is None:
            return self.next_packet(Puback) if qos else None
        assert self.next_packet(Pubrec) == Pubrec(packet_id)
        self.send(Pubrel(packet_id))
        assert self.next_packet(Pubcomp) == Pubcomp(packet_id)
        return None

    def acknowledge(self, *messages: Publish) -> None:
        """Send a PUBACK for each of *messages*, in one read."""
        self.send(*(Puback(message.packet_id) for message in messages if message.packet_id is not None))

    def ping(self) -> None:
        self.send(Pingreq())

    def vanish(self) -> None:
        """Let the transport find that the peer is gone."""
        if not self.closed:
            self.transport.closed = True
            self.connection.lost("CONNECTION_LOST", self.broker.now)
            self.broker.settle()

    def leave(self, reason: ReasonCode = ReasonCode.NORMAL_DISCONNECTION, **properties: Any) -> None:
        self.send(Disconnect(reason, Properties(**properties)))

    def packet_id(self) -> int:
        self._next_id = self._next_id % 65535 + 1
        return self._next_id

    # Receiving

    def next_packet(self, kind: type[Kind]) -> Kind:
        """Return the next packet, which must be of *kind*."""
        assert self.transport.packets, f"a {kind.__name__} was expected; closed: {self.closed}"
        packet = self._decode(self.transport.packets.popleft())
        assert isinstance(packet, kind), f"a {kind.__name__} was expected: {packet}"
        return packet

    def received(self) -> list[Packet]:
        """Return everything that was written since the last call."""
        packets = [self._decode(each) for each in self.transport.packets]
        self.transport.packets.clear()
        return packets

    def messages(self) -> list[Publish]:
        """Return the PUBLISH packets of `received`; there must be nothing else."""
        packets = self.received()
        assert all(isinstance(each, Publish) for each in packets), packets
        return [each for each in packets if isinstance(each, Publish)]

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages()]

    def farewell(self) -> Disconnect:
        """Return the DISCONNECT that ended the connection; it must be the last packet, with a server's reason."""
        *_, last = self.received()
        assert isinstance(last, Disconnect)
        assert last.reason_code in SERVER_REASONS
        assert self.closed
        return last

    def _decode(self, data: bytes) -> Packet:
        frames, used = split_frames(data, _ANY_SIZE)
        assert len(frames) == 1, f"not one packet: {data!r}"
        assert used == len(data), f"not one packet: {data!r}"
        assert len(data) <= self.maximum_packet_size, f"larger than the client's maximum: {data!r}"
        first, start, end = frames[0]
        return decode_packet(first, data[start:end], self.version)


def connect_packet(version: ProtocolVersion, **fields: Any) -> Connect:
    """Return a CONNECT; keywords that are not its fields are its properties."""
    known = {name: fields.pop(name) for name in list(fields) if name in Connect.__dataclass_fields__}
    known = {"clean_start": True} | known
    properties = Properties(**fields) if fields else known.pop("properties", NO_PROPERTIES)
    return Connect(protocol_version=version, properties=properties, **known)


def publication(topic: str, payload: bytes = b"", qos: int = 0, **fields: Any) -> Publish:
    """Return a PUBLISH; keywords that are not its fields are its properties."""
    known = {name: fields.pop(name) for name in list(fields) if name in Publish.__dataclass_fields__}
    properties = Properties(**fields) if fields else known.pop("properties", NO_PROPERTIES)
    return Publish(topic, payload, QoS(qos), properties=properties, **known)


def id_of(message: Publish) -> int:
    """Return the packet identifier of *message*, which is at QoS 1 or 2."""
    assert message.packet_id is not None, message
    return message.packet_id


def request(
    topic_filter: str,
    qos: int = 0,
    *,
    no_local: bool = False,
    retain_as_published: bool = False,
    retain_handling: int = 0,
) -> SubscriptionRequest:
    """Return one filter of a SUBSCRIBE with its options."""
    return SubscriptionRequest(topic_filter, QoS(qos), no_local, retain_as_published, RetainHandling(retain_handling))


def will(topic: str, payload: bytes = b"gone", qos: int = 0, *, retain: bool = False, **properties: Any) -> Will:
    """Return a will."""
    return Will(topic, payload, QoS(qos), retain, Properties(**properties))
