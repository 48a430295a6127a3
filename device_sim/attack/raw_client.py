"""An MQTT client that checks nothing: it sends the bytes it is given, and reports exactly what came back.

Theory
------
paho will not send a bad packet, and hides how a connection ended. Here a test writes bytes and reads packets; the end
of a connection is an answer (`Seen`) like any packet. A failed write is not an error by itself: a broker that refuses
has usually said why before it closed, so the reason is read first.

Rules
-----
1. Every wait has a deadline. At the deadline the connection is *open*, which is an observation and not an error.
2. Nothing is sent unasked: no PINGREQ, no PUBACK, no DISCONNECT.
3. A lost RST is asked for again: a broker that has closed is not open.
4. Over WebSocket, where the endpoint says so, every case is the same: bytes travel in frames, and nothing else differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import socket
import ssl
import struct
import termios
import time

from broker.mqtt.codes import PacketType, ProtocolVersion, connect_return_code
from broker.mqtt.errors import PacketError
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import Connack, Connect, Disconnect, Packet, Puback, Pubrec, Suback, decode_packet
from device_sim.attack.verdict import MALFORMED, OPEN, ClosedBy, Layer, Seen, seen_in
from device_sim.link.closure import Closure, from_error
from device_sim.link.closure import Layer as EndedAt
from device_sim.link.tls_dial import Endpoint, NotAdmitted, dial
from device_sim.link.websocket import NotUpgraded, NotWebSocket, WebSocket
from provisioning.pki.openssl import forget_errors, say_goodbye

_READ = 65536
_LARGEST_PACKET = 64 * 1024 * 1024
_FAILURE = 0x80
_CONNACK_311 = 2
_LOOK_AGAIN = 0.01
_INT = struct.Struct("=i")


class RawClient:
    """One TLS connection. Created by `dial`."""

    def __init__(self, tls: ssl.SSLSocket, version: ProtocolVersion) -> None:
        self.socket = tls
        self.version = version
        self.either_form = False
        """Whether a 3.1.1 CONNACK is accepted too: a broker that does not know the protocol cannot know the form."""
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._packets: list[Packet] = []
        self._broken: OSError | None = None
        self.ended: Seen | None = None
        self.connack: Connack | None = None
        self._asked_keep_alive = 0
        self._websocket: WebSocket | None = None

    @classmethod
    async def dial(
        cls,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        *,
        version: ProtocolVersion = ProtocolVersion.V5,
        session: ssl.SSLSession | None = None,
        source: str | None = None,
        deadline: float = 10.0,
    ) -> RawClient:
        """Connect, finish the client's half of the handshake, and upgrade to WebSocket if that is spoken there.

        Raises `device_sim.link.tls_dial.NotAdmitted`.
        """
        dialled = await dial(endpoint, context, deadline=deadline, session=session, source=source, asks_again=True)
        client = cls(dialled.socket, version)
        if endpoint.websocket:
            await client.upgrade(WebSocket(endpoint.server_name, path=endpoint.path), deadline)
        return client

    async def upgrade(self, asked: WebSocket, deadline: float) -> None:
        """Speak WebSocket from now on, as *asked*; else close, and raise `device_sim.link.tls_dial.NotAdmitted`."""
        await self.send(asked.request, deadline)
        self._websocket = asked
        try:
            async with asyncio.timeout(deadline):
                while not asked.upgraded and self.ended is None:
                    await self._read()
        except TimeoutError as error:
            self.close()
            raise NotAdmitted(from_error(error, time.monotonic())) from None
        except BaseException:
            self.close()
            raise
        if self.ended is not None:
            resumed = self.socket.session_reused or False
            self.close()
            seen = self.ended
            layer = EndedAt.TLS if seen.layer is Layer.TLS else EndedAt.TCP if seen.layer is Layer.TCP else EndedAt.MQTT
            raise NotAdmitted(Closure(layer, seen.code, seen.reason, time.monotonic()), tls_resumed=resumed)

    # Sending

    async def send(self, data: bytes, deadline: float = 10.0, *, framed: bool = True) -> bool:
        """Write *data*; return whether all of it was accepted in time. `receive` reports a broken connection.

        Not *framed*: over WebSocket, it is in frames already, if it is in any.
        """
        view = memoryview(data if self._websocket is None or not framed else self._websocket.framed(data))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                while view and self._broken is None and self.socket.fileno() >= 0:
                    try:
                        view = view[self.socket.send(view) :]
                    except ssl.SSLWantReadError:
                        await self._ready(write=False)
                    except ssl.SSLWantWriteError:
                        await self._ready(write=True)
                    except OSError as error:
                        forget_errors()
                        self._broken = error
        return not view

    async def arrived(self, deadline: float) -> bool:
        """Wait until the peer's kernel has all that was sent, *deadline* seconds at most; return whether it has."""
        until = time.monotonic() + deadline
        while self.socket.fileno() >= 0 and _unacknowledged(self.socket):
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_LOOK_AGAIN)
        return self.socket.fileno() >= 0

    # Receiving

    async def receive(self, deadline: float) -> Packet | Seen:
        """Return the next packet, or how the connection ended; *open* if neither happens within *deadline* seconds."""
        try:
            async with asyncio.timeout(deadline):
                while not self._packets:
                    if self.ended is not None:
                        return self.ended
                    await self._read()
        except TimeoutError:
            return Seen(Layer.MQTT, OPEN, f"neither answer nor end within {deadline:g} s", ClosedBy.NOBODY, got_in=True)
        return self._packets.pop(0)

    async def answer(self, *kinds: type[Packet], deadline: float) -> Seen:
        """Return the first packet of *kinds*, or DISCONNECT, as an answer; or how the connection ended."""
        until = time.monotonic() + deadline
        while True:
            packet = await self.receive(max(0.0, until - time.monotonic()))
            if isinstance(packet, Seen):
                return packet
            if isinstance(packet, Connack):
                self.connack = packet
            if isinstance(packet, (*kinds, Disconnect)):
                return self.seen(packet)

    async def end(self, deadline: float) -> Seen:
        """Wait for the end, whatever else arrives; a DISCONNECT packet is the end."""
        return await self.answer(deadline=deadline)

    async def connect(self, connect: Connect, deadline: float = 10.0) -> Seen:
        """Send CONNECT and return the answer to it."""
        self.version = connect.protocol_version
        self._asked_keep_alive = connect.keep_alive
        await self.send(connect.encode())
        return await self.answer(Connack, deadline=deadline)

    @property
    def keep_alive(self) -> float:
        """The keep alive in force, in seconds: the broker's, if CONNACK has one [MQTT-3.1.2-21]; else inf."""
        told = self.connack.properties.server_keep_alive if self.connack is not None else None
        return float(self._asked_keep_alive if told is None else told) or math.inf

    def seen(self, packet: Packet) -> Seen:
        """Return *packet* as an answer."""
        return told_by(packet, self.version)

    async def _read(self) -> None:
        try:
            data = self.socket.recv(_READ)
        except ssl.SSLWantReadError:
            if self._broken is not None:
                self.ended = seen_in(from_error(self._broken, time.monotonic()))
                return
            await self._ready(write=False)
            return
        except ssl.SSLWantWriteError:
            await self._ready(write=True)
            return
        except OSError as error:
            forget_errors()
            self.ended = seen_in(from_error(error, time.monotonic()))
            return
        if not data:
            self.ended = Seen(Layer.MQTT, "closed", "the peer closed the connection, without a packet")
            return
        if self._websocket is not None:
            try:
                data = self._websocket.unframed(data)
            except NotUpgraded as refused:
                self.ended = Seen(Layer.MQTT, "closed", f"no WebSocket: {refused}")
                return
            except NotWebSocket as error:
                self.ended = Seen(Layer.MQTT, MALFORMED, f"the peer sent {error}", ClosedBy.NOBODY)
                return
        self._buffer += data
        try:
            frames, used = split_frames(self._buffer, _LARGEST_PACKET)
            self._packets += [self._decoded(first, self._buffer[start:end]) for first, start, end in frames]
        except PacketError as error:
            self.ended = Seen(Layer.MQTT, MALFORMED, f"the peer sent a bad packet: {error}", ClosedBy.NOBODY)
            return
        self._buffer = self._buffer[used:]

    def _decoded(self, first: int, body: bytes) -> Packet:
        short = self.either_form and first >> 4 == PacketType.CONNACK and len(body) == _CONNACK_311
        packet = decode_packet(first, body, ProtocolVersion.V311 if short else self.version)
        if isinstance(packet, Connect):  # The peer is a client, and says what it speaks: the rest of this read, too.
            self.version = packet.protocol_version
        return packet

    async def _ready(self, *, write: bool) -> None:
        ready = self._loop.create_future()
        descriptor = self.socket.fileno()
        add, remove = (
            (self._loop.add_writer, self._loop.remove_writer)
            if write
            else (self._loop.add_reader, self._loop.remove_reader)
        )
        add(descriptor, _wake, ready)
        try:
            await ready
        finally:
            remove(descriptor)

    # Leaving

    def close(self) -> None:
        """Send close_notify and close: the TLS session stays resumable."""
        say_goodbye(self.socket)
        self.socket.close()

    def abort(self) -> None:
        """Close with a reset: no close_notify, no FIN."""
        reset(self.socket)


