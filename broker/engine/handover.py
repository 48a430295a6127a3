"""The handover of what an ended session has not acknowledged to other members of its Shared Subscriptions, in portions.

Theory
------
What a member has not acknowledged when its session ends goes to another member (MQTT 5 §4.8.2). That may be tens of
thousands of messages, at seven microseconds each, so beyond a portion the rest waits for the next rounds of the event
loop. With a store, a message is removed from the ended session in the same batch in which it is added to another. Until
the last one is, the session stays in the store, as one that has expired long ago: after a crash the first tick ends it
once more, and gives away what is left. What goes to nobody is only struck from the store, which takes less time; beyond
a portion of its own that waits, too, behind what is given away.

Rules
-----
1. Each message is given to one member, after a crash, too. While plugins are asked about it, it is in no session.
2. A client that connects under the name of the ended session waits until all is given away: the store has one session
   of a client identifier and owner. So a client cannot leave messages faster than they are given away.
3. A broker that stops gives everything away at once: nobody else has to be served.
4. No I/O, no clock: each portion is given away, and a waiting client let on, as of the time that is passed in then. By
   then messages may have expired that had not when the session ended, and so may that client's certificate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from broker.admission.inquiry import Inquiry
from broker.engine.exchange import Exchange, when_known
from broker.engine.session_rows import row_of_ended
from broker.mqtt.message import Deliverable, Message, PersonalMessage
from broker.session.session import Session
from provisioning.pki.identity import Identity

PORTION: Final = 256
"""Messages given away before others are served: two milliseconds."""
STRUCK: Final = 512
"""Messages struck from the store before others are served: half a millisecond."""


class Handover:
    """What one ended session has left, and who waits until it is given away."""

    __slots__ = ("session", "to_nobody", "to_others", "waiting")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.to_others: deque[PersonalMessage] = deque()
        """What goes to other members, the oldest first."""
        self.to_nobody: deque[Deliverable] = deque()
        """What goes to nobody and is still in the store."""
        self.waiting: list[Inquiry] = []
        sent = len(session.inflight) if session.inflight is not None else 0
        for place, message in enumerate(session.deliveries()):
            # A message at QoS 2 that was sent may have arrived [MQTT-4.8.2-5].
            if isinstance(message, PersonalMessage) and message.share and (place >= sent or not message.exactly_once):
                self.to_others.append(message)
            else:
                self.to_nobody.append(message)


class Handovers:
    """All sessions that have ended and have not given everything away."""

    __slots__ = ("_exchange", "_goes_on", "_open", "again")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._open: dict[str, Handover] = {}
        """By the session's name."""
        self._goes_on = False
        """Whether `again` was called and `go_on` has not run yet."""
        self.again: Callable[[], None] | None = None
        """Schedules `go_on` for the next round of the event loop, with the time it is then."""

    @property
    def sessions(self) -> list[Session]:
        """Those sessions: each still has all that it had, given away or not."""
        return [each.session for each in self._open.values()]

    def begin(self, session: Session, now: float, *, at_once: bool) -> None:
        """Begin to give away what *session*, which has just ended, leaves: little, or *at_once*, is given away here."""
        exchange = self._exchange
        if session.inflight is None and not session.queued:  # Most owe nothing.
            exchange.forget_stored(session)
            return
        handover = Handover(session)
        is_stored = exchange.journal is not None and session.row > 0
        if at_once or (len(handover.to_others) <= PORTION and not (is_stored and len(handover.to_nobody) > STRUCK)):
            self._give(handover, len(handover.to_others), now)
            exchange.forget_stored(session, handover.to_nobody)
            return
        if exchange.journal is not None and session.row:
            exchange.journal.save_session(session.row, row_of_ended(session))
        self._open[session.name] = handover
        self._go_on_soon()

    def wait_for(self, name: str) -> Inquiry | None:
        """Return what a client waits for whose earlier session *name* is still given away; None if there is none."""
        handover = self._open.get(name)
        if handover is None:
            return None
        inquiry = Inquiry()
        handover.waiting.append(inquiry)
        return inquiry

    def finish(self, now: float) -> None:
        """Give away all that is left."""
        for handover in list(self._open.values()):
            self._give(handover, len(handover.to_others), now)
            self._end(handover, now)

    def go_on(self, now: float) -> None:
        """Give away the next portion, or strike it, and have the one after it done in the next round."""
        self._goes_on = False
        if not self._open:
            return
        handover = next(iter(self._open.values()))
        try:
            if handover.to_others:
                self._give(handover, PORTION, now)
            else:
                struck = handover.to_nobody
                self._exchange.strike([struck.popleft() for _ in range(min(STRUCK, len(struck)))])
        finally:
            if not handover.to_others and not handover.to_nobody:
                self._end(handover, now)
            self._go_on_soon()

    def _go_on_soon(self) -> None:
        if self._open and not self._goes_on and self.again is not None:
            self._goes_on = True
            self.again()

    def _end(self, handover: Handover, now: float) -> None:
        del self._open[handover.session.name]
        self._exchange.forget_stored(handover.session, handover.to_nobody)
        self._exchange.turn.request()
        for inquiry in handover.waiting:
            inquiry.answer(None, now)

    def _give(self, handover: Handover, most: int, now: float) -> None:
        session, journal = handover.session, self._exchange.journal
        for _ in range(min(most, len(handover.to_others))):
            shared = handover.to_others.popleft()
            self._give_to_another(session.owner, shared, now)
            if journal is not None and session.row and shared.sequence:
                journal.remove(shared)

    def _give_to_another(self, owner: Identity, shared: PersonalMessage, now: float) -> None:
        """Give *shared*, which *owner*'s session has left, to another member of its share.

        Plugins are asked again: a member that has connected since the message was published may get nothing unasked.
        """
        exchange = self._exchange
        group = exchange.routes.share(owner, shared.share)
        inquiry = None
        if group is not None and exchange.extension is not None:
            inquiry = exchange.extension.ask_receivers(shared.message.topic, [group])

        def give(message: Message, later: float) -> None:
            group = exchange.routes.share(owner, shared.share)
            if shared.expires_at is not None and shared.expires_at <= later:
                exchange.metrics.dropped_expired += 1  # [MQTT-3.3.2-5]
            elif group is not None:
                group.deliver_again(message, later)
                exchange.turn.sessions.add(group)  # What one turn gives a member is one write.
                exchange.turn.request()

        when_known(inquiry, shared.message, now, give)
