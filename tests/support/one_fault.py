"""A proxy in front of a real broker that does one thing wrong: the simulator must find it and name it correctly.

Theory
------
A broker written for a test has the faults that its author thought of, and lacks a real one's abilities: sessions,
wills, QoS 2. So the broker is real, and this proxy sits between it and the devices. It terminates their TLS, connects
to the broker as each of them, with a certificate that the target's CA signs for it, and forwards packets both ways; a
`OneFault` changes what it likes. Unreadable data is forwarded unchanged. Where the broker's own admission is not the
point, it takes everybody from the proxy without TLS, which would cost as much again.

Revocation is handled here: the broker sees other certificates than the devices have.

Handles: any target whose CA we control. Does not handle: faults in certificates or handshakes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography import x509

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.errors import PacketError
from broker.mqtt.framing import decode_length
from broker.mqtt.packets import Connack, Connect, Disconnect, Packet, announced_version, decode_packet
from broker.mqtt.properties import Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.issuer import SERVER_AUTH, Issuer, Paper
from device_sim.attack.target import Registrar, Target
from device_sim.link.closure import REVOKED
from device_sim.link.tls_dial import Endpoint
from provisioning.pki.identity import Identity, identity_of
from provisioning.pki.keys import generate_key
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, client_context, server_context

_READ = 65536


@dataclass(eq=False)
class Passage:
    """One device's connection, and the proxy's own to the broker in its name."""

    identity: Identity
    serial: int
    device: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    version: ProtocolVersion = ProtocolVersion.V5
    resumed: bool = False
    memory: dict[str, Any] = field(default_factory=dict)
    """What a fault remembers about it."""

    @property
    def is_device(self) -> bool:
        return self.identity.role is Role.DEVICE

    def tell_device(self, packet: Packet) -> None:
        if not self.device.is_closing():
            self.device.write(packet.encode(self.version))

    def tell_broker(self, packet: Packet) -> None:
        if not self.broker.is_closing():
            self.broker.write(packet.encode(self.version))


class OneFault:
    """No fault. Each subclass overrides what it needs."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.revoked: set[int] = set()

    async def from_device(self, passage: Passage, packet: Packet) -> list[Packet]:
        """Return what the broker receives for *packet*."""
        del passage
        return [packet]

    def unreadable(self, passage: Passage, frame: bytes) -> bytes:
        """Return what the broker receives for a device's *frame* that is not a packet."""
        del passage
        return frame

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        """Return what the device receives for *packet*."""
        del passage
        return [packet]

    async def revoke(self, serial: int) -> None:
        """Close the session that uses this certificate, and give the reason."""
        self.revoked.add(serial)
        for passage in [each for each in self.passages if each.serial == serial]:
            self.end(passage)

    def end(self, passage: Passage) -> None:
        """Close *passage*, whose certificate is revoked."""
        if passage.version is ProtocolVersion.V5:
            passage.tell_device(Disconnect(ReasonCode.NOT_AUTHORIZED, Properties(reason_string=REVOKED)))
        passage.device.close()
        passage.broker.close()

    def admits(self, passage: Passage) -> bool:
        """Whether the owner of this certificate is admitted."""
        return passage.serial not in self.revoked


