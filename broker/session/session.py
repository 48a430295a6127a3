"""A Session: what the broker keeps for a client identifier, beyond one connection if the client asks for it.

Theory
------
A session belongs to a device *identity* (`owner`), not to a connection or a certificate: renewal keeps it, and no other
identity can take it over. It is a recipient of messages (`broker.session.recipient`, which this builds on): it says
which of them its client may get, and in which form, as its subscriptions ask. Besides, it has what its client has left
with the broker: its subscriptions, its will, and the packet identifiers of its own messages at QoS 2.

Rules
-----
1. No I/O, no clock: the time is passed in.
2. Whoever has options of its own, or may not get everything, gets its messages by `deliver`. A route calls
   `deliver_reliably`, which asks for neither, only where frames may be shared (`takes_shared_frames`).

Handles: what a subscription asks of a message, whether the client may get it, who it is, what it has left.
Does not handle: sending (`broker.session.recipient`), who may subscribe (admission), which messages reach it (routing),
when it ends (the engine).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.metrics import Metrics
from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.message import Deliverable, Message, PersonalMessage
from broker.mqtt.subscription import Subscription
from broker.session.connection import Connection
from broker.session.framing import Framing
from broker.session.incoming import Incoming
from broker.session.name import session_name
from broker.session.queue import QueueLimits
from broker.session.recipient import Recipient
from broker.session.will import Will
from provisioning.pki.identity import Identity
from provisioning.pki.revocation import CertificateKey

NEVER: Final = 0xFFFFFFFF
"""Session Expiry Interval of a session that does not expire (MQTT 5 §3.1.2.11.2)."""

Permits = Callable[["Session", bytes], bool]
"""Returns whether the client of a session may receive a message of a topic."""


class Session(Recipient):
    """The state of one client identifier."""

    __slots__ = (
        "authorities",
        "certificate",
        "expires_at",
        "incoming",
        "permits",
        "scheduled_at",
        "subscription_bytes",
        "subscriptions",
        "will",
        "will_due_at",
    )

    def __init__(self, client_id: str, owner: Identity, limits: QueueLimits, metrics: Metrics) -> None:
        super().__init__(client_id, owner, limits, metrics)
        self.certificate: CertificateKey | None = None
        """Its client's certificate while connected, or when the previous broker process ended; None: neither."""
        self.authorities: tuple[bytes, ...] = ()
        """The CAs above that certificate, by their keys; empty: not known."""
        self.expires_at = self.will_due_at = 0.0
        self.scheduled_at: float | None = None
        """When the registry will look at it next."""
        self.subscriptions: dict[str, Subscription] = {}
        self.subscription_bytes = 0
        """The size of its topic filters (`broker.mqtt.topics.text_bytes`)."""
        self.will: Will | None = None
        """The will, from CONNECT until it is sent or cancelled."""
        self.incoming: Incoming | None = None
        """Packet identifiers of QoS 2 messages from the client, between PUBLISH and PUBREL."""
        self.permits: Permits | None = None
        """Whether the client may receive a message of a topic, if plugins decide that; None: it may."""

    @property
    def name(self) -> str:
        """A unique name: role, trust domain and client identifier."""
        return session_name(self.owner, self.client_id)

    @property
    def takes_shared_frames(self) -> bool:
        """Whether it gets the same bytes as others: no Maximum Packet Size, no Topic Aliases, no plugin to ask."""
        return self.framing.takes_shared_frames and self.permits is None

    def may_get(self, topic: bytes) -> bool:
        """Whether its client may receive a message of *topic*, according to `permits`."""
        return self.permits is None or self.permits(self, topic)

    def connect(self, connection: Connection, written: Framing, *, receive_maximum: int) -> None:
        """Attach *connection*, whose packets are encoded as *written* says."""
        super().connect(connection, written, receive_maximum=receive_maximum)
        if self.incoming is not None:
            self.incoming.restart()

    def deliver(
        self,
        message: Message,
        subscription: Subscription,
        now: float,
        *,
        retained: bool = False,
        share: str = "",
    ) -> bool:
        """Send or queue *message* at the lower of its QoS and the granted one; return whether to hold the publisher.

        *retained*: it is sent as a retained message, not because it was just published; *share*: the Shared
        Subscription that it came through.
        """
        if not self.may_get(message.topic):
            return False
        retain = retained or (message.retain and subscription.retain_as_published)  # [MQTT-3.3.1-12, -13]
        identifiers = subscription.identifiers  # Of an older client too: it may come back for them with MQTT 5.
        qos = min(message.qos, subscription.qos)
        deliverable: Deliverable = message
        if retain or identifiers or share or qos == QoS.EXACTLY_ONCE:
            deliverable = PersonalMessage(message, qos=qos, retain=retain, identifiers=identifiers, share=share)
        if qos > 0:
            return self.deliver_reliably(deliverable, now)
        self.deliver_best_effort(deliverable, now)
        return False

    def note_incoming(self, packet_id: int, *, known: bool) -> None:
        """Record the packet identifier of a QoS 2 message from the client, or that it is free again."""
        if self.incoming is None:
            self.incoming = Incoming()
        (self.incoming.add if known else self.incoming.discard)(packet_id)
        if self.journal is not None:
            self.journal.incoming(self.row, packet_id, known=known)

    def unanswered(self, now: float) -> None:
        """Close the connection: what the client waits for cannot be stored, and no packet could tell it so."""
        if self.connection is not None:
            reason = ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR
            self.connection.disconnect("STORE_FAILED", reason, "the store cannot be written", now)
