"""A small MQTT 5 broker in this process for a tester of bad devices to attack; it is correct, or has one fault.

Handles: mutual TLS, QoS 0 and 1, subscriptions, keep alive, a topic policy: a device publishes below its own topics, a
sender anywhere.
A test may put names in `FaultyBroker.revoked`: who then begins a connection is refused at its CONNECT.

Does not handle: sessions, wills; retained messages, but for those of `Fault.RETAINS_ALTERED`.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from cryptography import x509

from broker.mqtt.codes import PacketType, ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack, Connect
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.errors import PacketError, ProtocolError
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import Packet, Puback, Publish, Suback, Subscribe, decode_packet
from broker.mqtt.publish import PINGRESP
from broker.mqtt.topics import matches
from device_sim.attack.capabilities import Capabilities, Feature, TimeLimits
from device_sim.attack.issuer import SERVER_AUTH, Issuer, Paper
from device_sim.attack.target import SigningRegistrar, Target
from device_sim.credentials.certification import common_name
from device_sim.link.tls_dial import Endpoint
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.stapling import staple

_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME."""
_V5 = ProtocolVersion.V5
_BELIEVED = "believed"
_LARGEST = 1_000_000
_LATE = 0.3
_GRACE = 1.5
_EARLY = 0.2
_HELD_UP = 7.0
_FOURTH = 4
_OFTEN = 5
TO_CONNECT = 0.6
"""Seconds that those have for CONNECT who wait for it at all."""


class Fault(Enum):
    """What is wrong with the broker."""

    NONE = "nothing"
    DIES = "ends all connections when one sends a bad packet, and is there again at once"
    REFUSES_SOME = "refuses every fourth good device, with a reason"
    CUTS_SOME = "cuts every fourth good device off, without a word"
    DELIVERS_LATE = "delivers what is forbidden, but later than what was sent later"
    ALTERS = "delivers what is forbidden, with another payload"
    ALTERS_LATE = "delivers what is forbidden with another payload, and later than what was sent later"
    RETAINS_ALTERED = "retains what is forbidden, with another payload, for who subscribes later"
    ALTERS_FOR_SPIES = "delivers to devices what others say, with another payload"
    RETAINED_BEFORE = "has retained something for the first victim before, and lets nobody add to it"
    GOES_DEAF = "delivers nothing any more after the first message"
    GRANTS_NOTHING = "answers a SUBSCRIBE without a filter by a SUBACK without a reason code"
    IMPATIENT = "puts a silent device out long before its keep alive has passed"
    HASTY = "puts a silent device out after one keep alive, and not after one and a half"
    CLOSES_FOR_TOPICS = "closes the connection of whoever publishes to a topic that is not its own"
    BANS_THE_HASTY = "knows no revocation, and bans who has often connected and closed without DISCONNECT"
    SHUNS = "listens no more to who has published to a topic that is not its own, and leaves it connected"
    HOLDS_UP = "reads what an offender sends only later: that, and all that it says behind it"
    FORGETS = "refuses who is revoked once, and lets it in from then on"
    HURRIES = "closes whoever is slow with CONNECT, and learns of a revocation at the handshake only"
    WAITS_IT_OUT = "overlooks whatever comes before CONNECT, until it closes for want of one"
    HEARS_EARLY = "delivers what is published before CONNECT, and closes then"
    SILENT_TO_THIEVES = "does not answer a CONNECT under another's client identifier"
    SILENT_TO_HEIRS = "does not answer a CONNECT with a will"
    TAKES_THE_FIRST_NAME = "refuses client identifiers other than the Common Name, whatever else a certificate says"
    OVERLOOKS_DATES = "does not look at the dates of certificates"
    BELIEVES_SNI = "takes the server that is asked for (SNI) for the client, and refuses others' client identifiers"
    IGNORES_FLAGS = "does not look at the reserved bits of a SUBSCRIBE, but at its filter"


_PATIENCE = {Fault.IMPATIENT: _EARLY, Fault.HASTY: 1.05}
"""In keep alives."""


@dataclass(slots=True, eq=False)
class _Client:
    writer: asyncio.StreamWriter
    name: str
    connected: bool = False
    shunned: bool = False
    held_up: bool = False
    revoked: bool = False
    patience: float | None = None
    buffer: bytes = b""
    filters: list[str] = field(default_factory=list)


