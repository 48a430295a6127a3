"""One client's connection: bytes in, packets handled, bytes out. The data path.

Theory
------
A read usually brings several whole packets and at most one unfinished one. `receive` walks the bytes once. It handles
the common packets in the loop itself, by offsets, without creating an object per packet: a PUBLISH at QoS 0 or 1 to a
topic that this client is known to be allowed, and a PUBACK. Everything else (the first PUBLISH to a topic, flags,
properties, all other packets) goes through `broker.mqtt.packets` and `broker.connection.handlers`, which do the same
things in the straightforward way.

Hot: `receive`. Budget, in plain Python, from these bytes to those for a subscriber, without TLS: 1 µs of CPU time a
message at QoS 0, 3 µs at QoS 1; benchmarks/receive_loop.py measures it, docs/performance-in-detail.md has figures. Slow
twin: `broker.connection.handlers.publish`; tests/properties/test_fast_path_properties.py feeds both the same packets.

Rules
-----
1. No I/O and no clock: `transport` reads and writes, the time is passed in.
2. Limits come before allocation: a packet is refused as soon as its length is known, and a packet that trickles in byte
   by byte costs time linear in its length, not quadratic.
3. Packets before a malformed one in the same read are handled; nothing behind it is.
4. After the connection has ended nothing is read, written or changed through it.
5. An unexpected error in what has waited, or is written, closes the connection (`broker.sockets.guarded`).

Does not handle: the client's identity, how long the connection lasts and how it ends (`broker.connection.client_life`).
"""

from __future__ import annotations

from functools import partial
from typing import Final

import structlog

from broker.admission.inquiry import Inquiry, Waits
from broker.connection import lifetime
from broker.connection.answers import pinged
from broker.connection.authorization import introduce
from broker.connection.client_life import ClientLife
from broker.connection.handlers import handle, take_leave
from broker.connection.meter import Meter
from broker.connection.portions import goodbye_in, wait_a_turn, work_of
from broker.engine.client import Holder
from broker.engine.engine import Engine
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.errors import PacketError, ProtocolError
from broker.mqtt.framing import bytes_needed, check_packet_size, decode_length
from broker.mqtt.message import Message
from broker.mqtt.packets import Packet, announced_version, decode_packet
from broker.mqtt.publish import PINGRESP, PUBACK_HEAD, encode_publish
from broker.routing.router import Route
from broker.sockets.byte_stream import ByteStream
from broker.sockets.guarded import give_up, guarded
from broker.sockets.work import PORTION
from broker.store.batch import Otherwise

log = structlog.get_logger("broker")

_PUBLISH_QOS0: Final = 0x30
_PUBLISH_QOS1: Final = 0x32
_PUBACK: Final = 0x40
_PINGREQ: Final = 0xC0
_V5: Final = ProtocolVersion.V5
_HOLD_SECONDS: Final = 1.0
_SILENCE: Final = 10.0  # Seconds of silence after which a client that pings counts as idle (`broker.sockets.doze`).
_MUCH: Final = 1000  # Bytes of an unfinished packet that prove that the client is alive (decision 0135).
_SMALL_A_PACKET: Final = 64  # PUBACKs and pings that count as one packet (`broker.sockets.work`).
_SMALL_AT_ONCE: Final = 512  # Of these, out of the thousands that a read can hold; then others are served.
_DELIVERIES_A_PACKET: Final = 16  # Deliveries, each a packet of its own or at QoS 1, that count as one, too.
_NEVER: Final = 1 << 60  # More bytes than are ever read: what is behind a waiting packet is not looked at.


