"""Sending retained messages to new subscribers: a few at a time, however many there are.

Theory
------
A wide filter may match a hundred thousand retained messages. To send them all at once would take as much memory again
as they have, for each subscriber, and block the broker while they are encoded. So a `Replay` is a walk over the
retained messages that stores none of them, and each step sends one portion: the first at once (for most filters that
is everything), the next when the client has taken the previous one. What a client does not take stays where it already
is, among the retained messages.

Rules
-----
1. The first portion, shared by all filters of one SUBSCRIBE, is sent before anything published later. After it, nothing
   is sent while earlier data waits for the socket, nor, at QoS 1 and 2, anything that would have to be queued.
2. Per turn one session gets one portion, in rotation: many wide subscriptions slow each other down, and nothing else.
3. A replay ends with its subscription, or with another SUBSCRIBE to the same filter. When the connection ends, a replay
   at QoS 0 is over; one at QoS 1 or 2 continues when the client returns to its session. If the broker restarted in
   between, it starts over, except for what was sent at QoS 2.
4. Where plugins decide who may receive a message (`ask`), it waits for the answer, and so does everything behind it.
5. No I/O, no clock: expiry uses the time of the last `wake`, at most a second old (`Engine.duties`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from broker.admission.inquiry import Inquiry
from broker.engine.session_rows import subscription_row
from broker.mqtt.codes import QoS
from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription
from broker.routing.retained import Replay, RetainedMessages
from broker.session.name import publisher_name
from broker.session.session import Session
from broker.sockets.turn import Turn

PORTION = 64 * 1024
"""Bytes that one step sends before its last message."""
_LOOKS = 512
"""Entries that one step looks at."""
_LOOKS_A_PACKET = 8
"""Entries, with the messages found there, that cost as much as one packet (`broker.sockets.work`)."""
_OVERHEAD = 32
"""Bytes that a message costs beyond its own size."""


class Replays:
    """All sessions that have not yet received every retained message of their subscriptions."""

    __slots__ = ("_asked", "_call_soon", "_ready", "_retained", "_turn", "ask", "now", "waiting")

    def __init__(
        self, retained: RetainedMessages, turn: Turn, call_soon: Callable[[Callable[[], None]], object], now: float
    ) -> None:
        self._retained = retained
        self._turn = turn
        self._call_soon = call_soon
        self._ready: dict[Session, None] = {}
        self._asked = False
        self.ask: Callable[[Session, Message], Inquiry | None] | None = None
        """Asked about each message; returns the question to wait for. None: no plugin has to be asked."""
        self.waiting: dict[Session, deque[Replay]] = {}
        """The unfinished replays of each session, the oldest subscription first."""
        self.now = now

    def begin(self, session: Session, subscriptions: Iterable[Subscription], now: float) -> None:
        """Send the first portion of what *subscriptions*, of one SUBSCRIBE, match, and schedule the rest."""
        self.now = now
        reader = publisher_name(session.owner, session.client_id)
        new = [Replay(self._retained, subscription, reader) for subscription in subscriptions]
        if not new:
            return
        older = self.waiting.get(session)
        # An unfinished replay of a filter that is subscribed to again starts over.
        filters = {replay.subscription.topic_filter for replay in new}
        kept = [replay for replay in older or () if replay.subscription.topic_filter not in filters]
        self.waiting[session] = deque([*kept, *new])
        if not kept:
            self._step(session, first=True)
        for replay in self.waiting.get(session, ()):
            if replay in new:
                self._note(session, replay.subscription, pending=replay.newest)

    def resume(self, session: Session, subscription: Subscription, newest: int, sent: frozenset[int]) -> None:
        """Continue what was unfinished when the broker restarted; the client is not back yet.

        Messages numbered in *sent* were sent at QoS 2 and are not sent again; those sent at QoS 1 are. Those
        retained after *newest* reached the subscription when they were published.
        """
        reader = publisher_name(session.owner, session.client_id)
        replay = Replay(self._retained, subscription, reader, newest=newest, sent=sent)
        self.waiting.setdefault(session, deque()).append(replay)

    def wake(self, session: Session, now: float) -> None:
        """Continue for *session*, which may have room: it took what was sent, acknowledged, or came back."""
        self.now = now
        if session in self.waiting:
            self._soon(session)

    def parted(self, session: Session) -> None:
        """Take note that the client of *session* has disconnected."""
        self._ready.pop(session, None)
        replays = self.waiting.pop(session, None)
        if replays is None:
            return
        kept = deque(replay for replay in replays if replay.subscription.qos > 0)
        if kept:
            self.waiting[session] = kept

    def forget(self, session: Session) -> None:
        """Take note that *session* has ended."""
        self._ready.pop(session, None)
        self.waiting.pop(session, None)

    def _soon(self, session: Session) -> None:
        self._ready[session] = None
        if not self._asked:
            self._asked = True
            self._call_soon(self._go_on)

    def _go_on(self) -> None:
        """Send one portion to the session that has waited longest."""
        self._asked = False
        if not self._ready:
            return
        session = next(iter(self._ready))
        del self._ready[session]
        self._turn.sessions.add(session)
        self._turn.request()  # Before scheduling the next portion: each is written before the next is prepared.
        try:
            self._step(session)
        finally:  # Whatever one meets: nothing else would go on for the others.
            if self._ready and not self._asked:
                self._asked = True
                self._call_soon(self._go_on)

    def _step(self, session: Session, *, first: bool = False) -> None:
        replays = self.waiting[session]
        size = 0
        looks = _LOOKS
        work = self._turn.work
        while replays:
            replay = replays[0]
            subscription = replay.subscription
            if subscription.topic_filter not in session.subscriptions:
                replays.popleft()
                continue
            if session.choked or not (first or session.has_room(subscription.qos)):
                return  # The session wakes us.
            if size >= PORTION or looks == 0:
                self._soon(session)
                return
            looks -= 1
            work.done += not looks % _LOOKS_A_PACKET
            try:
                message = replay.look(self.now)
            except StopIteration:
                replays.popleft()
                self._note(session, subscription)
                continue
            if message is not None:
                if self._must_wait(session, replay, message):
                    return
                size += message.size + _OVERHEAD
                if session.journal is not None and min(message.qos, subscription.qos) == QoS.EXACTLY_ONCE:
                    session.journal.replayed(session.row, subscription.topic_filter, replay.number)
                session.deliver(message, subscription, self.now, retained=True)
        del self.waiting[session]

    def _must_wait(self, session: Session, replay: Replay, message: Message) -> bool:
        """Return whether *message* has to wait until it is known who may receive it; it is then put back."""
        inquiry = self.ask(session, message) if self.ask is not None else None
        if inquiry is not None:
            replay.put_back(message)
            inquiry.when_done(partial(self.wake, session))
        return inquiry is not None

    def _note(self, session: Session, subscription: Subscription, *, pending: int = 0) -> None:
        """Record in the store whether *subscription*, at QoS 1 or 2, still waits for retained messages."""
        journal = session.journal
        if journal is not None and subscription.qos > 0:
            note = journal.replays if pending else journal.subscribe
            note(session.row, subscription.topic_filter, subscription_row(subscription, pending=pending))
