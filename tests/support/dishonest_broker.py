"""A small MQTT 5 broker in this process that lies once, as instructed: the simulator must detect it.

Handles: QoS 0 and 1, subscriptions by the reference matcher, retained messages, and revocation.
Does not handle: sessions, wills.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import Enum

from broker.mqtt.codes import PacketType, ProtocolVersion, QoS, ReasonCode
from broker.mqtt.connect import Connack, Connect
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import Packet, Puback, Publish, Suback, Subscribe, decode_packet
from broker.mqtt.properties import Properties
from broker.mqtt.publish import PINGRESP
from broker.mqtt.topics import matches
from device_sim.link.closure import REVOKED
from device_sim.link.tls_dial import Endpoint
from device_sim.telemetry.seal import key_of, sealed_object
from provisioning.client.operator import ServiceUnavailable
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.authority import Authority

_V5 = ProtocolVersion.V5
_LARGEST = 1_000_000
_LATE = 0.1
_ONE = "meter-1"
_SECOND = "backend-2"
_WHICH = 3
"""Which telemetry message of each device is mistreated; for commands and answers it is the first."""
_BACKEND_AND_ONE = 2


class Lie(Enum):
    """What the broker does wrong."""

    NOTHING = "nothing"
    DAWDLES = "acknowledges a subscription late, which is no lie"
    SWALLOWS = "neither acknowledges nor delivers one message"
    DROPS = "acknowledges one message and does not deliver it"
    DOUBLES = "delivers one message twice"
    OVERTAKES = "delivers one message behind the next"
    FORGES = "delivers a message with a number that its device has never reached"
    ALTERS = "delivers one message with another value"
    RENUMBERS = "delivers one message with another number"
    CONFUSES = "delivers one message of each of two devices under the topic of the other"
    ALTERS_A_COMMAND = "delivers one command under another identifier"
    ALTERS_AN_ANSWER = "delivers one answer with another detail"
    SCRIBBLES = "delivers a message that is none"
    DOUBLES_A_COMMAND = "delivers one command twice"
    DOUBLES_AN_ANSWER = "delivers one answer to a command twice"
    COMES_BACK_TO_IT = "delivers a command altered and an answer twice, when nobody sends or publishes any more"
    KEEPS_IN = "leaves the session of a revoked device open"
    LETS_IN = "lets a revoked device in again"
    CUTS_AND_LETS_IN = "cuts a revoked device off without a word, and lets it in again"
    BLAMES_AND_LETS_IN = "gives a revoked device another reason, and lets it in again"
    KEEPS_ITS_SESSION = "lets a revoked device in again, to a session that it has not asked for"
    SHUTS_THE_OFFICE = "cannot be asked to revoke anybody"
    TURNS_AWAY = "refuses a good device"
    RESUMES = "says that it resumes a session, where a clean start was asked for"
    FORGETS = "keeps no retained message"
    TELLS_THE_FIRST = "tells the second of two receivers nothing of who is there"
    DIES = "breaks all connections when the first device says that it is there, and takes no more"
    """Whoever comes before that gets no answer: there is no moment at which all are in."""


_TWO = ("fleet/meters/meter-1/telemetry", "fleet/meters/meter-2/telemetry")
_EXCHANGED = dict(zip(_TWO, reversed(_TWO), strict=True))


_ASKED_AT_THE_END = "fleet/+/+/state"
"""What a receiver subscribes to when all devices have finished."""
_ALTERATIONS = {
    Lie.ALTERS: ("/telemetry", rb'("power_w":)(\d)'),
    Lie.RENUMBERS: ("/telemetry", rb'("seq":)(\d)'),
    Lie.COMES_BACK_TO_IT: ("/cmd/", rb'("id":"[^"]*)(\d)'),
    Lie.ALTERS_A_COMMAND: ("/cmd/", rb'("id":"[^"]*)(\d)'),
    Lie.ALTERS_AN_ANSWER: ("/ack", rb'("published":)(\d)'),
}
"""The topics, and the digit to be replaced."""


def _altered(packet: Publish, lie: Lie) -> Publish:
    """Return *packet* as *lie* alters it."""
    if lie is Lie.CONFUSES:
        return replace(packet, topic=_EXCHANGED.get(packet.topic, packet.topic))
    part, digit = _ALTERATIONS.get(lie, ("", b""))
    if not digit or part not in packet.topic:
        return packet
    payload = re.sub(digit, lambda found: found[1] + b"%d" % (int(found[2]) % 9 + 1), packet.payload)
    return replace(packet, payload=payload)


@dataclass(slots=True)
class _Client:
    name: str
    writer: asyncio.StreamWriter
    filters: list[str] = field(default_factory=list)
    held: list[Publish] = field(default_factory=list)

    def send(self, packet: Packet) -> None:
        self.writer.write(packet.encode(_V5))


class DishonestBroker:
    """Created by `dishonest`. It is its own operator: `revoke` has the signature of `OperatorClient`'s."""

    mark = 0
    """That of the run, which a forger computes from the messages."""

    def __init__(self, lie: Lie) -> None:
        self.lie = lie
        self._clients: dict[str, _Client] = {}
        self._revoked: set[str] = set()
        self._retained: dict[str, Publish] = {}
        self._kept_back: list[Publish] = []
        self._published: Counter[str] = Counter()
        self._dead = False

    async def revoke(self, *, device: str, reason: RevocationReason) -> None:
        """Close the session of *device*, and admit it no more; or not."""
        del reason
        if self.lie is Lie.SHUTS_THE_OFFICE:
            raise ServiceUnavailable("https://localhost cannot be reached: Connection refused")
        self._revoked.add(device)
        client = self._clients[device]
        match self.lie:
            case Lie.KEEPS_IN:
                return
            case Lie.CUTS_AND_LETS_IN:
                pass
            case Lie.BLAMES_AND_LETS_IN:
                client.send(Disconnect(ReasonCode.ADMINISTRATIVE_ACTION))
            case _:
                client.send(Disconnect(ReasonCode.NOT_AUTHORIZED, Properties(reason_string=REVOKED)))
        client.writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        buffer, client = b"", _Client("", writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                buffer += data
                frames, used = split_frames(buffer, _LARGEST)
                for first, start, end in frames:
                    self._handle(client, decode_packet(first, buffer[start:end], _V5))
                buffer = buffer[used:]
        writer.close()

    def _handle(self, client: _Client, packet: Packet) -> None:
        match packet:
            case Connect(client_id=name):
                client.name = name
                self._admit(client)
            case Subscribe(packet_id=packet_id, requests=requests):
                client.filters += [request.filter for request in requests]
                if _ASKED_AT_THE_END in client.filters:
                    self._deliver(self._kept_back)
                suback = Suback(packet_id, tuple(ReasonCode(QoS.AT_LEAST_ONCE) for _ in requests))
                asyncio.get_running_loop().call_later(_LATE * (self.lie is Lie.DAWDLES), client.send, suback)
                self._deliver([kept for kept in self._retained.values() if self.lie is not Lie.FORGETS], [client])
            case Publish():
                self._published[packet.topic] += 1
                self._take(client, packet, wrong=self._published[packet.topic] == self._which(packet))
            case _ if packet.packet_type is PacketType.PINGREQ:
                client.writer.write(PINGRESP)

    def _admit(self, client: _Client) -> None:
        if self._dead:
            client.writer.close()
            return
        lets_in = {Lie.LETS_IN, Lie.CUTS_AND_LETS_IN, Lie.BLAMES_AND_LETS_IN, Lie.KEEPS_ITS_SESSION}
        if self.lie is Lie.TURNS_AWAY and client.name.endswith("1"):
            client.send(Connack(ReasonCode.NOT_AUTHORIZED))
        elif client.name in self._revoked and self.lie not in lets_in:
            client.send(Connack(ReasonCode.NOT_AUTHORIZED, properties=Properties(reason_string=REVOKED)))
        else:
            kept = client.name == _ONE if self.lie is Lie.RESUMES else client.name in self._revoked
            lies = self.lie in {Lie.RESUMES, Lie.KEEPS_ITS_SESSION}
            if self.lie is not Lie.DIES or len(self._clients) < _BACKEND_AND_ONE:
                client.send(Connack(ReasonCode.SUCCESS, session_present=lies and kept))
            self._clients[client.name] = client

    def _which(self, packet: Publish) -> int:
        return _WHICH if packet.topic.endswith("/telemetry") else 1

    def _take(self, client: _Client, packet: Publish, *, wrong: bool) -> None:
        if packet.retain:
            self._retained[packet.topic] = packet
        lie = self.lie if wrong else Lie.NOTHING
        if lie is Lie.COMES_BACK_TO_IT and not packet.topic.endswith(("/telemetry", "/state")):
            self._kept_back.append(_altered(packet, lie))
            lie = Lie.NOTHING
        packet = _altered(packet, lie)
        if lie is Lie.DIES:
            self._dead = True
            for one in self._clients.values():
                one.writer.close()
            return
        if packet.packet_id is not None and lie is not Lie.SWALLOWS:
            client.send(Puback(packet.packet_id))
        if not packet.topic.endswith("/telemetry"):
            doubled = Lie.DOUBLES_A_COMMAND if "/cmd/" in packet.topic else Lie.DOUBLES_AN_ANSWER
            self._deliver([packet, packet] if lie is doubled else [packet])
            return
        match lie:
            case Lie.SWALLOWS | Lie.DROPS:
                pass
            case Lie.DOUBLES:
                self._deliver([packet, packet])
            case Lie.OVERTAKES:
                client.held.append(packet)
            case Lie.FORGES:
                fields = packet.payload.partition(b',"crc"')[0] + b"}"
                forged = fields.replace(b'"seq":%d,' % _WHICH, b'"seq":%d,' % (10**6))
                forged = sealed_object(forged, key_of(packet.topic, self.mark))
                self._deliver([packet, replace(packet, payload=forged)])
            case Lie.SCRIBBLES:
                self._deliver([packet, replace(packet, payload=b"\xff")])
            case _:
                self._deliver([packet, *client.held])
                client.held.clear()

    def _deliver(self, packets: Sequence[Publish], to: Sequence[_Client] | None = None) -> None:
        for client in self._clients.values() if to is None else to:
            if not client.writer.is_closing():
                # In one write: duplicates arrive in one turn of the receiver's loop.
                client.writer.write(b"".join(
                    Publish(packet.topic, packet.payload).encode(_V5)
                    for packet in packets
                    if any(matches(one, packet.topic) for one in client.filters)
                    and not (self.lie is Lie.TELLS_THE_FIRST and client.name == _SECOND and "/state" in packet.topic)
                ))  # fmt: skip


@asynccontextmanager
async def dishonest(authority: Authority, lie: Lie) -> AsyncIterator[tuple[DishonestBroker, Endpoint]]:
    """Yield a broker, certified by *authority*, that tells this *lie*, and its address."""
    credential = authority.issue("broker-1", role=Role.BROKER, group=None)
    context = server_context(credential.pem, authority.pem, client_certificate=ClientCertificate.REQUIRED)
    broker = DishonestBroker(lie)
    async with await asyncio.start_server(broker.serve, "127.0.0.1", 0, ssl=context) as listener:
        yield broker, Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost")
