"""A paho-mqtt client on an asyncio loop: no thread, one descriptor, nothing that blocks.

Theory
------
paho can be driven from outside (`loop_read`, `loop_write`, `loop_misc`), but connects by itself and blocks meanwhile.
`_Paho` gives it a socket that is already connected, with its handshake complete (`tls_dial`), and buffered
(`buffered_socket`). What paho queues in one turn of the loop is written once at the end of that turn.

Rules
-----
1. A connection is open only after a successful CONNACK: `Connection.open` returns then, and otherwise raises
   `NotAdmitted`. In TLS 1.3 the refusal of a certificate arrives in this phase.
2. It ends once; `Connection.closed` holds the one `Closure`, with the TLS alert or the reason code that paho hides.
3. Input that OpenSSL has decrypted is processed before returning to the loop: polling does not report it.
4. No reconnection here: paho's own has no jitter, and the policy belongs to the device.

Handles: MQTT 5 and 3.1.1, QoS 0, 1 and 2, wills, kept sessions, keep alive, server keep alive.
Does not handle: retransmission. A device keeps its messages itself; what paho still holds is lost with its connection.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from device_sim.link.buffered_socket import BufferedSocket
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
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import (
    DEADLINE,
    FAILURE,
    MOST_QUEUED,
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

_MQTT5 = MQTTProtocolVersion.MQTTv5

# All clients run on one thread, so one re-entrant lock serves all of them: paho creates seven for each. A lock in
# Python that does nothing would be slower than this one in C.
_ONE_LOCK = threading.RLock()
_LOCKS = (
    "_in_callback_mutex", "_callback_mutex", "_msgtime_mutex", "_out_message_mutex", "_in_message_mutex",
    "_reconnect_delay_mutex", "_mid_generate_mutex",
)  # fmt: skip


class _Paho(mqtt.Client):
    """paho with our own socket, locks and error handling.

    The names that begin with an underscore are paho's own, as of 2.1 and 2.2; `tests/integration/device_sim` fails if
    their meaning changes.
    """

    def __init__(self, client_id: str, terms: Terms) -> None:
        protocol = MQTTProtocolVersion(int(terms.version))
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if protocol is _MQTT5 else terms.clean_start,
            protocol=protocol,
            reconnect_on_failure=False,
        )
        for lock in _LOCKS:
            setattr(self, lock, _ONE_LOCK)
        self.max_queued_messages_set(MOST_QUEUED)
        self._terms = terms
        self._handed_over: BufferedSocket | None = None
        self.error: OSError | None = None

    def start(self, socket: BufferedSocket, endpoint: Endpoint) -> None:
        """Queue CONNECT on *socket*."""
        self._handed_over = socket
        terms = self._terms
        if terms.will is not None:
            self.will_set(terms.will.topic, terms.will.payload, int(terms.will.qos), terms.will.retain)
        alive = terms.seconds_alive
        if self.protocol is _MQTT5:
            properties = None
            if terms.session_seconds:
                properties = Properties(PacketTypes.CONNECT)
                properties.SessionExpiryInterval = terms.session_seconds
            self.connect_async(
                endpoint.host, endpoint.port, alive, clean_start=terms.clean_start, properties=properties
            )
        else:
            self.connect_async(endpoint.host, endpoint.port, alive)
        self.reconnect()
        self._connect_properties = None  # Six kilobytes, kept for a reconnection that paho will never make.

    def keep_to(self, receive_maximum: int) -> None:
        """Have no more messages under way than the broker takes: paho leaves that to its user (MQTT 5 §3.3.4)."""
        self._max_inflight_messages = min(self._max_inflight_messages, receive_maximum)

    def abort(self, error: OSError) -> None:
        """End the connection without DISCONNECT, because of *error*."""
        self.error = error
        self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)

    def _create_socket(self) -> Any:
        socket, self._handed_over = self._handed_over, None
        return socket

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            return super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self.error = error
            raise


class Connection:
    """One open MQTT connection. Created only by `open`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: BufferedSocket,
        paho: _Paho,
        keep_alive: KeepAlive,
        received: Received | None,
        received_whole: ReceivedWhole | None,
        acknowledged: Acknowledged | None,
        *,
        clean_start: bool,
    ) -> None:
        self._clean_start = clean_start
        self._loop = loop
        self._socket = socket
        self._descriptor = socket.fileno()
        self._paho = paho
        self._keep_alive = keep_alive
        self._received = received
        self._received_whole = received_whole
        self._acknowledged = acknowledged
        self._admitted: asyncio.Future[None] = loop.create_future()
        self._subscribing: dict[int, asyncio.Future[int]] = {}
        self._flushing = False
        self._writer_added = False
        self._refusal: Closure | None = None
        self.closed: asyncio.Future[Closure] = loop.create_future()
        self.stage_times = StageTimes(0.0, 0.0, 0.0)
        self.session_present = False
        self._reading = True
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
    ) -> Connection:
        """Return a connection that the broker has admitted; see `device_sim.link.link.Open`."""
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
            asyncio.get_running_loop(),
            reached.socket,
            _Paho(client_id, terms),
            keep_alive,
            received,
            received_whole,
            acknowledged,
            clean_start=terms.clean_start,
        )
        now = time.monotonic()
        await connection._start(endpoint, deadline - (now - started))
        connection.stage_times = StageTimes(reached.tcp, reached.tls, time.monotonic() - now, reached.upgrade)
        return connection

    async def _start(self, endpoint: Endpoint, remaining: float) -> None:
        paho = self._paho
        paho.on_connect = self._on_connect
        paho.on_disconnect = self._on_disconnect
        paho.on_subscribe = self._on_subscribe
        paho.on_socket_register_write = self._on_output
        paho.on_socket_close = self._on_socket_close
        if self._received is not None or self._received_whole is not None:
            paho.on_message = self._on_message
        if self._acknowledged is not None:
            paho.on_publish = self._on_publish
        self._loop.add_reader(self._descriptor, self._readable)
        paho.start(self._socket, endpoint)
        try:
            async with asyncio.timeout(remaining):
                await self._admitted
        except TimeoutError as error:
            paho.abort(error)
            raise NotAdmitted(
                Closure(Layer.MQTT, "timeout", "no answer to CONNECT in time", time.monotonic())
            ) from error
        except asyncio.CancelledError:
            paho.abort(ConnectionAbortedError("cancelled"))
            raise
        self._keep_alive.add(paho, paho.keepalive)  # The broker's, if it has set one.

    def publish(
        self, topic_name: str, payload: bytes, qos: int, *, retain: bool = False, user_properties: UserProperties = ()
    ) -> int:
        """Queue a message; return its packet identifier. Raises `NotConnected`."""
        if self.closed.done():
            raise NotConnected(f"the connection has ended: {self.closed.result()}")
        properties = None
        if user_properties:
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = list(user_properties)
        info = self._paho.publish(topic_name, payload, qos, retain, properties)
        if info.rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise NotConnected(f"not sent: {mqtt.error_string(info.rc)}")
        return int(info.mid)

    async def subscribe(self, topic_filter: str, qos: int, *, retained: bool = True) -> int:
        """Subscribe, and return the QoS granted; see `device_sim.link.link.Link`."""
        if retained or self._paho.protocol is not _MQTT5:
            result, packet_id = self._paho.subscribe(topic_filter, qos)
        else:
            options = SubscribeOptions(qos, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            result, packet_id = self._paho.subscribe(topic_filter, options=options)
        if result is not MQTTErrorCode.MQTT_ERR_SUCCESS or packet_id is None:
            raise NotConnected(f"not subscribed: {mqtt.error_string(result)}")
        answer: asyncio.Future[int] = self._loop.create_future()
        self._subscribing[packet_id] = answer
        try:
            granted = await answer
        finally:
            self._subscribing.pop(packet_id, None)
        if granted >= FAILURE:
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
            self._paho.disconnect()
            self._flush()
        return await self.closed

    def abort(self) -> None:
        """Break the connection without DISCONNECT, as a network failure does."""
        if not self.closed.done():
            self._paho.abort(BrokenByUs())

    # ---- callbacks of the loop and paho

    def _readable(self) -> None:
        paho, socket = self._paho, self._socket
        while paho.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS and socket.unread:
            pass

    def _on_output(self, _client: mqtt.Client, _userdata: Any, _socket: Any) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.closed.done():
            return
        self._paho.loop_write()
        if self.closed.done():  # The last packet written was our DISCONNECT.
            return
        self._socket.flush()
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

    def _on_connect(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._refusal = self._connack(reason, properties)
        elif flags.session_present and self._clean_start:
            self._refusal = unasked_session(time.monotonic())
            self._paho.abort(ConnectionAbortedError("refused by us"))
        elif not self._admitted.done():
            self.session_present = bool(flags.session_present)
            if (most := getattr(properties, "ReceiveMaximum", None)) is not None:
                self._paho.keep_to(most)
            self._admitted.set_result(None)

    def _connack(self, reason: ReasonCode, properties: Properties | None) -> Closure:
        now = time.monotonic()
        if self._paho.protocol is not _MQTT5:
            return connack_311(reason.value, now)
        return _closure(reason, properties, now)

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        now = time.monotonic()
        error = self._paho.error
        if self._refusal is not None:
            closure = self._refusal
        elif flags.is_disconnect_packet_from_server:
            closure = _closure(reason, properties, now)
        elif error is not None:
            closure = from_error(error, now)
        elif not reason.is_failure:
            closure = Closure(Layer.MQTT, "0x00 Normal disconnection", "", now, 0)
        else:
            closure = Closure(Layer.TCP, CLOSED, f"the peer closed the connection ({reason})", now)
        if self.closed.done():
            return
        self.closed.set_result(closure)
        if not self._admitted.done():
            self._admitted.set_exception(NotAdmitted(closure, tls_resumed=self.tls_resumed))
        for answer in self._subscribing.values():
            if not answer.done():
                answer.set_exception(NotConnected(f"the connection has ended: {closure}"))

    def _on_subscribe(
        self, _client: mqtt.Client, _userdata: Any, packet_id: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        answer = self._subscribing.get(packet_id)
        if answer is not None and not answer.done():
            answer.set_result(reasons[0].value)

    def _on_message(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        if not message.topic:  # [MQTT-3.1.2-26]: we allow no Topic Alias, and paho cannot resolve one.
            why = "the broker: a topic alias, where none is accepted"
            self._refusal = Closure(Layer.MQTT, "broken protocol", why, time.monotonic())
            self._paho.abort(ConnectionAbortedError("refused by us"))
            return
        if self._received_whole is not None:
            stated = getattr(message.properties, "UserProperty", ())
            self._received_whole(message.topic, bytes(message.payload), stated)
        elif self._received is not None:
            self._received(message.topic, bytes(message.payload))

    def _on_publish(
        self, _client: mqtt.Client, _userdata: Any, packet_id: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        assert self._acknowledged is not None  # noqa: S101 - it is why this callback is set
        self._acknowledged(packet_id, reason.value, getattr(properties, "ReasonString", ""))

    def _on_socket_close(self, _client: mqtt.Client, _userdata: Any, _socket: Any) -> None:
        if self._reading:
            self._loop.remove_reader(self._descriptor)
        if self._writer_added:
            self._writer_added = False
            self._loop.remove_writer(self._descriptor)
        self._keep_alive.discard(self._paho)
        if self.keeps_tls_session:
            self.tls_session = self._socket.tls.session


def _closure(reason: ReasonCode, properties: Properties | None, at: float) -> Closure:
    text = getattr(properties, "ReasonString", "")
    hint = hint_in(getattr(properties, "UserProperty", ()))
    return Closure(Layer.MQTT, f"0x{reason.value:02x} {reason.getName()}", text, at, reason.value, hint)