class ClientConnection(ClientLife):
    """A client's connection: handles what is read, and can pause reading."""

    __slots__ = ("_holder", "_moved", "_needed", "_tail", "_waiting", "_waits_first", "dozes")

    def __init__(self, engine: Engine, transport: ByteStream, now: float) -> None:
        super().__init__(engine, transport, now)
        self._tail: bytearray | None = None
        self._needed = 0
        self._holder: Holder | None = None
        self._waiting = False
        self._waits_first: Packet | None = None
        """The decoded packet before `_tail`, if one waits."""
        self._moved = 0
        self.dozes = False
        """Whether the client only sends pings (`broker.sockets.doze`)."""

    # Reading

    def receive(self, data: bytes, now: float) -> None:
        """Handle *data*, just read."""
        if self._tail is not None:  # Rare: the previous read ended inside a packet.
            self._tail += data
            if len(self._tail) < self._needed:
                return
            data, self._tail, self._moved = bytes(self._tail), None, 0
        silence, self.last_received = now - self.last_received, now
        engine = self.engine
        if len(data) == 2 and data[0] == _PINGREQ and not engine.limits_rates and pinged(engine, self.session, data):
            self._doze(dozes=self.dozes or silence > _SILENCE)
            return
        if self.dozes:
            self._doze(dozes=False)
        metrics = engine.metrics
        known: dict[bytes, Route] = engine.routes
        touched = engine.turn.routes
        allowed = self.topics.permitted
        session, journal = self.session, engine.journal
        maximum = self.terms.limits.max_packet_size if session is not None else engine.limits.max_connect_size
        v5 = self.version is _V5
        storable = journal is None or not journal.failed
        position = messages = acknowledged = handled = stores = pubacks = small = deliveries = 0
        work = engine.turn.work
        most = work.done + PORTION
        if most > engine.turn.most_work:  # Many clients ask for much.
            most = max(work.done, engine.turn.most_work)
        slow: Holder | None = None
        limit = len(data)
        try:
            while limit - position > 1:
                first = data[position]
                length = data[position + 1]
                body = position + 2
                if length > 127:  # Rare: a body of 128 bytes or more.
                    length, body = decode_length(data, position + 1)
                    if body == 0:
                        break
                    check_packet_size(body + length - position, maximum)  # Never below 256: shorter packets always fit.
                end = body + length
                if end > limit:
                    break
                if first == _PUBLISH_QOS0 and length > 2:
                    topic_end = body + 2 + (data[body] << 8 | data[body + 1])
                    topic = data[body + 2 : topic_end]
                    # Best case: known to be allowed, no properties. Otherwise the packet is decoded fully below.
                    plain = topic_end < end and not data[topic_end] if v5 else topic_end <= end
                    route = known.get(topic) if plain and topic in allowed else None
                    if route is None and plain and work.done < most:
                        route = introduce(engine, self, topic, length, now, reliably=False)
                    if route is not None:
                        messages += 1
                        if v5:
                            if route.appends_v5:
                                frame = data[position:end]
                                for append in route.appends_v5:
                                    append(frame)
                            if route.appends_v4:
                                frame = encode_publish(first, topic, b"", None, data[topic_end + 1 : end])
                                for append in route.appends_v4:
                                    append(frame)
                        else:
                            if route.appends_v4:
                                frame = data[position:end]
                                for append in route.appends_v4:
                                    append(frame)
                            if route.appends_v5:
                                frame = encode_publish(first, topic, b"", b"", data[topic_end:end])
                                for append in route.appends_v5:
                                    append(frame)
                        if route.individual:
                            deliveries += len(route.individual)
                            message = Message(topic, data[topic_end + v5 : end])
                            slow = route.deliver_individually(message, session, now) or slow
                        touched.add(route)
                        position = end
                        continue
                elif first == _PUBLISH_QOS1 and length > 4 and storable:
                    topic_end = body + 2 + (data[body] << 8 | data[body + 1])
                    topic = data[body + 2 : topic_end]
                    payload = topic_end + 2
                    if payload < end and not data[payload] if v5 else payload <= end:
                        packet_id = data[topic_end:payload]
                        route = known.get(topic) if topic in allowed else None
                        if route is None and work.done < most:
                            route = introduce(engine, self, topic, length, now, reliably=True)
                        if route is not None and packet_id != b"\0\0":
                            messages += 1
                            if route.subscribers:
                                deliveries += len(route.individual) + len(route.reliable)
                                message = Message(topic, data[payload + v5 : end], 1)
                                for subscriber in route.reliable:
                                    if subscriber.deliver_reliably(message, now):
                                        slow = subscriber
                                if route.best_effort_v4:
                                    frame = message.frame(b"", v5=False)
                                    for append in route.best_effort_v4:
                                        append(frame)
                                if route.best_effort_v5:
                                    frame = message.frame(b"", v5=True)
                                    for append in route.best_effort_v5:
                                        append(frame)
                                if route.individual:
                                    slow = route.deliver_individually(message, session, now) or slow
                                touched.add(route)
                            if journal is not None and journal.dirty:  # The answer waits until the message is stored.
                                otherwise = Otherwise.WAIT if v5 else Otherwise.CLOSE
                                journal.open.answers.append((self, PUBACK_HEAD + packet_id, otherwise))
                                stores += 1
                            else:
                                session.outbox.append(PUBACK_HEAD + packet_id)  # type: ignore[union-attr] # whoever publishes has one
                            acknowledged += 1
                            position = end
                            continue
                elif first == _PUBACK and length == 2 and session is not None:
                    if not session.acknowledged(data[body] << 8 | data[body + 1], now) and data[body:end] == b"\0\0":
                        raise ProtocolError("packet identifier: 0 is not allowed")
                    pubacks += 1  # Messages that waited for a send quota may be in the outbox now.
                    small += 1
                    position = end
                    if small >= _SMALL_AT_ONCE and position < limit:
                        wait_a_turn(self, None, engine.turn, now)
                    continue
                elif first == _PINGREQ and length == 0 and session is not None:
                    session.outbox.append(PINGRESP)
                    acknowledged += 1
                    handled += 1
                    small += 1
                    position = end
                    if small >= _SMALL_AT_ONCE and position < limit:
                        wait_a_turn(self, None, engine.turn, now)
                    continue
                position = end
                handled += 1
                stores += first != _PUBLISH_QOS0
                packet = decode_packet(first, data[body:end], self.version, engine.packet_items)
                work.done += work_of(packet, length)
                if work.done > most and handled + messages > 1:
                    wait_a_turn(self, packet, engine.turn, now)
                handle(engine, self, packet, now)
                if self.closed:
                    break
                session = self.session
                maximum = self.terms.limits.max_packet_size
                allowed = self.topics.permitted
                v5 = self.version is _V5
        except PacketError as error:
            if session is None and error.reason_code is ReasonCode.PACKET_TOO_LARGE:  # Not decoded, nor fully read.
                error.version = announced_version(data, position)
            self.fail(error, now)
        except Waits:
            self._tail, self._needed = bytearray(data[position:]), _NEVER
            limit = position
        work.done += small // _SMALL_A_PACKET + deliveries // _DELIVERIES_A_PACKET  # A read holds thousands.
        metrics.packets_received += messages + handled + pubacks
        metrics.messages_received += messages
        metrics.bytes_received += position  # An unfinished packet counts once, when it is whole.
        if (acknowledged or pubacks) and session is not None:
            engine.turn.sessions.add(session)
            if engine.replays.waiting or engine.routes.lagging:  # Rare: it may be waited for.
                engine.took(session, now)
        if stores and journal is not None and journal.crowded:
            slow = journal
        if slow is not None:
            self.hold(slow, now)
        if engine.limits_rates and session is not None:
            self._rest(messages + handled, position, now)
        if position < limit and not self.closed:
            self._tail = bytearray(data[position:])
            self._needed = bytes_needed(data, position)

    def choke(self, now: float) -> None:
        """Take note that too much is unsent: the session keeps further messages in its bounded queue."""
        if self.session is not None:
            self.session.choked, self._moved = True, -self._transport.untaken
            self._complain().slow(now)

    def unchoke(self, now: float) -> None:
        """Take note that the client reads again."""
        if self.session is not None:
            self.session.unchoke(now)
            self.engine.turn.sessions.add(self.session)

    def drained(self, now: float) -> None:
        """Take note that the client has taken everything that was waiting for it."""
        if self.session is not None:
            self.engine.took(self.session, now)

    def drain_later(self, now: float) -> None:
        """Let the session send more of what is queued, after a round of the event loop."""
        self.engine.turn.portion(lambda: guarded(lambda: self._drain(now), self, self._transport, now))

    def _drain(self, now: float) -> None:
        if self.session is not None:
            self.engine.turn.work.done += PORTION  # Thousands of messages.
            self.session.send_again(now)
            self.engine.took(self.session, now)  # What has expired is dropped unsent.
            self.engine.turn.sessions.add(self.session)
            self.engine.turn.request()

    # Writing

    def send(self, packets: list[bytes]) -> None:
        """Write *packets* out. Others' outboxes follow: an unexpected error ends this connection alone, and later."""
        try:
            if self.dozes and (len(packets) > 1 or packets[0] is not PINGRESP):
                self._doze(dozes=False)
            self._transport.write(packets)
        except MemoryError:  # As in `broker.sockets.guarded`.
            raise
        except Exception:
            log.exception("connection failed", code="INTERNAL_ERROR")
            self.engine.turn.later(partial(give_up, self, self._transport, self.last_received))

    def _doze(self, *, dozes: bool) -> None:
        if dozes is not self.dozes:
            self.dozes = dozes
            self._transport.settle(dozes=dozes)

    # Pauses in reading

    def wait(self, inquiry: Inquiry, packet: Packet | None) -> None:
        """Stop reading until *inquiry* is answered; then handle *packet*, if any, and what was read behind it."""
        self._waiting, self._waits_first = True, packet
        if self._holder is None:
            self._transport.hold()
        inquiry.when_done(lambda now: self._go_on(packet, now))

    def _go_on(self, packet: Packet | None, now: float) -> None:
        self._waiting, self._waits_first = False, None
        if self.closed:  # The client has left meanwhile, or `connect_timeout` has expired.
            return
        behind, self._tail = bytes(self._tail or b""), None
        self.last_received = now
        if self._holder is None:
            self._transport.release()
        guarded(lambda: self._handle_behind(packet, behind, now), self, self._transport, now)
        self.engine.turn.request()

    def _handle_behind(self, packet: Packet | None, behind: bytes, now: float) -> None:
        """Handle *packet*, which has waited, and then what was read behind it."""
        try:
            if packet is not None:
                handle(self.engine, self, packet, now)
        except PacketError as error:
            self.fail(error, now)
        except Waits:  # For another reason.
            self._tail, self._needed = bytearray(behind), _NEVER
            return
        if behind and not self.closed:
            self.receive(behind, now)

    def hold(self, slow: Holder, now: float) -> None:
        """Stop reading until *slow* has caught up, or a second has passed."""
        # Never for its own session: the acknowledgements that the session waits for would not be read.
        if self._holder is None and not self.closed and slow is not self.session and slow.hold(self, now):
            self._holder = slow
            if not self._waiting:
                self._transport.hold()
            self.engine.metrics.publishers_held += 1
            self.engine.deadlines.file(self, now + _HOLD_SECONDS)

    def _rest(self, packets: int, size: int, now: float) -> None:
        """Stop reading for a while if the client has sent more than its rate allows."""
        if self._meter is None:
            self._meter = Meter(now)
        seconds = self._meter.spend(packets, size, self.engine.limits, now)
        if seconds > 0 and not self.closed:
            self.engine.metrics.rests += 1
            self._complain().fast(self.engine.limits, now)
            self.last_received = now + seconds  # It may send meanwhile, but is not read.
            self._transport.rest(seconds)

    def release(self) -> None:
        """Resume reading."""
        self._holder = None
        if not self._waiting:
            self._transport.release()

    def on_deadline(self, now: float) -> None:
        """Close the connection if a limit has passed, or file the next deadline."""
        if self.closed:
            return
        if self._holder is not None or self._waiting or self._moves():
            if self._holder is not None:
                self._holder.give_up()
            self.last_received = now  # It may have sent something unread, or is in the middle of a packet.
        if (over := lifetime.over(self, self.engine.limits, now)) is not None:
            self.disconnect(*over, now)
        else:
            lifetime.file(self, now)

    def _moves(self) -> bool:
        """Whether, since the last call, much of a packet arrived, or a choked client took much of what it was sent."""
        choked = self.session is not None and self.session.choked
        before, self._moved = self._moved, len(self._tail or b"") - (self._transport.untaken if choked else 0)
        return self._moved - before >= _MUCH

    def _has_said_goodbye(self) -> bool:
        """Whether a DISCONNECT that discards the will was read and waits; what it says of the session is done."""
        if not self._waiting or self.session is None:
            return False
        first = self._waits_first
        try:
            last = first if isinstance(first, Disconnect) else goodbye_in(bytes(self._tail or b""), self.version)
            return last is not None and not take_leave(self, self.session, last)
        except PacketError:
            return False

    def _end(self, code: str, detail: str, now: float, *, publish_will: bool, claimed: str = "") -> None:
        publish_will = publish_will and not self._has_said_goodbye()
        self._tail = None
        super()._end(code, detail, now, publish_will=publish_will, claimed=claimed)
