"""An MQTT client for very many devices: the broker's codec on a non-blocking TLS socket, and nothing else.

Theory
------
paho does more for one client than a fleet of ten thousand needs: queues, locks, properties and callbacks as objects.
Here a connection is a socket, a few numbers, and a dictionary of unacknowledged messages. The observations are the same
as with paho (`link`), so a scenario may use either.

Rules
-----
1. As in `client`: open only after CONNACK, one closure, everything that OpenSSL has decrypted is processed before the
   loop goes on, what is queued in one turn is written once at its end.
2. A broker that violates the protocol is told so with DISCONNECT, and the closure describes the violation.

Handles: MQTT 5 and 3.1.1, QoS 0, 1 and 2 in both directions, wills, kept sessions, keep alive, server keep alive.
Does not handle: topic aliases (it allows the broker none), retransmission: a device keeps its messages itself.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any

from broker.mqtt.codes import PacketType, ProtocolVersion, QoS, ReasonCode, RetainHandling
from broker.mqtt.connect import Connack, Connect
from broker.mqtt.errors import PacketError, ProtocolError
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import (
    Disconnect,
    Packet,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    decode_packet,
)
from broker.mqtt.properties import NO_PROPERTIES, Properties
from device_sim.link.buffered_socket import RECORD, BufferedSocket
from device_sim.link.closure import (
    CLOSED,
    BrokenByUs,
    Closure,
    Layer,
    connack_311,
    from_error,
    hint_in,
    unasked_session,
)
from device_sim.link.distance import Distance, distance_of
from device_sim.link.framed_socket import opened
from device_sim.link.in_flight import InFlight
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import (
    DEADLINE,
    ORDINARY,
    Acknowledged,
    NotConnected,
    Received,
    ReceivedWhole,
    StageTimes,
    SubscriptionRefused,
    Terms,
    UserProperties,
)
from device_sim.link.tls_dial import Endpoint, NotAdmitted
from provisioning.pki.tls import CredentialPem

_LARGEST_PACKET = 1024 * 1024
_RECEIVE_MAXIMUM = 65_535
# 3.1.1 has no Receive Maximum; brokers expect the limit that paho and libmosquitto use.
_IN_FLIGHT_311 = 20
_PUBACK_HEAD = b"\x40\x02"
_PINGREQ = b"\xc0\x00"


class LightConnection:
    """One open MQTT connection. Created only by `open`."""

    __slots__ = (
        "_acknowledged",
        "_admitted",
        "_alive",
        "_clean_start",
        "_descriptor",
        "_exactly_once",
        "_flushing",
        "_in_flight",
        "_input",
        "_keep_alive",
        "_loop",
        "_pinged",
        "_reading",
        "_received",
        "_received_whole",
        "_sent_at",
        "_socket",
        "_subscribing",
        "_version",
        "_writer_added",
        "closed",
        "keeps_tls_session",
        "session_present",
        "stage_times",
        "tls_resumed",
        "tls_session",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: BufferedSocket,
        terms: Terms,
        keep_alive: KeepAlive,
        received: Received | None,
        received_whole: ReceivedWhole | None,
        acknowledged: Acknowledged | None,
    ) -> None:
        self._loop = loop
        self._socket = socket
        self._descriptor = socket.fileno()
        self._version = terms.version
        self._alive = float(terms.seconds_alive)
        self._clean_start = terms.clean_start
        self._keep_alive = keep_alive
        self._received = received
        self._received_whole = received_whole
        self._acknowledged = acknowledged
        self._admitted: asyncio.Future[None] | None = loop.create_future()
        self._subscribing: dict[int, asyncio.Future[int]] | None = None
        self._in_flight = InFlight(_IN_FLIGHT_311)
        self._exactly_once: set[int] | None = None
        self._input = b""
        self._reading = True
        self._flushing = False
        self._writer_added = False
        self._sent_at = 0.0
        self._pinged = 0.0
        self.closed: asyncio.Future[Closure] = loop.create_future()
        self.stage_times = StageTimes(0.0, 0.0, 0.0)
        self.session_present = False
        self.tls_resumed = bool(socket.tls.session_reused)
        self.keeps_tls_session = False
        self.tls_session: ssl.SSLSession | None = None

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        client_id: str,
        *,
        keep_alive: KeepAlive,
        credential: CredentialPem | None = None,
        terms: Terms = ORDINARY,
        received: Received | None = None,
        received_whole: ReceivedWhole | None = None,
        acknowledged: Acknowledged | None = None,
        session: ssl.SSLSession | None = None,
        source: str | None = None,
        deadline: float = DEADLINE,
    ) -> LightConnection:
        """Return an admitted connection; see `device_sim.link.link.Open`."""
        started = time.monotonic()
        reached = await opened(
            endpoint,
            context,
            deadline=deadline,
            credential=credential,
            session=session,
            source=source,
            clock_offset=terms.clock_offset,
        )
        connection = cls(
            asyncio.get_running_loop(), reached.socket, terms, keep_alive, received, received_whole, acknowledged
        )  # fmt: skip
        now = time.monotonic()
        await connection._start(client_id, terms, deadline - (now - started))
        connection.stage_times = StageTimes(reached.tcp, reached.tls, time.monotonic() - now, reached.upgrade)
        return connection

    async def _start(self, client_id: str, terms: Terms, remaining: float) -> None:
        admitted = self._admitted
        if admitted is None:
            raise RuntimeError("a connection starts once")
        kept = Properties(session_expiry_interval=terms.session_seconds) if terms.session_seconds else NO_PROPERTIES
        connect = Connect(client_id, terms.version, terms.clean_start, terms.seconds_alive, terms.will, properties=kept)
        self._loop.add_reader(self._descriptor, self._readable)
        self._send(connect.encode())
        try:
            async with asyncio.timeout(remaining):
                await admitted
        except TimeoutError as error:
            self._end(Closure(Layer.MQTT, "timeout", "no answer to CONNECT in time", time.monotonic()))
            raise NotAdmitted(self.closed.result()) from error
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._admitted = None
        self._keep_alive.add(self, self._alive)

    # ---- requests of the device

    def publish(
        self, topic_name: str, payload: bytes, qos: int, *, retain: bool = False, user_properties: UserProperties = ()
    ) -> int:
        """Queue a message; return its packet identifier, 0 for QoS 0. Raises `NotConnected`."""
        if self.closed.done():
            raise NotConnected(f"the connection has ended: {self.closed.result()}")
        level = QoS(qos)
        properties = Properties(user_properties=tuple(user_properties)) if user_properties else NO_PROPERTIES
        if not level:
            self._send(Publish(topic_name, payload, retain=retain, properties=properties).encode(self._version))
            return 0
        flight = self._in_flight
        flight.check_room()
        packet_id = flight.new_packet_id()
        message = Publish(topic_name, payload, level, retain, packet_id=packet_id, properties=properties)
        packet = message.encode(self._version)
        if flight.is_next(packet_id, level, packet):
            self._send(packet)
        return packet_id

    async def subscribe(self, topic_filter: str, qos: int, *, retained: bool = True) -> int:
        """Subscribe, and return the QoS granted; see `device_sim.link.link.Link`."""
        if self.closed.done():
            raise NotConnected(f"not subscribed: {self.closed.result()}")
        packet_id = self._in_flight.new_packet_id()
        handling = RetainHandling.SEND if retained else RetainHandling.DO_NOT_SEND
        request = Subscribe(packet_id, (SubscriptionRequest(topic_filter, QoS(qos), retain_handling=handling),))
        if self._subscribing is None:
            self._subscribing = {}
        answer: asyncio.Future[int] = self._loop.create_future()
        self._subscribing[packet_id] = answer
        self._send(request.encode(self._version))
        try:
            granted = await answer
        finally:
            if self._subscribing is not None:
                self._subscribing.pop(packet_id, None)
                self._subscribing = self._subscribing or None
        if ReasonCode(granted).is_failure:
            raise SubscriptionRefused(topic_filter, granted)
        return granted

    def distance(self) -> Distance:
        """Return how far away the broker is; see `device_sim.link.link.Link`."""
        return distance_of(self._socket.tls)

    def read_on(self, on: bool) -> None:
        """Stop reading, or continue; see `device_sim.link.link.Link`."""
        if on == self._reading or self.closed.done():
            return
        self._reading = on
        if on:
            self._loop.add_reader(self._descriptor, self._readable)
            self._readable()
        else:
            self._loop.remove_reader(self._descriptor)

    async def close(self) -> Closure:
        """Send DISCONNECT, close, and return how the connection ended (perhaps earlier, by the broker)."""
        if not self.closed.done():
            self._socket.queue(Disconnect().encode(self._version))
            self._end(Closure(Layer.MQTT, "0x00 Normal disconnection", "", time.monotonic(), 0))
        return await self.closed

    def abort(self) -> None:
        """Break the connection without DISCONNECT, as a network failure does."""
        self._end(from_error(BrokenByUs(), time.monotonic()))

    def loop_misc(self) -> None:
        """Send a ping when one is due; end the connection when its answer is overdue (`keep_alive.Pinged`)."""
        if not self._alive or self.closed.done():
            return
        now = time.monotonic()
        if self._pinged:
            if now - self._pinged > self._alive:
                self._end(from_error(TimeoutError("no answer to PINGREQ"), now))
        elif now - self._sent_at >= self._alive * 0.8:
            self._pinged = now
            self._socket.queue(_PINGREQ)
            self._flush_soon()

    # ---- the wire

    def _send(self, packet: bytes) -> None:
        try:
            self._socket.send(packet)
        except BlockingIOError as error:
            raise NotConnected("not sent: the socket takes nothing more") from error
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.closed.done():
            return
        self._socket.flush()
        self._sent_at = time.monotonic()
        if self._socket.failed:
            self._readable()
        elif self._socket.unsent and not self._writer_added:
            self._writer_added = True
            self._loop.add_writer(self._descriptor, self._writable)

    def _writable(self) -> None:
        self._socket.flush()
        if not self._socket.unsent:
            self._writer_added = False
            self._loop.remove_writer(self._descriptor)
            self._flush()

    def _readable(self) -> None:
        socket = self._socket
        while not self.closed.done():
            try:
                data = socket.recv(RECORD)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                self._end(from_error(error, time.monotonic()))
                return
            if not data:
                self._end(Closure(Layer.TCP, CLOSED, "the peer closed the connection", time.monotonic()))
                return
            try:
                if len(data) == 4 and data[:2] == _PUBACK_HEAD and not self._input:  # noqa: PLR2004 - the commonest
                    self._ended(int.from_bytes(data[2:], "big"), QoS.AT_LEAST_ONCE, 0, "")
                else:
                    self._take(self._input + data if self._input else data)
            except PacketError as error:
                self._broken(error)
            except NotConnected as error:  # The broker sends on and on, and does not read what we answer.
                self._end(from_error(error, time.monotonic()))

    def _take(self, data: bytes) -> None:
        frames, used = split_frames(data, _LARGEST_PACKET)
        self._input = data[used:]
        for first, start, end in frames:
            if self.closed.done():
                return
            self._handle(decode_packet(first, data[start:end], self._version))

    def _handle(self, packet: Packet) -> None:
        if self._admitted is not None and not isinstance(packet, Connack):
            raise ProtocolError(f"{packet.packet_type.name} before CONNACK")
        handle = _HANDLERS.get(packet.packet_type)
        if handle is None:
            raise ProtocolError(f"a broker sends no {packet.packet_type.name}")
        handle(self, packet)

    def _on_puback(self, packet: Puback) -> None:
        self._ended(packet.packet_id, QoS.AT_LEAST_ONCE, packet.reason_code, packet.properties.reason_string)

    def _on_pubrec(self, packet: Pubrec) -> None:
        if packet.reason_code.is_failure:
            self._ended(packet.packet_id, QoS.EXACTLY_ONCE, packet.reason_code, packet.properties.reason_string)
        else:
            self._send(Pubrel(packet.packet_id).encode(self._version))

    def _on_pubcomp(self, packet: Pubcomp) -> None:
        self._ended(packet.packet_id, QoS.EXACTLY_ONCE, packet.reason_code, packet.properties.reason_string)

    def _on_pubrel(self, packet: Pubrel) -> None:
        if self._exactly_once is not None:
            self._exactly_once.discard(packet.packet_id)
        self._send(Pubcomp(packet.packet_id).encode(self._version))

    def _on_suback(self, packet: Suback) -> None:
        answer = (self._subscribing or {}).get(packet.packet_id)
        if answer is not None and not answer.done():
            answer.set_result(int(packet.reason_codes[0]))

    def _on_disconnect(self, packet: Disconnect) -> None:
        self._end(_closure(packet.reason_code, packet.properties))

    def _on_pingresp(self, _packet: Pingresp) -> None:
        self._pinged = 0.0

    def _on_connack(self, packet: Connack) -> None:
        admitted, properties = self._admitted, packet.properties
        if admitted is None:
            raise ProtocolError("a second CONNACK")
        if packet.reason_code.is_failure:
            if self._version is ProtocolVersion.V5:
                self._end(_closure(packet.reason_code, properties))
            else:
                self._end(connack_311(packet.reason_code, time.monotonic()))
            return
        if packet.session_present and self._clean_start:
            self._end(unasked_session(time.monotonic()))
            return
        self.session_present = packet.session_present
        if self._version is ProtocolVersion.V5:
            self._in_flight.most = properties.receive_maximum or _RECEIVE_MAXIMUM
        if properties.server_keep_alive is not None:
            self._alive = float(properties.server_keep_alive)
        self._admitted = None  # The rest of this read follows CONNACK.
        if not admitted.done():
            admitted.set_result(None)

    def _on_publish(self, packet: Publish) -> None:
        packet_id = packet.packet_id
        if packet.properties.topic_alias is not None:  # [MQTT-3.1.2-26]: we allow none.
            raise ProtocolError("a topic alias, where none is accepted", ReasonCode.TOPIC_ALIAS_INVALID)
        if packet.qos is QoS.AT_LEAST_ONCE and packet_id is not None:
            self._send(_PUBACK_HEAD + packet_id.to_bytes(2, "big"))
        elif packet_id is not None:
            self._send(Pubrec(packet_id).encode(self._version))
            if self._exactly_once is None:
                self._exactly_once = set()
            if packet_id in self._exactly_once:
                return  # Retransmitted before our PUBREC arrived; it has been delivered [MQTT-4.3.3-10].
            self._exactly_once.add(packet_id)
        if self._received_whole is not None:
            self._received_whole(packet.topic, packet.payload, packet.properties.user_properties)
        elif self._received is not None:
            self._received(packet.topic, packet.payload)

    def _ended(self, packet_id: int, qos: QoS, number: int, reason: str | None) -> None:
        following = self._in_flight.acknowledged(packet_id, qos)
        if following is not None:
            self._send(following)
        if self._acknowledged is not None:
            self._acknowledged(packet_id, number, reason or "")

    def _broken(self, error: PacketError) -> None:
        if self._version is ProtocolVersion.V5:
            self._socket.queue(Disconnect(error.reason_code).encode(self._version))
        self._end(Closure(Layer.MQTT, "broken protocol", f"the broker: {error}", time.monotonic()))

    def _end(self, closure: Closure) -> None:
        if self.closed.done():
            return
        if self._reading:
            self._loop.remove_reader(self._descriptor)
        if self._writer_added:
            self._writer_added = False
            self._loop.remove_writer(self._descriptor)
        self._keep_alive.discard(self)
        if self.keeps_tls_session:
            self.tls_session = self._socket.tls.session
        self._socket.close()
        self.closed.set_result(closure)
        if self._admitted is not None and not self._admitted.done():
            self._admitted.set_exception(NotAdmitted(closure, tls_resumed=self.tls_resumed))
        for answer in (self._subscribing or {}).values():
            if not answer.done():
                answer.set_exception(NotConnected(f"the connection has ended: {closure}"))


_HANDLERS: dict[PacketType, Callable[[LightConnection, Any], None]] = {
    PacketType.CONNACK: LightConnection._on_connack,  # noqa: SLF001 - the two are one thing
    PacketType.PUBLISH: LightConnection._on_publish,  # noqa: SLF001
    PacketType.PUBACK: LightConnection._on_puback,  # noqa: SLF001
    PacketType.PUBREC: LightConnection._on_pubrec,  # noqa: SLF001
    PacketType.PUBREL: LightConnection._on_pubrel,  # noqa: SLF001
    PacketType.PUBCOMP: LightConnection._on_pubcomp,  # noqa: SLF001
    PacketType.SUBACK: LightConnection._on_suback,  # noqa: SLF001
    PacketType.PINGRESP: LightConnection._on_pingresp,  # noqa: SLF001
    PacketType.DISCONNECT: LightConnection._on_disconnect,  # noqa: SLF001
}


def _closure(code: ReasonCode, properties: Properties) -> Closure:
    # The same texts as paho's, so that both clients' observations are equal.
    words = code.name.capitalize().replace("_", " ")
    reason, hint = properties.reason_string or "", hint_in(properties.user_properties)
    return Closure(Layer.MQTT, f"0x{code:02x} {words}", reason, time.monotonic(), int(code), hint)