class ForgetsRevocations(OneFault):
    """It refuses a revoked device twice, and no more after that."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: dict[int, int] = {}

    def admits(self, passage: Passage) -> bool:
        if passage.serial in self.revoked:
            self.refused[passage.serial] = self.refused.get(passage.serial, 0) + 1
        return self.refused.get(passage.serial, 0) in {0, 3}


class _RevokingRegistrar:
    """Certifies as the target does, and revokes here."""

    def __init__(self, registrar: Registrar, fault: OneFault) -> None:
        self._registrar = registrar
        self._fault = fault

    async def certify(self, identity: Identity) -> Paper:
        return await self._registrar.certify(identity)

    async def revoke(self, paper: Paper) -> None:
        await self._fault.revoke(paper.certificate.serial_number)


class _Proxy:
    def __init__(self, behind: Endpoint, issuer: Issuer, anchors: Path, fault: OneFault, *, plain: bool) -> None:
        self._behind = behind
        self._plain = plain
        self._issuer = issuer
        self._anchors = anchors
        self._fault = fault
        self._key = generate_key()
        self._contexts: dict[Identity, ssl.SSLContext] = {}
        """What it connects with in each name: made once, for many a device comes again and again."""
        self.tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        identity = identity_of(certificate)
        try:
            their_reader, their_writer = await asyncio.open_connection(
                self._behind.host,
                self._behind.port,
                ssl=None if self._plain else self._context_of(identity),
                server_hostname=None if self._plain else self._behind.server_name,
            )
        except OSError:
            writer.close()
            return
        passage = Passage(
            identity, certificate.serial_number, writer, their_writer, resumed=tls.session_reused or False
        )
        self._fault.passages.append(passage)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(passage, reader, their_writer, self._from_device))
                both.create_task(self._pass(passage, their_reader, writer, self._fault.from_broker))
        finally:
            self._fault.passages.remove(passage)
            writer.close()
            their_writer.close()

    def _context_of(self, identity: Identity) -> ssl.SSLContext:
        if identity not in self._contexts:
            paper = self._issuer.issue(identity, key=self._key)
            self._contexts[identity] = client_context(self._anchors, paper.pem)
        return self._contexts[identity]

    async def _from_device(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connect) and not self._fault.admits(passage):
            refusal = Properties(reason_string=REVOKED) if passage.version is ProtocolVersion.V5 else Properties()
            passage.tell_device(Connack(ReasonCode.NOT_AUTHORIZED, properties=refusal))
            passage.device.close()
            return []
        return await self._fault.from_device(passage, packet)

    async def _pass(
        self,
        passage: Passage,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        changed: Callable[[Passage, Packet], Awaitable[list[Packet]]],
    ) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ):
                buffer += data
                while frame := _frame(buffer):
                    buffer = buffer[len(frame) :]
                    try:
                        packet = self._read(passage, frame)
                    except PacketError:
                        writer.write(self._fault.unreadable(passage, frame) if writer is passage.broker else frame)
                        continue
                    for each in await changed(passage, packet):
                        writer.write(frame if each is packet else each.encode(passage.version))
                if buffer[:1] and len(buffer) > 1 and not _is_packet(buffer):
                    writer.write(buffer)
                    buffer = b""
        writer.close()

    def _read(self, passage: Passage, frame: bytes) -> Packet:
        passage.version = announced_version(frame, 0) or passage.version
        _, body = decode_length(frame, 1)
        return decode_packet(frame[0], frame[body:], passage.version)


def _frame(buffer: bytes) -> bytes:
    """Return the packet at the start of *buffer*; empty if it is incomplete or invalid."""
    try:
        length, body = decode_length(buffer, 1) if len(buffer) > 1 else (0, 0)
    except PacketError:
        return b""
    return buffer[: body + length] if body and len(buffer) >= body + length else b""


def _is_packet(buffer: bytes) -> bool:
    try:
        length, _ = decode_length(buffer, 1)
    except PacketError:
        return False
    return length < _READ


@asynccontextmanager
async def proxied(
    behind: Endpoint, issuer: Issuer, anchors: Path, fault: OneFault, *, name: str = "localhost", plain: bool = False
) -> AsyncIterator[Endpoint]:
    """Yield the address at which the broker *behind*, which trusts *issuer*, is reached with this *fault*.

    *plain*: it trusts whoever connects, and without TLS.
    """
    identity = Identity("fleet.internal", Role.BROKER, "broker-1")
    server = issuer.issue(identity, usages=SERVER_AUTH, dns_names=[name])
    context = server_context(server.pem, anchors, client_certificate=ClientCertificate.REQUIRED)
    proxy = _Proxy(behind, issuer, anchors, fault, plain=plain)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=context) as listener:
        try:
            yield Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], name)
        finally:
            for passage in list(fault.passages):
                passage.device.transport.abort()
                passage.broker.transport.abort()
            if proxy.tasks:
                await asyncio.wait(proxy.tasks)


@asynccontextmanager
async def with_fault(target: Target, fault: OneFault, *, plain: bool = False) -> AsyncIterator[Target]:
    """Yield *target* with this *fault*; it claims to support revocation. *plain* as of `proxied`."""
    claims = target.capabilities
    claims = claims.model_copy(update={"supports": claims.supports | {Feature.REVOCATION}})
    async with proxied(target.endpoint, target.issuer, target.anchors, fault, plain=plain) as endpoint:
        registrar = _RevokingRegistrar(target.registrar, fault)
        yield replace(target, capabilities=claims, endpoint=endpoint, registrar=registrar)
