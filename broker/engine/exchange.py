"""What clients exchange: subscriptions and messages, retained messages, and which changes the store must record.

Theory
------
A message goes to the route of its topic, which leads to the subscribing sessions, and is retained if its flag says so.
The data path does the former itself (`broker.connection.connection`); this is the straightforward way, for everything
but the best case and for the broker's own messages. With a journal, each change of a session or of retained messages is
recorded, and an answer that promises something is sent once it is on disk.

Rules
-----
1. No I/O and no clock: the journal is written by `broker.store`, the time is passed in.
2. Every subscription is in its session's own list and in the routes, always in both.

Does not handle: which sessions exist, and when they begin and end (`broker.engine.engine`, which builds on this).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from broker.admission.inquiry import Inquiry
from broker.admission.response_information import ResponseInformation
from broker.engine.client import Client
from broker.engine.extension import Extension
from broker.engine.session_rows import session_row, subscription_row
from broker.engine.unwritten_end import unfinished
from broker.metrics import Metrics
from broker.mqtt.message import Deliverable, Message, PersonalMessage, Released
from broker.mqtt.subscription import Subscription
from broker.mqtt.topics import SharedSubscription, text_bytes
from broker.routing.retained import RetainedMessages, Room
from broker.routing.router import Route, Routes, Subscriber
from broker.routing.wildcards import ManyWildcards
from broker.session.name import publisher_name
from broker.session.session import Session
from broker.settings.limits import Limits
from broker.sockets.rounds import PACKET, PLACE
from broker.sockets.turn import Turn
from broker.store.batch import Otherwise
from broker.store.journal import Journal

_APPENDS_A_PACKET = 1024
_DELIVERIES_A_PACKET = 16
"""How many appends of a message (first constant), or deliveries at QoS 1 or 2 (second), cost as much as one packet
(`broker.sockets.work`)."""
_ONE_BY_ONE_A_PACKET = 8
"""Likewise, besides: how many of the latter the straightforward way makes, with whatever properties they have."""
_CALLED_AT_ONCE = 16
"""Clients whose CONNECT waited for the store and is handled now, before others are served: a few milliseconds."""


class Exchange:
    """What is published, who receives it, and what is kept."""

    __slots__ = (
        "extension",
        "journal",
        "limits",
        "metrics",
        "response_information",
        "retained",
        "routes",
        "stamps",
        "turn",
        "wildcards",
    )

    def __init__(self, limits: Limits, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.turn = Turn(call_soon)
        self.routes = Routes(limits.max_cached_routes, self.turn.work)
        self.wildcards = ManyWildcards()
        self.retained = RetainedMessages(limits.max_retained, limits.max_retained_bytes)
        self.retained.device_limit = Room(limits.max_retained_of_device, limits.max_retained_bytes_of_device)
        self.stamps = False
        """Whether each message is stamped with its publisher's certificate, see `broker.engine.vouched`."""
        self.response_information: ResponseInformation | None = None
        """Tells clients that ask where to have their responses sent; None: tells nothing."""
        self.extension: Extension | None = None
        """The host of plugins, asked and notified; None: no plugins, and no cost."""
        self.journal: Journal | None = None
        """Where changes of persistent state are recorded for the store; None: nothing outlives the process."""

    @property
    def inlines_nothing(self) -> bool:
        """Whether each message needs something that the data path does not do: a stamp, or a plugin's check."""
        return self.stamps or (self.extension is not None and self.extension.looks_at_messages)

    # Subscriptions

    def subscribe(self, session: Session, subscription: Subscription) -> bool:
        """Add or replace *subscription*, shared or not; return whether it existed before."""
        if subscription.topic_filter not in session.subscriptions:
            session.subscription_bytes += text_bytes(subscription.topic_filter)
            self.wildcards.add(session.owner, subscription.topic_filter)
        session.subscriptions[subscription.topic_filter] = subscription
        if session.journal is not None:
            session.journal.subscribe(session.row, subscription.topic_filter, subscription_row(subscription))
        shared = SharedSubscription.parse(subscription.topic_filter)
        if shared is None:
            return self.routes.subscribe(session, subscription) is not None
        plain = replace(subscription, topic_filter=shared.topic_filter)
        return self.routes.join(session.owner, shared.share_name, session, plain)

    def unsubscribe(self, session: Session, topic_filter: str) -> bool:
        """Remove the subscription; return whether it existed."""
        if session.subscriptions.pop(topic_filter, None) is None:
            return False
        session.subscription_bytes -= text_bytes(topic_filter)
        self.wildcards.remove(session.owner, topic_filter)
        if session.journal is not None:
            session.journal.unsubscribe(session.row, topic_filter)
        shared = SharedSubscription.parse(topic_filter)
        if shared is None:
            self.routes.unsubscribe(session, topic_filter)
        else:
            self.routes.leave(session.owner, shared.share_name, session, shared.topic_filter)
        return True

    # Messages

    def publish(self, message: Message, sender: Session, now: float) -> Subscriber | None:
        """Retain *message* if its flag says so, and deliver it to every subscriber: the slow twin of the hot path.

        Returns a subscriber for which the publisher should be held, or None.
        """
        route = self.routes[message.topic]
        if message.retain:
            self.retain(message, sender, now)
        slow = self._give(route, message, sender, now)
        self.turn.request()
        return slow

    def retain(self, message: Message, sender: Session | None, now: float) -> bool:
        """Keep *message* of *sender* for later subscribers, on disk too; return False if there is no room."""
        self.metrics.messages_retained += 1
        topic_name = message.topic.decode()
        name = "" if sender is None else publisher_name(sender.owner, sender.client_id)
        replaces = self.retained.has(topic_name)
        kept = self.retained.retain(topic_name, message, name)
        if self.journal is not None and (replaces or (kept and message.payload)):  # Otherwise nothing has changed.
            number = self.retained.last_number
            stored = message if kept and message.payload else None
            self.journal.retain(topic_name, stored, name, number, replaces=replaces)
            self.turn.request()
        if not kept:
            self.metrics.dropped_retained_full += 1
            self.retained.complain(topic_name, sender.who if sender is not None else {"client": ""}, now)
        elif self.extension is not None:
            self.extension.retained(message)
        return kept

    def publish_own(self, message: Message, now: float) -> None:
        """Publish one of the broker's own messages; a retained one is not stored on disk."""
        if message.retain:
            self.retained.retain(message.topic.decode(), message)
        inquiry = None
        if self.extension is not None:
            inquiry = self.extension.ask_receivers(message.topic, self.routes[message.topic].subscribers)
        when_known(inquiry, message, now, self._give_own)

    def _give_own(self, message: Message, now: float) -> None:
        self._give(self.routes[message.topic], message, None, now)
        self.turn.request()

    def _give(self, route: Route, message: Message, sender: Session | None, now: float) -> Subscriber | None:
        plain = message.qos == 0 and not message.retain
        self.weigh(route, len(route.individual) if plain else len(route.subscribers), message.size)
        if message.qos:
            self.turn.work.done += len(route.subscribers) // _ONE_BY_ONE_A_PACKET
        if not route.is_wide:
            self.turn.routes.add(route)
        elif plain:
            return route.deliver_once(message, sender, now)
        return route.deliver(message, sender, now)

    def weigh(self, route: Route, own: int, size: int) -> None:
        """Add the cost of a message of *size* bytes for which *own* subscribers each need a packet of their own.

        The others share one packet at QoS 0. Very many subscribers are scheduled to be written to in rounds.
        """
        others = len(route.subscribers) - own
        if route.is_wide:
            self.turn.rounds.add(route, own * (size + PACKET) + others * PLACE)
        self.turn.work.done += own // _DELIVERIES_A_PACKET + others // _APPENDS_A_PACKET

    # The store

    def note(self, session: Session, ended_at: float | None) -> None:
        """Record the state of *session* for the store, if the session outlives its connection or its will must.

        *ended_at* is the monotonic time at which its connection ended, None while it has one.
        """
        journal = self.journal
        if journal is None:
            return
        if session.expiry_interval > 0:
            session.journal = journal
        else:
            self.forget_stored(session)
        if session.expiry_interval > 0 or session.will is not None:
            if session.row == 0:
                session.row = journal.new_session(session.client_id, session.owner.uri)
            journal.save_session(session.row, session_row(session, ended_at, journal.wall_offset))

    def answer(self, connection: Client, packet: bytes, otherwise: bytes | Otherwise = Otherwise.CLOSE) -> None:
        """Send *packet* once what it promises is stored; do *otherwise* if storing fails."""
        if self.journal is None:
            connection.reply(packet)
        else:
            self.journal.answer(connection, packet, otherwise)
            if connection.session is not None:
                self.turn.sessions.add(connection.session)

    def stored(self, now: float) -> None:
        """Send what waited for the batch that has just been written."""
        if self.journal is not None:
            under_way = self.journal.has_waiting()
            self.turn.sessions.update(self.journal.written())
            self._begin_to_go_on(under_way, now)

    def not_stored(self, now: float) -> None:
        """Take note that a batch could not be written; it will be retried."""
        if self.journal is not None:
            under_way = self.journal.has_waiting()
            self.turn.sessions.update(self.journal.not_written(now))
            self._begin_to_go_on(under_way, now)

    def _begin_to_go_on(self, under_way: bool, now: float) -> None:
        if not under_way:
            self.go_on(now)
        self.turn.request()

    def go_on(self, now: float) -> None:
        """Let some of those who waited for the store continue, as of *now*; the others after one round of the loop."""
        journal = self.journal
        if journal is None or not journal.has_waiting():
            return
        try:
            self.turn.sessions.update(journal.resume_some(now))
            for _ in range(min(_CALLED_AT_ONCE, len(journal.watching))):
                journal.watching.popleft()(now)
        finally:
            if journal.has_waiting() and journal.again is not None:
                journal.again()
            self.turn.request()

    def forget_stored(self, session: Session, deliveries: Iterable[Deliverable] | None = None) -> None:
        """Delete *session* from the store, and the *deliveries* that it still has there; None: all that it has."""
        left = unfinished(session)
        journal, outlived, session.journal = self.journal, session.journal is not None, None
        if journal is None:
            return
        journal.owed.pop(session, None)
        if session.row == 0:
            return
        if journal.remove_session(session.row) and outlived:
            journal.ended(session.name, unfinished=left)
        session.row = 0
        self.strike(session.deliveries() if deliveries is None else deliveries)

    def strike(self, deliveries: Iterable[Deliverable]) -> None:
        """Delete *deliveries* of a session that has ended from the store, if they are there."""
        if (journal := self.journal) is None:
            return
        for delivery in deliveries:
            if isinstance(delivery, PersonalMessage | Released) and delivery.sequence and delivery.message is not None:
                journal.remove(delivery)
                delivery.sequence = 0  # The session may have a row again, for its will.


def when_known(
    inquiry: Inquiry | None, message: Message, now: float, publish: Callable[[Message, float], None]
) -> None:
    """Call *publish* with *message*, for which no client waits, once *inquiry* about it is answered."""
    if inquiry is None or inquiry.done:
        publish(message, now)
    else:
        inquiry.when_done(lambda later: publish(message, later))