def told_by(packet: Packet, version: ProtocolVersion) -> Seen:
    """Return *packet*, from a connection that uses *version*, as an answer."""
    kind = packet.packet_type.name
    reason = getattr(getattr(packet, "properties", None), "reason_string", None) or ""
    match packet:
        case Connack(reason_code=code) if version is not ProtocolVersion.V5:
            number = connect_return_code(code)
            return Seen(Layer.MQTT, f"{kind} {number.value}", reason, ClosedBy.PEER, got_in=number == 0)
        case Suback(reason_codes=(*_, code)):  # Of the filter that was asked for last.
            return Seen(Layer.MQTT, f"{kind} 0x{code:02x}", reason, ClosedBy.NOBODY, got_in=code < _FAILURE)
        case Puback(reason_code=code) | Pubrec(reason_code=code):
            return Seen(Layer.MQTT, f"{kind} 0x{code:02x}", reason, ClosedBy.NOBODY, got_in=code < _FAILURE)
        case Connack(reason_code=code):
            return Seen(Layer.MQTT, f"{kind} 0x{code:02x}", reason, ClosedBy.PEER, got_in=code < _FAILURE)
        case Disconnect(reason_code=code):
            return Seen(Layer.MQTT, f"{kind} 0x{code:02x}", reason, ClosedBy.PEER)
        case _:
            return Seen(Layer.MQTT, kind, reason, ClosedBy.NOBODY, got_in=True)


def _unacknowledged(connected: socket.socket) -> int:
    """Return how many bytes the peer's kernel has not acknowledged (tcp(7), SIOCOUTQ)."""
    told = fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(_INT.size))
    return int(_INT.unpack(told)[0])


def reset(connected: socket.socket) -> None:
    """Close *connected* so that its peer gets RST."""
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
