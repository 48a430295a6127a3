"""A Session: what the broker keeps for a client identifier, longer than one connection where the client asks for it.

Theory
------
A session belongs to a device *identity* (`owner`), not to a connection or a certificate: renewal keeps it, nobody else
can take it. Its outbox is a list that lives as long as the session, so routes may hold its ``append``: going offline
or coming back changes no route. What stands in the outbox at the end of the turn is written by `flush`, or forgotten if
nobody is connected (only QoS 0 messages can be in it then).

A QoS 1 message is *inflight* once written, until its PUBACK; what exceeds the client's Receive Maximum, or comes while
nobody is connected, waits in the queue.

Rules
-----
1. No I/O, no clock: the connection writes, the time is passed in.
2. The queue is bounded, in messages and in bytes; what does not fit is dropped, the newest first, and counted. While
   somebody is connected who takes messages, if slowly, the publishers are *held* before that happens (`congested`):
   their packets are not read until the queue is short again, and what they had sent already may exceed the bound in
   messages. A subscriber that takes nothing holds nobody for longer than a second (`give_up`).
3. Messages leave in the order in which they came; retransmission happens on reconnection only [MQTT-4.4.0-1].
4. Every element of the outbox is one whole packet.

Handles: QoS 0 and 1 deliveries, receive maximum, queue, expiry of queued messages, retransmission. Does not handle:
who may subscribe (admission), which messages reach it (routing), persistence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from broker.metrics import Metrics
from broker.mqtt.codes import ReasonCode
from broker.mqtt.message import Deliverable, Message, PersonalMessage
from broker.mqtt.subscription import Subscription
from broker.session.inflight import Inflight
from broker.session.will import Will
from provisioning.pki.identity import Identity

NEVER = 0xFFFFFFFF
"""Session Expiry Interval of a session that does not expire (MQTT 5 §3.1.2.11.2)."""


class Connection(Protocol):
    """How a session reaches its client."""

    def send(self, packets: list[bytes]) -> None:
        """Write *packets* out; the list is the caller's again afterwards."""

    def disconnect(self, code: str, reason_code: ReasonCode, detail: str, now: float) -> None:
        """End the connection, saying why."""

    def release(self) -> None:
        """Read again from the client, which was held because it publishes faster than a subscriber takes."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much a session may hold for a client that is away or slow."""

    messages: int
    bytes: int


