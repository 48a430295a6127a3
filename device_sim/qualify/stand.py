"""The test stand: a broker for one device that behaves as configured, and records what the device did.

Theory
------
A device is judged by what it does when its broker misbehaves. So the stand speaks TLS and MQTT well enough for any
client, and a `Conduct` says where it stops doing so. It decides nothing: `judging` does, from the `Attempt` records.

Rules
-----
1. Everything the device sends is recorded, up to a bound; only the conduct determines what the stand does.
2. The stand ends a connection where the conduct says so; otherwise the device does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
import warnings
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode
from broker.mqtt.packets import (
    Connack,
    Connect,
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
    Unsuback,
    Unsubscribe,
)
from device_sim.attack.raw_client import RawClient, reset
from device_sim.attack.verdict import Seen
from device_sim.link.closure import from_error
from device_sim.link.tls_dial import handshake
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.papers import Papers, ServerPaper
from provisioning.pki.openssl import say_goodbye
from provisioning.pki.tls import ClientCertificate, server_context

_MOST_PACKETS = 10_000
_MOST_ATTEMPTS = 5_000
_HANDSHAKE = 60.0
_FOREVER = 3600.0
_UNACKNOWLEDGED = 1.0


class Step(IntEnum):
    """How far a connection comes before the stand drops it, or falls silent."""

    TCP = 1
    TLS = 2
    CONNECT = 3
    CONNACK = 4
    REQUEST = 5
    """The first SUBSCRIBE or PUBLISH."""


@dataclass(frozen=True, slots=True)
class Conduct:
    """How the stand behaves; correctly, if no argument is given."""

    paper: ServerPaper = ServerPaper.GOOD
    tls11_only: bool = False
    drop_at: Step | None = None
    silent_at: Step | None = None
    connack: ReasonCode = ReasonCode.SUCCESS
    first_puback: bool = True
    """Whether the first message is acknowledged; if not, the connection is dropped a second later."""


class CannotListen(Exception):
    """The address where the device is to connect is in use, or not on this machine."""


class Stand:
    """Listens on *host* and *port* (0: a free one) while the context is open."""

    def __init__(self, papers: Papers, conduct: Conduct, host: str, port: int) -> None:
        self.attempts: list[Attempt] = []
        self.port = port
        self._conduct = conduct
        self._host = host
        self._context = _context(papers, conduct)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._listening: socket.socket | None = None

    async def __aenter__(self) -> Self:
        """Listen."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            self._listening = socket.create_server((self._host, self.port), family=family)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            where = f"{self._host} port {self.port}"
            raise CannotListen(f"nothing can listen on {where}: {why}; give others: --host, --port") from error
        self._listening.setblocking(False)
        self.port = self._listening.getsockname()[1]
        self._start(self._accept())
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Stop, and drop the device."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._listening is not None:
            self._listening.close()

    async def change(self) -> None:
        """Wait until the device has done something."""
        await self._changed.wait()
        self._changed.clear()

    def _start(self, story: object) -> None:
        task = asyncio.create_task(story, name="stand")  # type: ignore[arg-type,var-annotated]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while self._listening is not None and len(self.attempts) < _MOST_ATTEMPTS:
            raw, _ = await loop.sock_accept(self._listening)
            raw.setblocking(False)
            attempt = Attempt(time.monotonic())
            self.attempts.append(attempt)
            self._changed.set()
            self._start(self._serve(raw, attempt))

    async def _serve(self, raw: socket.socket, attempt: Attempt) -> None:
        connected = raw
        try:
            if self._conduct.drop_at is Step.TCP:
                attempt.by_device = False
                return
            if self._conduct.silent_at is Step.TCP:
                await _gone(raw)
                return
            connected = tls = self._context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
            if await self._shaken(tls, attempt):
                await self._talk(RawClient(tls, ProtocolVersion.V311), attempt)
        finally:
            attempt.ended = time.monotonic()
            if attempt.by_device or self._conduct.connack is not ReasonCode.SUCCESS:
                connected.close()  # What was sent last must arrive.
            else:
                reset(connected)
            self._changed.set()

    async def _shaken(self, tls: ssl.SSLSocket, attempt: Attempt) -> bool:
        try:
            async with asyncio.timeout(_HANDSHAKE):
                await handshake(asyncio.get_running_loop(), tls)
        except (OSError, TimeoutError) as error:
            attempt.refusal = from_error(error, time.monotonic()).code
            return False
        attempt.tls, attempt.tls_version = time.monotonic(), tls.version() or ""
        attempt.certificate = tls.getpeercert(binary_form=True) is not None
        self._changed.set()
        return True

    async def _talk(self, peer: RawClient, attempt: Attempt) -> None:
        conduct = self._conduct
        if conduct.drop_at is Step.TLS:
            attempt.by_device = False
            return
        while True:
            packet = await peer.receive(_FOREVER)
            if isinstance(packet, Seen):
                attempt.noise |= packet.code == "malformed"
                return
            if len(attempt.packets) < _MOST_PACKETS:
                attempt.packets.append((time.monotonic(), packet))
            self._changed.set()
            if isinstance(packet, Disconnect):
                return
            if self._reached(packet, attempt, conduct.drop_at):
                attempt.by_device = False
                return
            if conduct.silent_at is Step.TLS or self._reached(packet, attempt, conduct.silent_at):
                await self._listen(peer, attempt)
                return
            if not await self._answer(peer, attempt, packet):
                attempt.by_device = False
                return

    @staticmethod
    def _reached(packet: Packet, attempt: Attempt, step: Step | None) -> bool:
        match step:
            case Step.CONNECT:
                return isinstance(packet, Connect)
            case Step.CONNACK:  # What comes after CONNACK, or the wait for it if nothing comes.
                return attempt.answered is not None
            case Step.REQUEST:
                return isinstance(packet, Subscribe | Publish)
            case _:
                return False

    async def _listen(self, peer: RawClient, attempt: Attempt) -> None:
        """Keep listening without answering."""
        while not isinstance(packet := await peer.receive(_FOREVER), Seen):
            if len(attempt.packets) < _MOST_PACKETS:
                attempt.packets.append((time.monotonic(), packet))
            self._changed.set()

    async def _answer(self, peer: RawClient, attempt: Attempt, packet: Packet) -> bool:
        """Answer as a broker does; return whether the connection goes on."""
        match packet:
            case Connect():
                return await self._admit(peer, attempt, packet)
            case Subscribe(packet_id=number, requests=requests):
                answer: Packet | None = Suback(number, tuple(ReasonCode(each.qos) for each in requests))
            case Unsubscribe(packet_id=number, filters=filters):
                answer = Unsuback(number, tuple(ReasonCode.SUCCESS for _ in filters))
            case Publish(qos=QoS.AT_LEAST_ONCE, packet_id=int(number)):
                if not self._conduct.first_puback and len([a for a in self.attempts if a.published]) == 1:
                    await asyncio.sleep(_UNACKNOWLEDGED)
                    return False
                answer = Puback(number)
            case Publish(qos=QoS.EXACTLY_ONCE, packet_id=int(number)):
                answer = Pubrec(number)
            case Pubrel(packet_id=number):
                answer = Pubcomp(number)
            case Pingreq():
                answer = Pingresp()
            case _:
                answer = None
        if answer is not None:
            await peer.send(answer.encode(peer.version))
        return True

    async def _admit(self, peer: RawClient, attempt: Attempt, connect: Connect) -> bool:
        peer.version = connect.protocol_version
        refused = self._conduct.connack is not ReasonCode.SUCCESS
        kept = not connect.clean_start and not refused and len([a for a in self.attempts if a.answered]) > 0
        await peer.send(Connack(self._conduct.connack, kept).encode(peer.version))
        if refused:
            say_goodbye(peer.socket)
            return False
        attempt.answered = time.monotonic()
        return self._conduct.drop_at is not Step.CONNACK


async def _gone(raw: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while await loop.sock_recv(raw, 65536):
            pass


def _context(papers: Papers, conduct: Conduct) -> ssl.SSLContext:
    context = server_context(
        papers.servers[conduct.paper], papers.anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True
    )
    if conduct.tls11_only:
        # The stand offers what nobody should accept: only here, and only to be refused.
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # That is why.
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context
