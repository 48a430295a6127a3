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
import socket
import ssl
import time
import warnings
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Self

from cryptography import x509

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
from broker.mqtt.properties import Properties
from device_sim.attack.raw_client import RawClient, reset
from device_sim.attack.verdict import MALFORMED, Seen
from device_sim.link.closure import from_error, is_alert
from device_sim.link.tls_dial import expect_connected, handshake
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.client_hello import client_hello, in_clear
from device_sim.qualify.client_packets import wrong_of_a_client
from device_sim.qualify.commanding import commands
from device_sim.qualify.conduct import Conduct, Step
from device_sim.qualify.kept_session import is_kept
from device_sim.qualify.papers import Papers
from device_sim.qualify.peeked_hello import HANDSHAKE, first_bytes
from provisioning.pki.openssl import say_goodbye
from provisioning.pki.tls import ClientCertificate, server_context

_MOST_PACKETS = 10_000
_MOST_ATTEMPTS = 5_000
_FOREVER = 3600.0
_UNACKNOWLEDGED = 1.0
_KEEP_ALIVE = 2
_PONDERS = 0.3
ASSIGNED = "assigned-by-the-broker"
"""The client identifier for a device that has none."""


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
        self._open: list[tuple[RawClient, Attempt]] = []
        self._refused = 0
        self._released = self._unanswered = self._ending = False

    async def __aenter__(self) -> Self:
        """Listen."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            self._listening = socket.create_server((self._host, self.port), family=family)
        except OSError as error:
            why = (error.strerror or str(error)).partition(" (while")[0]  # asyncio and socket name the address again.
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

    def _start(self, story: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(story, name="stand")
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
            first = await first_bytes(raw)
            if (hello := client_hello(first)) is not None:
                attempt.offered, attempt.asks_for_staple = hello.version, hello.asks_for_staple
            attempt.in_clear = in_clear(first)
            if self._conduct.silent_at is Step.TCP:
                await _gone(raw)
                return
            if self._conduct.drop_at is Step.HELLO:
                attempt.by_device = False
                return
            try:
                expect_connected(raw)
            except ConnectionResetError as error:
                attempt.refusal = from_error(error, time.monotonic()).code
                return
            connected = tls = self._context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
            if await self._shaken(tls, attempt):
                peer = RawClient(tls, ProtocolVersion.V311)
                self._open.append((peer, attempt))
                try:
                    await self._talk(peer, attempt)
                finally:
                    self._open.remove((peer, attempt))
        finally:
            attempt.ended = time.monotonic()
            if attempt.by_device or self._conduct.connack or self._conduct.goodbye:
                connected.close()  # What was sent last must arrive.
            else:
                reset(connected)
            self._changed.set()

    async def _shaken(self, tls: ssl.SSLSocket, attempt: Attempt) -> bool:
        try:
            async with asyncio.timeout(HANDSHAKE):
                await handshake(asyncio.get_running_loop(), tls)
        except (OSError, TimeoutError) as error:
            attempt.refusal, attempt.alert = from_error(error, time.monotonic()).code, is_alert(error)
            return False
        attempt.tls, attempt.tls_version = time.monotonic(), tls.version() or ""
        shown = tls.getpeercert(binary_form=True)
        attempt.certificate = shown is not None
        attempt.serial = x509.load_der_x509_certificate(shown).serial_number if shown is not None else None
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
                attempt.noise = packet.reason if packet.code == MALFORMED else attempt.noise
                return
            if self._noted(packet, attempt) or isinstance(packet, Disconnect):
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
            if self._noted(packet, attempt):
                return

    def _noted(self, packet: Packet, attempt: Attempt) -> str:
        """Note *packet*; return what is wrong with it, if no client may send that."""
        wrong = wrong_of_a_client(packet, connected=attempt.connect is not None)
        attempt.noise = attempt.noise or wrong
        if len(attempt.packets) < _MOST_PACKETS:
            attempt.packets.append((time.monotonic(), packet))
        self._changed.set()
        return wrong

    async def _answer(self, peer: RawClient, attempt: Attempt, packet: Packet) -> bool:
        """Answer as a broker does; return whether the connection goes on."""
        conduct = self._conduct
        if isinstance(packet, Connect):
            return await self._admit(peer, attempt, packet)
        if conduct.goodbye and isinstance(packet, Subscribe | Publish):
            await self._dismiss(peer, conduct.goodbye)
            return False
        if self._is_first_unanswered(packet):
            if isinstance(packet, Subscribe):  # There may be others, of which it has no answer either.
                self._start(self._ended_soon(peer, attempt))
                await self._listen(peer, attempt)
            elif isinstance(packet, Publish):
                await asyncio.sleep(_UNACKNOWLEDGED)
            return False
        answer = _answer_to(packet)
        if answer is not None and (conduct.acknowledges or not isinstance(answer, Puback | Pubrec)):
            await peer.send(answer.encode(peer.version))
        if conduct.commands and isinstance(packet, Subscribe) and attempt.connect is not None:
            for command in commands(attempt, attempt.connect, packet):
                attempt.sent.append(command)
                await peer.send(command.encode(peer.version))
        if self._ends_with(packet) and not self._ending:
            self._ending = True
            self._start(self._ended_soon(peer, attempt))
        return True

    def _ends_with(self, packet: Packet) -> bool:
        """Whether the connection is dropped soon after *packet*; with aliases, only the first has some."""
        conduct = self._conduct
        if conduct.aliases:
            return isinstance(packet, Publish) and len(self._admitted()) == 1
        return conduct.forgets and isinstance(packet, Subscribe)

    def _is_first_unanswered(self, packet: Packet) -> bool:
        """Whether the connection breaks instead of an answer to *packet*."""
        conduct = self._conduct
        if isinstance(packet, Subscribe) and not conduct.first_suback and not self._unanswered:
            self._unanswered = True
            return True
        if isinstance(packet, Pubrel) and not conduct.first_pubcomp and not self._released:
            self._released = True
            return True
        unanswered = isinstance(packet, Publish) and packet.qos and not conduct.first_puback
        return bool(unanswered) and len([each for each in self.attempts if each.published]) == 1

    async def _admit(self, peer: RawClient, attempt: Attempt, connect: Connect) -> bool:
        conduct = self._conduct
        early = await self._said(peer, attempt) if conduct.ponders else []
        if conduct.connack:
            code = conduct.connack[self._refused % len(conduct.connack)]
            self._refused += 1
            await peer.send(Connack(code).encode(peer.version))
            say_goodbye(peer.socket)
            return False
        others = [each for each in self.attempts if each is not attempt]
        kept = not conduct.forgets and is_kept(connect, others, time.monotonic())
        connack = Connack(ReasonCode.SUCCESS, kept, self._announced(connect))
        attempt.sent.append(connack)
        await peer.send(connack.encode(peer.version))
        attempt.answered = time.monotonic()
        for packet in early:
            await self._answer(peer, attempt, packet)
        if conduct.drop_at is Step.CONNACK:
            await self._said(peer, attempt)  # At once, the reset would overtake CONNACK, which nobody would read.
            return False
        return not attempt.noise

    async def _said(self, peer: RawClient, attempt: Attempt) -> list[Packet]:
        """Return what comes within a moment."""
        came: list[Packet] = []
        until = time.monotonic() + _PONDERS
        while not isinstance(packet := await peer.receive(max(0.0, until - time.monotonic())), Seen):
            if self._noted(packet, attempt):
                break
            came.append(packet)
        return came

    def _admitted(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.answered is not None]

    def _announced(self, connect: Connect) -> Properties:
        """Return what CONNACK says to a client that sent *connect*: only MQTT 5 can say it."""
        conduct = self._conduct
        told = conduct.limits
        if not connect.client_id:
            told = replace(told, assigned_client_identifier=ASSIGNED)
        if conduct.server_keep_alive:
            told = replace(told, server_keep_alive=_server_keep_alive(connect.keep_alive))
        if conduct.aliases and not self._admitted():
            told = replace(told, topic_alias_maximum=conduct.aliases)
        return told

    async def _dismiss(self, peer: RawClient, codes: tuple[ReasonCode, ...]) -> None:
        """Say DISCONNECT with the next of *codes*, if that can be said, and close."""
        if peer.version is ProtocolVersion.V5:
            await peer.send(Disconnect(codes[self._refused % len(codes)]).encode(peer.version))
            self._refused += 1
        say_goodbye(peer.socket)

    async def _ended_soon(self, peer: RawClient, attempt: Attempt) -> None:
        await asyncio.sleep(_UNACKNOWLEDGED)
        _drop(peer, attempt)

    def drop_all(self) -> None:
        """Break every connection, as a network does."""
        for peer, attempt in self._open:
            _drop(peer, attempt)


def _server_keep_alive(asked: int) -> int:
    """Return the keep alive in seconds that a device is told which has *asked* for another one: half, a few at most."""
    return max(1, min(_KEEP_ALIVE, asked // 2)) if asked else _KEEP_ALIVE


def _answer_to(packet: Packet) -> Packet | None:
    """Return what a broker answers; None: nothing."""
    match packet:
        case Subscribe(packet_id=number, requests=requests):
            return Suback(number, tuple(ReasonCode(each.qos) for each in requests))
        case Unsubscribe(packet_id=number, filters=filters):
            return Unsuback(number, tuple(ReasonCode.SUCCESS for _ in filters))
        case Publish(qos=QoS.AT_LEAST_ONCE, packet_id=int(number)):
            return Puback(number)
        case Publish(qos=QoS.EXACTLY_ONCE, packet_id=int(number)):
            return Pubrec(number)
        case Pubrec(packet_id=number):
            return Pubrel(number)
        case Pubrel(packet_id=number):
            return Pubcomp(number)
        case Pingreq():
            return Pingresp()
        case _:
            return None


def _drop(peer: RawClient, attempt: Attempt) -> None:
    """Break the connection of *peer*: what reads from it sees the end."""
    attempt.by_device = False
    with contextlib.suppress(OSError):
        socket.socket.shutdown(peer.socket, socket.SHUT_RDWR)  # Below TLS.


async def _gone(raw: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while await loop.sock_recv(raw, 65536):
            pass


def _context(papers: Papers, conduct: Conduct) -> ssl.SSLContext:
    own = papers.servers[conduct.paper]
    context = server_context(own.pem, papers.anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True)
    papers.vouch_for(context, own, conduct.staple)
    if conduct.anonymous:
        context.set_ciphers("AECDH:ADH:@SECLEVEL=0")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if conduct.tls11_only:
        # The stand offers what nobody should accept: only here, and only to be refused.
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # That is why.
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context