class Session:
    """State of one client identifier."""

    __slots__ = (
        "_given_up",
        "_held",
        "_limits",
        "_metrics",
        "_queue",
        "_queued_bytes",
        "_receive_maximum",
        "client_id",
        "connection",
        "expires_at",
        "expiry_interval",
        "inflight",
        "maximum_packet_size",
        "outbox",
        "owner",
        "scheduled_at",
        "subscriptions",
        "v5",
        "will",
        "will_due_at",
    )

    def __init__(self, client_id: str, owner: Identity, limits: QueueLimits, metrics: Metrics) -> None:
        self.client_id = client_id
        self.owner = owner
        self.connection: Connection | None = None
        self.v5 = False
        self.maximum_packet_size = 0
        """The client's Maximum Packet Size in bytes, 0 for none."""
        self.expiry_interval = 0
        self.expires_at = 0.0
        self.scheduled_at: float | None = None
        """When the registry will look at this session next."""
        self.subscriptions: dict[str, Subscription] = {}
        self.inflight: Inflight[Deliverable] | None = None
        self._receive_maximum = 1
        self.outbox: list[bytes] = []
        self.will: Will | None = None
        """The will, from CONNECT until it is sent or cancelled."""
        self.will_due_at = 0.0
        self._queue: deque[Deliverable] | None = None
        self._queued_bytes = 0
        self._held: list[Connection] | None = None
        self._given_up = False
        self._limits = limits
        self._metrics = metrics

    @property
    def takes_any_size(self) -> bool:
        """Whether frames that all subscribers share fit: the client set no Maximum Packet Size."""
        return self.maximum_packet_size == 0

    @property
    def queued(self) -> int:
        """How many messages wait in the queue."""
        return len(self._queue) if self._queue is not None else 0

    def connect(self, connection: Connection, *, v5: bool, receive_maximum: int, maximum_packet_size: int) -> None:
        """Attach *connection*, which speaks MQTT 5 or not and has these limits."""
        self.outbox.clear()  # QoS 0 messages of this very turn: CONNACK comes first.
        self.connection = connection
        self.v5 = v5
        self.maximum_packet_size = maximum_packet_size
        self._receive_maximum = receive_maximum
        if self.inflight is not None:
            self.inflight.restart(receive_maximum)

    def disconnect(self) -> None:
        """Detach the connection; what was not written is forgotten (QoS 0) or stays inflight (QoS 1)."""
        self.connection = None
        self.outbox.clear()
        self._given_up = False
        self._release()

    @property
    def congested(self) -> bool:
        """Whether publishers should be held: somebody is connected, and the queue is half full."""
        queue = self._queue
        return (
            queue is not None
            and self.connection is not None
            and not self._given_up
            and (len(queue) >= self._limits.messages // 2 or self._queued_bytes >= self._limits.bytes // 2)
        )

    def hold(self, publisher: Connection) -> None:
        """Remember that *publisher* is not read until the queue is short again."""
        if self._held is None:
            self._held = []
        self._held.append(publisher)

    def give_up(self) -> None:
        """Hold nobody any more until the queue has been short once: the client takes nothing."""
        self._given_up = True
        self._release()

    def _release(self) -> None:
        held, self._held = self._held, None
        for publisher in held or ():
            publisher.release()

    def flush(self) -> None:
        """Write the outbox through the connection and leave it empty."""
        outbox = self.outbox
        if outbox:
            if self.connection is not None:
                self.connection.send(outbox)
            outbox.clear()

    def deliver(self, message: Message, subscription: Subscription, now: float, *, retained: bool = False) -> bool:
        """Send or queue *message* at the lower of its QoS and the granted one; return whether to hold the publisher.

        *retained* says that it is sent because it was retained, not because it was published just now.
        """
        retain = retained or (message.retain and subscription.retain_as_published)  # [MQTT-3.3.1-12, -13]
        identifiers = subscription.identifiers if self.v5 else b""
        deliverable: Deliverable = message
        if retain or identifiers:
            deliverable = PersonalMessage(message, retain=retain, identifiers=identifiers)
        if min(message.qos, subscription.qos) > 0:
            return self.deliver_reliably(deliverable, now)
        if self.connection is not None:
            frame = deliverable.frame(b"", v5=self.v5, now=now)
            if self._fits(frame):
                self.outbox.append(frame)
        return False

    def deliver_reliably(self, message: Deliverable, now: float | None = None) -> bool:
        """Send or queue *message* at QoS 1; return whether the publisher should be held. Hot.

        *now* is needed for a message that expires.
        """
        inflight = self.inflight
        if inflight is None:  # Most devices never get a QoS 1 message: it is made for those that do.
            inflight = self.inflight = Inflight(self._receive_maximum)
        if self._queue or self.connection is None or inflight.full:
            self._enqueue(message)
            return self.congested
        self._transmit(message, inflight, now)
        return False

    def _transmit(self, message: Deliverable, inflight: Inflight[Deliverable], now: float | None) -> None:
        packet_id = inflight.add(message)
        frame = message.frame(packet_id.to_bytes(2, "big"), v5=self.v5, now=now)
        if self._fits(frame):
            self.outbox.append(frame)
        else:
            inflight.acknowledge(packet_id)  # [MQTT-3.1.2-25]: as if it had been delivered.

    def _fits(self, frame: bytes) -> bool:
        if self.maximum_packet_size and len(frame) > self.maximum_packet_size:
            self._metrics.dropped_too_large += 1
            return False
        return True

    def _enqueue(self, message: Deliverable) -> None:
        queue = self._queue
        if queue is None:
            if self.connection is None and self.expiry_interval == 0:
                return  # The session ends with its connection: nobody will come back for the message.
            queue = self._queue = deque()
        full = len(queue) >= self._limits.messages and (self.connection is None or self._given_up)
        if full or self._queued_bytes + message.size > self._limits.bytes:
            self._metrics.dropped_queue_full += 1
            return
        queue.append(message)
        self._queued_bytes += message.size

    def acknowledged(self, packet_id: int, now: float) -> bool:
        """Take note of a PUBACK; send what waited for its place. Return False if *packet_id* names no message."""
        inflight = self.inflight
        if inflight is None or inflight.acknowledge(packet_id) is None:
            return False
        if self._queue or inflight.sends_again:
            self._drain(inflight, now)
        return True

    def resume(self, now: float) -> None:
        """Send again what was not acknowledged, in its order and with DUP set, then what was queued [MQTT-4.4.0-1]."""
        if self.inflight is not None:
            self._drain(self.inflight, now)

    def _drain(self, inflight: Inflight[Deliverable], now: float) -> None:
        """Send again, then what is queued, as far as the quota reaches; what has expired is dropped [MQTT-3.3.2-5]."""
        if inflight.sends_again:
            for packet_id, message in inflight.send_again():
                frame = message.frame(packet_id.to_bytes(2, "big"), v5=self.v5, dup=True, now=now)
                if self._fits(frame):
                    self.outbox.append(frame)
                else:
                    inflight.acknowledge(packet_id)
        queue = self._queue
        if queue is None:
            return
        while queue and not inflight.full:
            message = queue.popleft()
            self._queued_bytes -= message.size
            if message.expires_at is not None and message.expires_at <= now:
                self._metrics.dropped_expired += 1
            else:
                self._transmit(message, inflight, now)
        if not queue:
            self._queue = None
        if len(queue) <= self._limits.messages // 8 and self._queued_bytes <= self._limits.bytes // 8:
            self._given_up = False
            self._release()
