"""A Recipient: the messages for one client, from being routed to it until they are acknowledged.

Theory
------
Its outbox is a list that lives as long as itself, so routes may hold its ``append``: disconnecting or reconnecting
changes no route. At the end of the turn `flush` writes the outbox, or clears it if no client is connected (it can only
contain QoS 0 messages then).

A QoS 1 message is *inflight* from being written until its PUBACK; a QoS 2 message until its PUBCOMP, from PUBREC on as
the PUBREL that replaces it. Messages beyond its Receive Maximum, or for a client that is away, wait in the queue.

Hot: `deliver_reliably`. Budget, in plain Python, with the message and its PUBACK: 3 µs of CPU time, 5 µs with a
journal; benchmarks/hot_calls.py measures it. Slow twins: what the client is sent and acknowledges, as lists
(tests/properties/test_session_properties.py), and what each session has to get, with a journal
(tests/properties/test_deliveries_properties.py).

Rules
-----
1. No I/O, no clock: the connection writes, the time is passed in.
2. The queue is bounded, in messages and in bytes; what does not fit is dropped, newest first, counted, and logged once
   each time the queue fills up. While a client is connected and takes messages, however slowly, the publishers are
   *held* before that happens (`congested`): they are not read until the queue is short again; what they had sent before
   may exceed the limit in messages.
3. Messages at QoS 1 and 2 are sent in order of arrival; they are retransmitted on reconnection only [MQTT-4.4.0-1].
4. Every element of the outbox is one whole packet.
5. What depends on the store waits for it, and those at QoS 1 and 2 that come after wait with it (decision 0015).

Handles: QoS 0, 1 and 2 deliveries, receive maximum, queue, expiry of queued messages, retransmission.
Does not handle: encoding packets (`broker.session.framing`), which messages reach it and in which form (routing, and
`broker.session.session`, which builds on this), writing to disk (it tells the journal what must be stored).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, cast

import structlog

from broker.metrics import Metrics
from broker.mqtt.message import Deliverable, Message, PersonalMessage, Released
from broker.session.connection import Connection
from broker.session.framing import PLAIN_V4, Framing
from broker.session.held_publishers import HeldPublishers
from broker.session.inflight import LARGE, Inflight, holds_exactly_once, out_of_order, were_sent
from broker.session.queue import MessageQueue, QueueLimits
from broker.store.journal import Journal
from provisioning.pki.identity import Identity

log = structlog.get_logger("broker")

_DRAINED_AT_ONCE: Final = 2048
"""Messages sent again, or taken from a queue to be sent or dropped, before others are served."""


class Recipient:
    """One client's messages at QoS 0, 1 and 2."""

    __slots__ = (
        "_behind",
        "_held",
        "_limits",
        "_metrics",
        "_queue",
        "_receive_maximum",
        "choked",
        "client_id",
        "connection",
        "expiry_interval",
        "framing",
        "inflight",
        "journal",
        "outbox",
        "owner",
        "row",
    )

    def __init__(self, client_id: str, owner: Identity, limits: QueueLimits, metrics: Metrics) -> None:
        self.client_id = client_id
        self.owner = owner
        self.connection: Connection | None = None
        self.framing = PLAIN_V4
        """How packets are encoded for its present or latest client."""
        self.expiry_interval = 0
        """For how many seconds it outlives its connection; 0: it ends with that, and so does what it is still owed."""
        self.inflight: Inflight[Deliverable] | None = None
        self._receive_maximum = 1
        self.outbox: list[bytes] = []
        self.journal: Journal | None = None
        """Where its state is recorded, if it is persistent; None for one that ends with its connection."""
        self.row = 0
        """Its row in the store, 0 for none."""
        self._behind = 0
        """The batch of the journal for which a QoS 2 message waits, if it is not written yet; others wait with it."""
        self._queue: MessageQueue | None = None
        self.choked = False
        """Whether so much is unsent that nothing more is written: QoS 1 and 2 messages wait in the queue."""
        self._held: HeldPublishers | None = None
        self._limits = limits
        self._metrics = metrics

    @property
    def who(self) -> dict[str, str]:
        """Its identity for the log: another trust domain may have the same client identifier."""
        return {"client": self.client_id, "identity": self.owner.uri}

    @property
    def v5(self) -> bool:
        """Whether its present or latest client speaks MQTT 5."""
        return self.framing.v5

    @property
    def connected(self) -> bool:
        """Whether its client is connected."""
        return self.connection is not None

    @property
    def persistent(self) -> bool:
        """Whether it outlives its connection."""
        return self.expiry_interval > 0

    @property
    def queued(self) -> int:
        """How many messages wait in the queue."""
        return len(self._queue) if self._queue is not None else 0

    def has_room(self, qos: int) -> bool:
        """Whether a message at *qos* would be written at once, and nothing before it still waits."""
        connection = self.connection
        if connection is None or self.choked or connection.unsent:
            return False
        return qos == 0 or (self._queue is None and (self.inflight is None or self.inflight.room > 0))

    def connect(self, connection: Connection, written: Framing, *, receive_maximum: int) -> None:
        """Attach *connection*, whose packets are encoded as *written* says."""
        self.outbox.clear()  # QoS 0 messages of this turn: CONNACK must come first.
        self.connection = connection
        self.framing = written
        self.choked = False
        self._behind = 0
        self._receive_maximum = receive_maximum
        if self.inflight is not None:
            self.inflight.restart(receive_maximum)

    def disconnect(self) -> None:
        """Detach the connection; what was not written is dropped (QoS 0) or stays inflight (QoS 1)."""
        self.connection = None
        self.outbox.clear()
        if self._held is not None:
            self._held.give_up()  # Else who comes again and again holds them for ever.

    def flush(self) -> None:
        """Write the outbox through the connection and leave it empty."""
        outbox = self.outbox
        if outbox:
            if self.connection is not None:
                self.connection.send(outbox)
            outbox.clear()

    # Publishers that wait for it

    @property
    def congested(self) -> bool:
        """Whether publishers should be held: a client is connected, and the queue is half full."""
        queue = self._queue
        return queue is not None and self.connection is not None and not self._given_up and queue.half_full

    def hold(self, publisher: Connection, now: float) -> bool:
        """Remember that *publisher* is not read until the queue is short again; False: it is, as if given up."""
        if not self._limits.patience.allows(self.owner, self.client_id, now):
            self.give_up()
            return False
        if self._held is None:
            self._held = HeldPublishers()
        self._held.add(publisher)
        return True

    def give_up(self) -> None:
        """Hold no publishers until the queue has been short once: the client takes nothing."""
        if self._held is None:
            self._held = HeldPublishers()
        self._held.give_up()

    @property
    def _given_up(self) -> bool:
        return self._held is not None and self._held.given_up

    # Sending

    def deliver_best_effort(self, message: Deliverable, now: float) -> None:
        """Send *message* at QoS 0, or drop it: nothing waits for a client that is away."""
        if self.connection is not None:
            # While the client takes nothing QoS 0 messages are dropped, except those that introduce an alias.
            frame = self.framing.encode(message, b"", now, introduces=not self.choked)
            if self._fits(frame):
                self.outbox.append(frame)

    def deliver_reliably(self, message: Deliverable, now: float | None = None) -> bool:
        """Send or queue *message* at QoS 1; return whether the publisher should be held.

        *now* is needed for a message that expires, and to remove expired ones from a full queue.
        """
        inflight = self.inflight
        if inflight is None:  # Created on demand: most devices never get a QoS 1 message.
            inflight = self.inflight = Inflight(self._receive_maximum, self._limits)
        if self.journal is not None:
            return self._deliver_durably(message, inflight, self.journal, now)
        if self._queue is not None or self.connection is None or self.choked or inflight.room <= 0:
            self._enqueue(message, now)
            return self.congested
        self._transmit(message, inflight, now)
        return False

    def _deliver_durably(
        self, message: Deliverable, inflight: Inflight[Deliverable], journal: Journal, now: float | None
    ) -> bool:
        stored = message if isinstance(message, PersonalMessage) else PersonalMessage(cast("Message", message))
        if self._queue is not None or self.connection is None or self.choked or inflight.room <= 0:
            if self._enqueue(stored, now):
                journal.add(self.row, stored)
            return self.congested
        journal.add(self.row, stored)
        self._transmit(stored, inflight, now)
        return False

    def _transmit(self, message: Deliverable, inflight: Inflight[Deliverable], now: float | None) -> None:
        packet_id = inflight.add(message)
        journal = self.journal
        follows = journal is not None and self._behind > journal.released
        # A packet that waits for the store may not introduce an alias: one that uses the alias could overtake it.
        introduces = journal is None or not (follows or message.exactly_once)
        frame = self.framing.encode(message, packet_id.to_bytes(2, "big"), now, introduces=introduces)
        if self._fits(frame):
            if len(frame) >= LARGE:
                inflight.weigh(packet_id, len(frame))
            if journal is not None and isinstance(message, PersonalMessage) and message.exactly_once:
                # If retransmitted after a crash, it must have the packet identifier that the client knows.
                journal.advance(message, packet_id, released=False)
                if self.connection is not None:
                    self._behind = journal.number
                    journal.send(self.connection, frame)
            else:
                if journal is not None and isinstance(message, PersonalMessage) and message.sequence:
                    journal.sent(message, packet_id)
                if journal is not None and follows and self.connection is not None:
                    journal.follow(self._behind, self.connection, frame)  # Behind those at QoS 2 that came before.
                else:
                    self.outbox.append(frame)
        else:
            inflight.acknowledge(packet_id)  # [MQTT-3.1.2-25]: as if it had been delivered.
            self._over(message)

    def _fits(self, frame: bytes) -> bool:
        framing = self.framing
        if framing.takes(frame):
            return True
        self._metrics.dropped_too_large += 1
        if not framing.told_too_large:  # Logged once per connection; the metrics count the rest.
            framing.told_too_large = True
            facts = {**self.who, "size": len(frame), "maximum": framing.maximum_packet_size}
            log.warning("packet exceeds the client's maximum packet size", code="MESSAGE_TOO_LARGE", **facts)
        return False

    def _enqueue(self, message: Deliverable, now: float | None) -> bool:
        queue = self._queue
        if queue is None:
            if self.connection is None and not self.persistent:
                return False  # The session ends with its connection: no client will return for the message.
            queue = self._queue = MessageQueue(self._limits)
        away = self.connection is None or self._given_up
        if queue.append(message, away=away):
            return True
        if now is not None and (expired := queue.expired(now)):
            for each in expired:
                self._metrics.dropped_expired += 1
                self._over(each)
            if queue.append(message, away=away):
                return True
        queue.refused += 1
        self._metrics.dropped_queue_full += 1
        if queue.refused == 1:  # Logged once each time it fills up; the metrics count the rest.
            log.warning("queue is full", code="QUEUE_FULL", **self.who, **queue.full)
        return False

    def _over(self, message: Deliverable) -> None:
        """Remove *message* from the store: it was acknowledged, or never will be."""
        if self.journal is not None and isinstance(message, PersonalMessage | Released) and message.message is not None:
            self.journal.remove(message)

    # Acknowledgements from the client. One that is not due raises `ProtocolError`.

    def acknowledged(self, packet_id: int, now: float) -> bool:
        """Handle a PUBACK; send what waited for the quota. Return False if *packet_id* names no message."""
        inflight = self.inflight
        message = inflight.get(packet_id) if inflight is not None else None
        if inflight is None or message is None:
            return False
        if message.exactly_once:
            raise out_of_order("PUBACK", packet_id, message)
        self._finish(message, packet_id, inflight, now)
        return True

    def received(self, packet_id: int, now: float, *, failed: bool) -> bool:
        """Handle a PUBREC; return False if *packet_id* names no message.

        A failure ends the exchange (MQTT 5 §4.3.3); otherwise PUBREL replaces the message until PUBCOMP.
        """
        inflight = self.inflight
        message = inflight.get(packet_id) if inflight is not None else None
        if inflight is None or message is None:
            return False
        if not message.exactly_once:
            raise out_of_order("PUBREC", packet_id, message)
        if failed:
            self._finish(message, packet_id, inflight, now)
        elif isinstance(message, PersonalMessage):
            inflight.replace(packet_id, Released(message.message, message.sequence))
            if self.journal is not None:
                self.journal.advance(message, packet_id, released=True)
        return True

    def completed(self, packet_id: int, now: float) -> bool:
        """Handle a PUBCOMP; return False if *packet_id* names no message."""
        inflight = self.inflight
        message = inflight.get(packet_id) if inflight is not None else None
        if inflight is None or message is None:
            return False
        if not isinstance(message, Released):
            raise out_of_order("PUBCOMP", packet_id, message)
        self._finish(message, packet_id, inflight, now)
        return True

    def _finish(self, message: Deliverable, packet_id: int, inflight: Inflight[Deliverable], now: float) -> None:
        inflight.acknowledge(packet_id)
        if self.journal is not None:
            self._over(message)
        if self._queue is not None or inflight.sends_again:
            self._drain(inflight, now)

    # What has waited

    def unchoke(self, now: float) -> None:
        """Take note that the client reads again: send what has waited."""
        self.choked = False
        if self.inflight is not None:
            self._drain(self.inflight, now)

    def resume(self, now: float) -> None:
        """Retransmit what was not acknowledged, in order and with DUP set, then send what was queued [MQTT-4.4.0-1].

        With QoS 2 messages this waits for the store: packet identifiers of the last connection may be unwritten yet.
        """
        journal, connection, inflight = self.journal, self.connection, self.inflight
        if connection is None or inflight is None:
            return
        if journal is not None and journal.dirty and holds_exactly_once(inflight):
            inflight.waits = True  # Whatever the client sends or takes meanwhile.
            journal.resume(connection)
        else:
            self.send_again(now)

    def send_again(self, now: float) -> None:
        """Do what `resume` does, whatever is unwritten."""
        if self.inflight is not None:
            self.inflight.waits = False
            self._drain(self.inflight, now)

    def _drain(self, inflight: Inflight[Deliverable], now: float) -> None:
        """Retransmit, then send what is queued, within the quota; drop what has expired [MQTT-3.3.2-5]."""
        left = _DRAINED_AT_ONCE
        if inflight.sends_again:
            for packet_id, message in islice(inflight.send_again(), left):
                left -= 1
                frame = message.frame(packet_id.to_bytes(2, "big"), v5=self.v5, dup=True, now=now)
                if self._fits(frame):
                    self.outbox.append(frame)
                else:
                    inflight.acknowledge(packet_id)
                    self._over(message)
        queue = self._queue
        if queue is not None:
            messages = queue.messages
            # A message too large for the client uses no quota.
            while messages and left > 0 and not self.choked and not inflight.waits and inflight.room > 0:
                left -= 1
                message = queue.popleft()
                if message.expires_at is not None and message.expires_at <= now:
                    self._metrics.dropped_expired += 1
                    self._over(message)
                else:
                    self._transmit(message, inflight, now)
            if not messages:
                self._queue = None
            if self._held is not None and queue.short:
                held, self._held = self._held, None
                held.release()
        if left <= 0 and self.connection is not None:
            inflight.waits = True
            self.connection.drain_later(now)

    def deliveries(self) -> Iterator[Deliverable]:
        """Yield every message that the client has not acknowledged, the oldest first."""
        if self.inflight is not None:
            yield from self.inflight.values()
        yield from self._queue or ()

    def look_for_expired(self) -> None:
        """Look for expired messages when the queue is full next: the clock was set."""
        if self._queue is not None:
            self._queue.look_again()

    def restore(self, stored: PersonalMessage | Released, packet_id: int | None, free: Sequence[int] = ()) -> None:
        """Put back a delivery from the store, in order; one with a *packet_id*, none that is *free*, is under way."""
        if self.inflight is None:
            self.inflight = Inflight(self._receive_maximum, self._limits)
        if packet_id is None:
            self._queue = MessageQueue(self._limits) if self._queue is None else self._queue
            self._queue.restore(stored)
        else:
            if self._queue is not None and were_sent(self._queue, self.inflight, free):
                self._queue = None
            self.inflight.put_back(packet_id, stored, stored.message.size if stored.message is not None else 0)