class FaultyBroker:
    """Created by `faulty`."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._clients: list[_Client] = []
        self.revoked: set[str] = set()
        self._admitted = 0
        self._delivered = 0
        self._broken_off: Counter[str] = Counter()
        self._retained: dict[str, Publish] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        subject: Any = (tls.getpeercert() or {})["subject"]
        named = dict(next(iter(each)) for each in subject)["commonName"]
        client = _Client(writer, str(getattr(tls, _BELIEVED, named)))
        self._clients.append(client)
        client.revoked = client.name in self.revoked
        if self.fault in {Fault.HURRIES, Fault.WAITS_IT_OUT}:
            client.patience = TO_CONNECT
        self._serving(asyncio.current_task())
        try:
            while data := await asyncio.wait_for(reader.read(65536), client.patience):
                client.buffer += data
                frames, used = split_frames(client.buffer, _LARGEST)
                if not all(self._handle(client, first, client.buffer[start:end]) for first, start, end in frames):
                    break
                client.buffer = client.buffer[used:]
        except TimeoutError:
            if client.connected:
                writer.write(Disconnect(ReasonCode.KEEP_ALIVE_TIMEOUT).encode(_V5))
        except PacketError:
            if self.fault is Fault.DIES:
                self.end()
            if client.connected:
                writer.write(Disconnect(ReasonCode.PROTOCOL_ERROR).encode(_V5))
        except OSError:
            pass
        finally:
            self._clients.remove(client)
            writer.close()

    def _serving(self, task: asyncio.Task[Any] | None) -> None:
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        """Reset all connections."""
        for each in self._clients:
            each.writer.transport.abort()

    async def close(self) -> None:
        """Reset all connections, and return when none is served any more."""
        self.end()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _handle(self, client: _Client, first: int, body: bytes) -> bool:
        """Return whether the connection continues."""
        if self.fault is Fault.WAITS_IT_OUT and not client.connected and first >> 4 != PacketType.CONNECT:
            return True
        packet = self._decoded(first, body)
        if self.fault is Fault.HEARS_EARLY and isinstance(packet, Publish) and not client.connected:
            self._deliver(packet)
        if isinstance(packet, Connect) == client.connected:
            raise ProtocolError("CONNECT comes once, and first")
        match packet:
            case bytes():
                client.writer.write(packet)
            case Connect(keep_alive=seconds):
                client.connected = True
                client.patience = seconds * _PATIENCE.get(self.fault, _GRACE)
                return self._answers(client, packet)
            case Subscribe(packet_id=packet_id, requests=requests):
                client.filters += [request.filter for request in requests]
                client.writer.write(Suback(packet_id, tuple(ReasonCode.SUCCESS for _ in requests)).encode(_V5))
                self._hand_out(client, [request.filter for request in requests])
            case Publish():
                return self._take(client, packet)
            case Disconnect():
                self._broken_off[client.name] -= 1
                return False
            case _ if packet.packet_type is PacketType.PINGREQ:
                client.writer.write(PINGRESP)
            case _:
                raise ProtocolError(f"{packet.packet_type.name} is no client's")
        return True

    def _hand_out(self, client: _Client, filters: list[str]) -> None:
        if self.fault is Fault.RETAINED_BEFORE:
            topics = [each.replace("#", "victim-001/telemetry") for each in filters]
            self._retained = {topic: Publish(topic, b"old") for topic in topics if "/victim-001/" in topic}
        for kept in self._retained.values():
            if any(matches(each, kept.topic) for each in filters):
                client.writer.write(Publish(kept.topic, kept.payload, retain=True).encode(_V5))

    def _decoded(self, first: int, body: bytes) -> Packet | bytes:
        if first >> 4 == PacketType.SUBSCRIBE:
            if self.fault is Fault.GRANTS_NOTHING and len(body) == len(b"\0\1\0"):
                return b"\x90\x03" + body
            if self.fault is Fault.IGNORES_FLAGS:
                first |= 2
        return decode_packet(first, body, _V5)

    def _answers(self, client: _Client, connect: Connect) -> bool:
        foreign = connect.client_id != client.name
        if (foreign and self.fault is Fault.SILENT_TO_THIEVES) or (
            connect.will is not None and self.fault is Fault.SILENT_TO_HEIRS
        ):
            return True
        if self.fault is Fault.FORGETS:
            self.revoked.discard(client.name)
        if client.revoked or (foreign and self.fault in {Fault.TAKES_THE_FIRST_NAME, Fault.BELIEVES_SNI}):
            client.writer.write(Connack(ReasonCode.NOT_AUTHORIZED).encode(_V5))
            return False
        return self._admits(client)

    def _admits(self, client: _Client) -> bool:
        self._admitted += 1
        self._broken_off[client.name] += 1
        if self.fault is Fault.BANS_THE_HASTY and self._broken_off[client.name] > _OFTEN:
            client.writer.write(Connack(ReasonCode.BANNED).encode(_V5))
            return False
        unlucky = self._admitted % _FOURTH == 0
        if unlucky and self.fault is Fault.CUTS_SOME:
            return False
        refused = unlucky and self.fault is Fault.REFUSES_SOME
        client.writer.write(Connack(ReasonCode.QUOTA_EXCEEDED if refused else ReasonCode.SUCCESS).encode(_V5))
        return not refused

    def _take(self, client: _Client, packet: Publish) -> bool:
        if client.shunned:
            return True
        allowed = packet.topic.split("/")[2:3] == [client.name] or client.name.startswith("sender")
        client.held_up = client.held_up or (self.fault is Fault.HOLDS_UP and not allowed)
        if client.held_up:
            self._serving(asyncio.create_task(self._deliver_late(packet, _HELD_UP)))
            return True
        client.shunned = self.fault is Fault.SHUNS and not allowed
        if packet.packet_id is not None:
            code = ReasonCode.SUCCESS if allowed else ReasonCode.NOT_AUTHORIZED
            client.writer.write(Puback(packet.packet_id, code).encode(_V5))
        if allowed:
            self._deliver(packet)
        elif self.fault is Fault.DELIVERS_LATE:
            self._serving(asyncio.create_task(self._deliver_late(packet)))
        elif self.fault is Fault.ALTERS_LATE:
            self._serving(asyncio.create_task(self._deliver_late(_altered(packet))))
        elif self.fault is Fault.ALTERS:
            self._deliver(_altered(packet))
        elif self.fault is Fault.RETAINS_ALTERED and packet.retain:
            self._retained[packet.topic] = _altered(packet)
        return allowed or self.fault is not Fault.CLOSES_FOR_TOPICS

    async def _deliver_late(self, packet: Publish, seconds: float = _LATE) -> None:
        await asyncio.sleep(seconds)
        self._deliver(packet)

    def _deliver(self, packet: Publish) -> None:
        self._delivered += 1
        if self.fault is Fault.GOES_DEAF and self._delivered > 1:
            return
        for client in self._clients:
            if any(matches(each, packet.topic) for each in client.filters):
                spied = self.fault is Fault.ALTERS_FOR_SPIES and client.name.startswith("device")
                told = _altered(packet) if spied else packet
                client.writer.write(Publish(told.topic, told.payload).encode(_V5))


def _believe(tls: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
    if name is not None and name != "localhost":
        setattr(tls, _BELIEVED, name.partition(".")[0])


def _altered(packet: Publish) -> Publish:
    return Publish(packet.topic, packet.payload[:-1] + b"?")


class _Registrar(SigningRegistrar):
    """Tells the broker of revocations."""

    def __init__(self, issuer: Issuer, broker: FaultyBroker) -> None:
        super().__init__(issuer, None)
        self._broker = broker

    async def revoke(self, paper: Paper) -> None:
        self._broker.revoked.add(paper.name)


_STAPLE_DUE = x509.TLSFeature([x509.TLSFeatureType.status_request])


@asynccontextmanager
async def faulty(
    directory: Path,
    fault: Fault = Fault.NONE,
    *,
    stapled: Callable[[Issuer, Paper], bytes] | None = None,
    staple_due: bool = False,
    of_another_ca: bool = False,
    path_length: int | None = 0,
    ends: timedelta = timedelta(days=1),
) -> AsyncIterator[Target]:
    """Yield a broker with this *fault* as a target; it claims a topic policy.

    It staples what *stapled* returns for its CA and its certificate. *staple_due*: that says that one is due; it is *of
    another CA* than the devices', whose CA has this *path_length*. All certificates end *ends* from now.
    """
    authority = Issuer.founded(common_name("CA"), path_length=path_length, ends=ends)
    above = Issuer.founded(common_name("CA of servers")) if of_another_ca else authority
    identity = Identity("fleet.internal", Role.BROKER, "broker-1")
    extra = ((_STAPLE_DUE, False),) if staple_due else ()
    server = above.issue(identity, usages=SERVER_AUTH, dns_names=["localhost"], extra=extra, ends=ends)
    (directory / "server.pem").write_bytes(server.pem.pem)
    (directory / "ca.pem").write_bytes(authority.pem + (above.pem if of_another_ca else b""))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(directory / "server.pem")
    context.load_verify_locations(directory / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    if fault is Fault.OVERLOOKS_DATES:
        context.verify_flags |= _NO_CHECK_TIME
    if fault is Fault.BELIEVES_SNI:
        context.sni_callback = _believe
    if stapled is not None:
        assert staple(context, stapled(above, server), math.inf)
    broker = FaultyBroker(fault)
    claims = Capabilities(
        name="faulty", supports=frozenset({Feature.MQTT5, Feature.TOPIC_POLICY}), limits=TimeLimits(keep_alive=10.0)
    )
    async with await asyncio.start_server(broker.serve, "127.0.0.1", 0, ssl=context) as listener:
        endpoint = Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost")
        registrar = _Registrar(authority, broker)
        yield Target(claims, endpoint, directory / "ca.pem", authority, registrar)
        await broker.close()
