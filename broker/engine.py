"""The engine: all state of the broker that outlives a packet, and what happens to it when clients come and go.

Theory
------
`connection` turns bytes into packets, `handlers` say what each packet means, and both act on the engine: the routes,
the sessions, the retained messages, the live connections by certificate, the turn. It is built once and handed to every
connection.

The life of a session here: `open` (admitted client: created or resumed, an older connection taken over) → messages →
`detach` (connection gone: will published or delayed, session discarded or kept until it expires) → `tick`.

Rules
-----
1. No I/O and no clock: transports do the one, the time is passed in.
2. Nothing of an existing session changes before the newcomer is `Admitted` and owns it.
3. Each change that an operator cares about is one log event with a stable code, and a counter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from broker.admission.admission import Admission, Admitted, Peer
from broker.admission.guard import Guard
from broker.admission.inquiry import Inquiry
from broker.admission.refusal import RefusalCode, Refused
from broker.client import Client
from broker.deadlines import Deadlines
from broker.extension import Action, Extension
from broker.history import Happened, History, named
from broker.limits import Limits
from broker.live import LiveConnections
from broker.metrics import Metrics
from broker.mqtt.codes import ReasonCode
from broker.mqtt.message import Message, PersonalMessage, Released
from broker.mqtt.subscription import Subscription
from broker.mqtt.topics import SharedSubscription
from broker.presence import Presence
from broker.replay import Replays
from broker.returning import Returning
from broker.routing.retained import RetainedMessages, Room
from broker.routing.router import Routes, Subscriber
from broker.session.queue import QueueLimits
from broker.session.registry import SessionRegistry
from broker.session.session import NEVER, Session
from broker.session.will import Will
from broker.session_quota import refuse_another
from broker.session_rows import session_row, subscription_row
from broker.store.journal import Journal, Otherwise
from broker.terms import CurrentTerms
from broker.turn import Turn

log = structlog.get_logger("broker")


class Engine:
    """State shared by all connections of one broker process."""

    __slots__ = (
        "admission",
        "connected",
        "deadlines",
        "extension",
        "guard",
        "history",
        "journal",
        "keeps_revoked",
        "limits",
        "live",
        "logs_clients",
        "metrics",
        "presence",
        "registry",
        "replays",
        "retained",
        "returning",
        "routes",
        "stamps",
        "stopping",
        "terms",
        "turn",
    )

    def __init__(
        self,
        admission: Admission,
        limits: Limits,
        call_soon: Callable[[Callable[[], None]], object],
        now: float,
    ) -> None:
        self.admission = admission
        self.limits = limits
        self.terms = CurrentTerms(admission.trust_generation, limits)
        self.metrics = Metrics()
        self.guard = Guard(limits, self.metrics)
        self.turn = Turn(call_soon)
        self.deadlines: Deadlines[Client] = Deadlines(now)
        self.history = History(limits.max_history)
        self.routes = Routes(limits.max_cached_routes)
        self.retained = RetainedMessages(limits.max_retained, limits.max_retained_bytes)
        self.retained.device_limit = Room(limits.max_retained_of_device, limits.max_retained_bytes_of_device)
        self.replays = Replays(self.retained, self.turn, call_soon, now)
        self.registry = SessionRegistry(
            QueueLimits(limits.max_queued_messages, limits.max_queued_bytes, limits.max_inflight_bytes), self.metrics
        )
        self.stamps = False
        """Whether each message is stamped with its publisher's certificate, see `broker.vouched`."""
        self.presence: Presence | None = None
        """Who tells services who comes and goes; None: nobody."""
        self.extension: Extension | None = None
        """Who else is asked and told (plugins); None: nobody, and nothing of it is done."""
        self.journal: Journal | None = None
        """Where persistent state is noted for the store; None: nothing outlives the process."""
        self.live = LiveConnections()
        """Who is connected with which certificate."""
        self.returning = Returning(now)
        """Whose wills wait for them after a start."""
        self.stopping = False
        """Whether the broker is about to end: wills wait for the next start."""
        self.keeps_revoked = False
        """Whether a revoked client's will is sent, and its session kept, as if the connection had just broken."""
        self.logs_clients = True
        """Whether the log takes a line for each client that comes or goes."""
        self.connected = 0
        """How many clients are admitted and connected."""

    @property
    def inlines_nothing(self) -> bool:
        """Whether each message needs what the data path does not do: a stamp, or the look of a plugin."""
        return self.stamps or (self.extension is not None and self.extension.looks_at_messages)

    def limit(self, limits: Limits) -> None:
        """Let *limits* count for what is asked from now on; what exists and exceeds them stays."""
        self.limits = self.guard.limits = limits
        self.routes.limit = limits.max_cached_routes
        self.retained.limit = limits.max_retained
        self.retained.bytes_limit = limits.max_retained_bytes
        self.retained.device_limit = Room(limits.max_retained_of_device, limits.max_retained_bytes_of_device)
        self.registry.limits.messages = limits.max_queued_messages
        self.registry.limits.bytes = limits.max_queued_bytes
        self.registry.limits.inflight_bytes = limits.max_inflight_bytes

    # Clients coming and going

    def open(
        self,
        connection: Client,
        admitted: Admitted,
        *,
        clean_start: bool,
        expiry_interval: int,
        will: Will | None,
        now: float,
    ) -> tuple[Session, bool] | Refused:
        """Return the session of an admitted client and whether it was present before [MQTT-3.2.2-2], or the refusal.

        An older connection of the same session is taken over [MQTT-3.1.4-3].
        """
        peer = admitted.peer
        identity = peer.identity
        session = self.registry.find(identity.trust_domain, identity.role, admitted.client_id)
        if session is not None and session.owner != identity:
            return Refused(
                RefusalCode.CLIENT_ID_OF_ANOTHER,
                ReasonCode.NOT_AUTHORIZED,
                f"the session {admitted.client_id!r} belongs to another identity",
            )
        # It ended with another broker process, and its client may have come before its will was sent.
        only_a_will = session is not None and session.connection is None and session.expiry_interval == 0
        if session is None or only_a_will:
            refusal = refuse_another(self.registry, self.limits, admitted, replaces=only_a_will)
            if refusal is not None:
                return refusal
        if session is not None:
            older, before, revoked = session.connection, session.certificate, self.was_revoked(session)
            clone = self._taken_over(peer, session, connection, now)
            if older is not None and clone is not None:
                older.disconnect(clone.code, ReasonCode.ADMINISTRATIVE_ACTION, clone.detail, now)
                return clone
            if older is not None:
                taken, detail = ReasonCode.SESSION_TAKEN_OVER, "another connection has taken over"
                older.disconnect("SESSION_TAKEN_OVER", taken, detail, now, publish_will=not revoked)
            self.returning.came(session, now)
            if only_a_will or revoked:
                session.will = None
            ends = clean_start or only_a_will or (revoked and before is not None and self.admission.is_ended(before))
            if ends or not self.registry.has(session):
                self.forget(session, now)  # Unless it has ended with the older connection.
                session = None
        present = session is not None
        if session is None:
            session = self.registry.create(admitted.client_id, peer.identity)
        session.expiry_interval = expiry_interval
        session.certificate = peer.certificate
        session.will = will  # A delayed will is not sent when its client is back in time [MQTT-3.1.3-9].
        self.live.add(peer.certificate, connection)
        self.connected += 1
        self.metrics.admitted += 1
        return session, present

    def _taken_over(self, peer: Peer, session: Session, connection: Client, now: float) -> Refused | None:
        """Refuse a client that takes over *session* with its own certificate, where that looks like a copied key."""
        for older in self.live.of(peer.certificate):
            if older.session is session:
                return self.guard.taken_over(peer, _host(older), _host(connection), now)
        return None

    def ended(self, connection: Client, code: str, detail: str, now: float, *, publish_will: bool) -> None:
        """Count and tell that *connection* has ended, and let go of it if it was admitted."""
        session = connection.session
        what = Happened.REFUSED if session is None else Happened.CLOSED
        counter = self.metrics.refused if session is None else self.metrics.closed
        counter[code] += 1
        if self.logs_clients:
            who = named(connection) if session is None else {"client": session.client_id, **named(connection)}
            log.info(str(what), code=code, detail=detail, address=connection.address, **who)
        self.history.note(what, connection, code, detail, session.client_id if session is not None else "", now)
        if session is not None:
            if connection.peer is not None:
                self.guard.ended(connection.peer, session.client_id, code, now)
            self.detach(connection, now, publish_will=publish_will)
            if self.presence is not None:
                self.presence.disconnected(connection, session, code, detail, now)
            if self.extension is not None:
                self.extension.disconnected(session)

    def detach(self, connection: Client, now: float, *, publish_will: bool) -> None:
        """Let go of a connection that was admitted: its will, and its session or what is left of it."""
        peer, session = connection.peer, connection.session
        if peer is None or session is None:
            return
        connection.session = None
        if not self.stopping:
            session.certificate = None  # What is revoked from now on concerns nobody who is here.
        self.connected -= 1
        self.live.remove(peer.certificate, connection)
        session.disconnect()
        self.replays.parted(session)
        if not publish_will:
            session.will = None
        will = session.will
        if will is not None and not self.stopping:
            if min(will.delay, session.expiry_interval) == 0:
                self._publish_will(session, will, now)
            else:
                session.will_due_at = now + will.delay
                self.registry.schedule(session, session.will_due_at)
        if session.expiry_interval == 0:
            session.will = None
            self._discard(session, now)
            if will is not None and self.stopping:
                session.will = will
                self.note(session, now)
            return
        if session.expiry_interval != NEVER:
            session.expires_at = now + session.expiry_interval
            self.registry.schedule(session, session.expires_at)
        self.note(session, now)

    def stop(self, now: float) -> None:
        """Send everybody away. Wills are sent when their clients are not back soon after the next start.

        MQTT 5 §3.1.2.5 lets a server that stops defer them. Without a store they are gone with all else.
        """
        self.stopping = True
        reason = ReasonCode.SERVER_SHUTTING_DOWN
        for connection in self.connections():
            connection.disconnect(RefusalCode.SHUTTING_DOWN, reason, "the broker is stopping", now)

    def was_revoked(self, session: Session) -> bool:
        """Whether what *session* leaves goes with its certificate, which is revoked, and nobody has put it out yet."""
        certificate = session.certificate
        return not self.keeps_revoked and certificate is not None and self.admission.is_revoked(certificate)

    def forget(self, session: Session, now: float) -> None:
        """End *session*, which has no connection, before its time."""
        if session.connection is None and self.registry.has(session):
            self._discard(session, now)

    def tick(self, now: float) -> None:
        """Do what has become due; call it about once a second."""
        self.replays.now = now
        self.deadlines.due(now)
        for topic_name in self.retained.sweep(now):
            if self.journal is not None:
                self.journal.retain(topic_name, None)
        for session in self.registry.due(now):
            if session.connection is None:
                self._due(session, now)
        self.turn.request()

    def _due(self, session: Session, now: float) -> None:
        will = session.will
        if will is not None and (until := self.returning.waits(session, now)) is not None:
            self.registry.schedule(session, until)
            return
        if will is not None and self.was_revoked(session):
            session.will = will = None
        if will is not None:
            if session.will_due_at > now:
                self.registry.schedule(session, session.will_due_at)
            else:
                self._publish_will(session, will, now)
                self.note(session, session.expires_at - session.expiry_interval)
        if session.expiry_interval != NEVER:
            if session.expires_at > now:
                self.registry.schedule(session, session.expires_at)
            else:
                self.metrics.sessions_expired += 1
                self._discard(session, now)

    def _discard(self, session: Session, now: float) -> None:
        """End *session*: its subscriptions, its queue; a will that still waits is sent now [MQTT-3.1.2-10]."""
        for topic_filter in list(session.subscriptions):
            self.unsubscribe(session, topic_filter)
        self.registry.discard(session)
        self.returning.forget(session)
        self.replays.forget(session)
        self._forget(session)
        for shared in list(session.shared_messages()):
            group = self.routes.share(session.owner.trust_domain, shared.share)
            if shared.expires_at is not None and shared.expires_at <= now:
                self.metrics.dropped_expired += 1  # [MQTT-3.3.2-5]
            elif group is not None:
                group.deliver_again(shared.message, now)
        if session.will is not None:
            self._publish_will(session, session.will, now)

    def _publish_will(self, session: Session, will: Will, now: float) -> None:
        session.will = None

        def publish(message: Message, later: float) -> None:
            extension, topic_name = self.extension, message.topic.decode()
            if extension is None or extension.refusal(session, Action.PUBLISH, topic_name) is None:
                self.publish(message, session, later)

        message, inquiry = will.published(now), None
        if self.extension is not None:
            receivers = self.routes[message.topic].subscribers
            inquiry = self.extension.ask_publish(session, message.topic.decode(), receivers)
        _when_known(inquiry, message, now, publish)

    # The store

    def note(self, session: Session, ended_at: float | None) -> None:
        """Note the state of *session* for the store, if it outlives its connection or has a will that must.

        *ended_at* is the monotonic time at which its connection ended, None while there is one.
        """
        journal = self.journal
        if journal is None:
            return
        if session.expiry_interval > 0:
            session.journal = journal
        else:
            self._forget(session)
        if session.expiry_interval > 0 or session.will is not None:
            if session.row == 0:
                session.row = journal.new_session()
            journal.save_session(session.row, session_row(session, ended_at, journal.wall_offset))

    def answer(self, connection: Client, packet: bytes, otherwise: bytes | Otherwise = Otherwise.CLOSE) -> None:
        """Send *packet* when what it promises is stored; *otherwise* if that fails."""
        if self.journal is None:
            connection.reply(packet)
        else:
            self.journal.answer(connection, packet, otherwise)
            if connection.session is not None:
                self.turn.sessions.add(connection.session)

    def stored(self, now: float) -> None:
        """Send what waited for the batch that has just been written."""
        if self.journal is not None:
            self.turn.sessions.update(self.journal.written(now))
            self.turn.request()

    def not_stored(self, now: float) -> None:
        """Take note that a batch could not be written; it is tried again."""
        if self.journal is not None:
            self.turn.sessions.update(self.journal.not_written(now))
            self.turn.request()

    def _forget(self, session: Session) -> None:
        journal, session.journal = self.journal, None
        if journal is None:
            return
        journal.owed.pop(session, None)
        if session.row == 0:
            return
        journal.remove_session(session.row)
        session.row = 0
        for delivery in session.deliveries():
            if isinstance(delivery, PersonalMessage | Released) and delivery.sequence and delivery.message is not None:
                journal.release(delivery.message)

    # Subscriptions

    def subscribe(self, session: Session, subscription: Subscription) -> bool:
        """Add or replace *subscription*, shared or not; return whether it existed before."""
        session.subscriptions[subscription.topic_filter] = subscription
        if session.journal is not None:
            session.journal.subscribe(session.row, subscription.topic_filter, subscription_row(subscription))
        shared = SharedSubscription.parse(subscription.topic_filter)
        if shared is None:
            return self.routes.subscribe(session, subscription) is not None
        plain = replace(subscription, topic_filter=shared.topic_filter)
        return self.routes.join(session.owner.trust_domain, shared.share_name, session, plain)

    def unsubscribe(self, session: Session, topic_filter: str) -> bool:
        """Take the subscription away; return whether there was one."""
        if session.subscriptions.pop(topic_filter, None) is None:
            return False
        if session.journal is not None:
            session.journal.unsubscribe(session.row, topic_filter)
        shared = SharedSubscription.parse(topic_filter)
        if shared is None:
            self.routes.unsubscribe(session, topic_filter)
        else:
            self.routes.leave(session.owner.trust_domain, shared.share_name, session, shared.topic_filter)
        return True

    # Messages

    def publish(self, message: Message, sender: Session, now: float) -> Subscriber | None:
        """Retain *message* if it says so, and give it to every subscriber: the obvious way, beside the hot path.

        Returns a subscriber for which the sender should be held, if there is one.
        """
        route = self.routes[message.topic]
        if message.retain:
            self.retain(message, sender, now)
        slow = route.deliver(message, sender, now)
        self.turn.routes.add(route)
        self.turn.request()
        return slow

    def retain(self, message: Message, sender: Session | None, now: float) -> bool:
        """Keep *message* of *sender* for those who subscribe later, on disk too; return False if there is no room."""
        self.metrics.messages_retained += 1
        topic_name, name = message.topic.decode(), sender.name if sender is not None else ""
        replaces = self.retained.has(topic_name)
        kept = self.retained.retain(topic_name, message, name)
        if self.journal is not None and (replaces or (kept and message.payload)):  # Else there is nothing to forget.
            number = self.retained.last_number
            self.journal.retain(topic_name, message if kept and message.payload else None, name, number)
            self.turn.request()
        if not kept:
            self.metrics.dropped_queue_full += 1
            self.retained.complain(topic_name, sender.who if sender is not None else {"client": ""}, now)
        elif self.extension is not None:
            self.extension.retained(message)
        return kept

    def publish_own(self, message: Message, now: float) -> None:
        """Publish a message of the broker's own; a retained one is not stored on disk."""
        if message.retain:
            self.retained.retain(message.topic.decode(), message)
        inquiry = None
        if self.extension is not None:
            inquiry = self.extension.ask_receivers(message.topic, self.routes[message.topic].subscribers)
        _when_known(inquiry, message, now, self._give_own)

    def _give_own(self, message: Message, now: float) -> None:
        route = self.routes[message.topic]
        route.deliver(message, None, now)
        self.turn.routes.add(route)
        self.turn.request()

    # Who is here

    def connections(self) -> list[Client]:
        """Return every admitted connection."""
        return self.live.all()


def _host(connection: Client) -> str:
    return connection.address.rpartition(":")[0]


def _when_known(
    inquiry: Inquiry | None, message: Message, now: float, publish: Callable[[Message, float], None]
) -> None:
    """Call *publish* with *message*, for which no client waits, when *inquiry* about it is answered."""
    if inquiry is None:
        publish(message, now)
    else:
        inquiry.when_done(lambda later: publish(message, later))
