"""What must be written to disk, collected turn by turn; and what may be sent only when it is.

Theory
------
Decision 0013: a QoS 1 or 2 message is acknowledged only when every persistent session that must receive it has it on
disk. During a turn, changes of persistent state are recorded in the *open batch*, and the answers that depend on them
(PUBACK, PUBREC, PUBCOMP, SUBACK, UNSUBACK) are held back with it. The store writes one batch at a time; changes made
meanwhile go into the next. So many messages share one fsync, and a message that its subscriber acknowledges before its
batch is written is never written at all.

Exactly-once delivery across a crash needs more: a QoS 2 PUBLISH is sent only after its packet identifier is stored, and
a PUBREL only after the receipt of PUBREC is stored. Those packets are held back likewise. At QoS 1 the identifier is
stored, too, but not waited for (decision 0387).

And a client that was told that it has no session must not find its old one after a crash: what that remembers of QoS 2
exchanges would be taken for the new session's. So its CONNECT waits until the end of the old one is stored (decision
0226): `unwritten_end`.

Hot: `add`, `sent`, `turn_ended`. Budget: part of that of `broker.session.recipient`; and, in plain Python, 0.1 µs of
CPU time for a turn without changes; benchmarks/hot_calls.py measures both. Slow twin: a list of each session's
messages (tests/properties/test_deliveries_properties.py), also after a crash
(tests/properties/test_durability_properties.py).

Rules
-----
1. Answers are sent in the order in which they were given [MQTT-4.6.0-2]: while anything is unwritten, all of them wait.
2. A batch that cannot be written is merged into the open one, and retried. A message that was routed is never refused:
   its answer keeps waiting until it is written, or until the batch contains nothing that an answer promises, because
   every subscriber has acknowledged, and nothing was struck from it that a crash could bring back. An answer that does
   not concern a message ends its connection. Messages that arrive while the store fails are refused before they are
   routed, unless they come again and may have been routed before: no refused message is ever delivered (decision 0094).
3. What waits belongs to one *connection*: it is dropped with it, and never sent on the next connection of the same
   session, whose client starts its packet identifiers afresh.
4. What waits is bounded, however long a write takes: beyond `MOST_WAITING` answers and retained topics publishers are
   *held*: they are not read until the batch is written, or is known to have failed. While writing fails, for days
   perhaps, what comes and goes leaves nothing here: connections, sessions and topics that the store never held.
5. No I/O, no clock: `sqlite` writes, times are converted by an offset to the wall clock. When that clock is set, the
   times stored by this process are shifted with it, so that an interval is still right after a restart. Times of before
   this process stay as they were, also that of a retained message that is stored again for a session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from broker.mqtt.message import Message, PersonalMessage, Released
from broker.store.batch import Answerable, Batch, Moved, Otherwise, Outbox, Row
from broker.store.outstanding import Outstanding
from broker.store.owed import Again, Owed

MOST_WAITING = 65_536
"""Answers and retained topics of one batch beyond which publishers are held: some megabytes."""
LAPSED_AT_ONCE: Final = 1000
"""Expired sessions removed from the store by one transaction: with two subscriptions each it takes 60 ms."""
_PORTION: Final = 128
"""Packets retransmitted before others are served; one session may exceed it, up to its Receive Maximum."""
_FEW_HELD = 1024
"""Number of held publishers up to which those that have disconnected are not searched for."""


class Publisher(Protocol):
    """A connection that is held."""

    closed: bool

    def release(self) -> None:
        """Resume reading from the client."""


class Journal:
    """The open batch and the one that is being written."""

    __slots__ = (
        "_held",
        "_last_message",
        "_last_session",
        "_outstanding",
        "_stored_session",
        "_sweep_at",
        "_taken_session",
        "again",
        "begin",
        "brief",
        "dirty",
        "earlier",
        "failed",
        "first_message",
        "first_retained",
        "held_log_bytes",
        "lapsed",
        "number",
        "open",
        "owed",
        "released",
        "resuming",
        "wall_offset",
        "watching",
        "writing",
    )

    def __init__(
        self, wall_offset: float, *, last_session: int = 0, last_message: int = 0, last_delivery: int = 0
    ) -> None:
        """Start with the highest row numbers in use; *wall_offset* plus monotonic time is the wall clock."""
        self.first_message = last_message
        """The highest row of a message that existed before this process."""
        self.earlier: set[int] = set()
        """Rows of sessions that ended before this process began, and have not been recorded since."""
        self.first_retained = 0
        """The highest number of a retained message that existed before."""
        self.lapsed: dict[tuple[str, str], int] = {}
        """Rows of sessions that had expired before this process began, by client identifier and owner: they exist no
        more, and are removed from the store a portion at a time."""
        self.open = Batch()
        self.writing: Batch | None = None
        self.number = 1
        """The number of the open batch; …"""
        self.released = 0
        """… and of the last one whose packets were sent."""
        self.begin: Callable[[], None] | None = None
        """Begins to write the open batch; None: the owner of the journal calls `take` itself."""
        self.again: Callable[[], None] | None = None
        """Has `Exchange.go_on` called after one round of the event loop, with the time it is then."""
        self.failed = False
        """Whether the last write failed: nothing durable is accepted until one succeeds."""
        self.held_log_bytes = 0
        """How long the store's log is, while something keeps it from being moved into the file (STORE_LOG_GROWS)."""
        self.dirty = False
        """Whether anything is unwritten, so that answers have to wait."""
        self.owed: dict[Outbox, Owed] = {}
        """What was sent again while the store fails."""
        self.resuming: deque[Answerable] = deque()
        """Connections that may retransmit, perhaps a whole fleet that has come back: see `resume_some`."""
        self.watching: deque[Callable[[float], None]] = deque()
        """Those who waited for a batch that was written, or could not be; to be called, some at a time."""
        self.brief: set[int] = set()
        """Rows of sessions that end with their connection if the broker is restarted, and live on until then."""
        self.wall_offset = wall_offset
        self._held: list[Publisher] = []
        self._sweep_at = _FEW_HELD
        self._last_session = last_session
        self._stored_session = last_session
        """The highest row of a session that may be in the store, …"""
        self._taken_session = last_session
        """… or in the batch that is being written."""
        self._last_message = last_message
        self._outstanding = Outstanding(last_delivery)

    def clock_set(self, seconds: float, kept: Iterable[int] = ()) -> None:
        """Take note that the wall clock was set ahead by *seconds*; the rows of messages that are *kept* are right."""
        self.dirty = True
        right = dict.fromkeys(kept, seconds)
        self.open.move(Moved(seconds, frozenset(self.earlier), self.first_message, right, self.first_retained))
        self.wall_offset += seconds

    def turn_ended(self) -> None:
        """Have the changes of the turn written; a turn without changes costs the store nothing."""
        if self.dirty and self.begin is not None:
            self.begin()

    # Answers and packets

    def answer(self, connection: Answerable, packet: bytes, otherwise: bytes | Otherwise = Otherwise.CLOSE) -> None:
        """Send *packet* when everything recorded so far is written; do *otherwise* if that fails."""
        session = connection.session
        if self.dirty:
            self.open.answers.append((connection, packet, otherwise))
        elif session is not None:
            session.outbox.append(packet)

    def send(self, connection: Answerable, packet: bytes) -> None:
        """Send *packet*, which depends on what was just recorded, when that is written."""
        self.dirty = True
        self.open.packets[connection, packet] = None

    def follow(self, number: int, connection: Answerable, packet: bytes) -> None:
        """Send *packet*, which need not be stored, behind those that wait for batch *number*, which is not written."""
        batch = self.open if self.writing is None or number == self.number else self.writing
        batch.packets[connection, packet] = None

    def resume(self, connection: Answerable) -> None:
        """Let the session retransmit unacknowledged messages when everything recorded so far is written."""
        self.open.resumed.append(connection)

    # Publishers that send more than can be written

    @property
    def crowded(self) -> bool:
        """Whether publishers should be held; not while writing fails: their messages are refused then."""
        return not self.failed and len(self.open.answers) + len(self.open.retained) >= MOST_WAITING

    def hold(self, publisher: Publisher, _now: float) -> bool:
        """Remember that *publisher* is not read until the batch being written is done."""
        if len(self._held) >= self._sweep_at:  # A long hold sees reconnects: drop publishers that have disconnected.
            self._held = [each for each in self._held if not each.closed]
            self._sweep_at = max(_FEW_HELD, 2 * len(self._held))
        self._held.append(publisher)
        return True

    def give_up(self) -> None:
        """Take note that a second has passed. Ignored: nothing can be accepted, however long the disk takes."""

    def _release_held(self) -> None:
        held, self._held = self._held, []
        for publisher in held:
            publisher.release()

    # Sessions

    def new_session(self, client_id: str, owner: str) -> int:
        """Return the row number for a new persistent session."""
        if self.lapsed and (row := self.lapsed.pop((client_id, owner), 0)):
            self._remove_lapsed(row)  # The store has one session of a client identifier and owner.
        self._last_session += 1
        return self._last_session

    def remove_lapsed(self) -> None:
        """Record that some of `lapsed` are removed."""
        for _ in range(min(len(self.lapsed), LAPSED_AT_ONCE)):
            self._remove_lapsed(self.lapsed.popitem()[1])

    def _remove_lapsed(self, row: int) -> None:
        self.dirty = True
        self.earlier.discard(row)
        self.open.sessions[row] = None

    def save_session(self, row: int, values: Row) -> None:
        """Record the state of a session."""
        self.dirty = True
        self.earlier.discard(row)
        self.brief.discard(row)
        self.open.sessions[row] = values

    def remove_session(self, row: int) -> bool:
        """Record that a session has ended; its subscriptions are removed with it. Its deliveries are to be, too.

        Returns whether anything of it could come back after a crash.
        """
        self.dirty = True
        self.earlier.discard(row)
        self.brief.discard(row)
        self.open.forget(row)
        if row > self._taken_session:
            return self.open.strike(self.open.sessions, row)
        self.open.sessions[row] = None
        return True

    def ended(self, name: str, *, unfinished: bool) -> None:
        """Take note that what was just recorded ends the session *name*, which outlived its connection.

        *unfinished*: with an exchange at QoS 2.
        """
        self.open.ended[name] = unfinished or self.open.ended.get(name, False)

    def unwritten_end(self, name: str) -> bool | None:
        """Return whether a session *name*, whose end is not written yet, left an exchange unfinished; None: no such."""
        found = [batch.ended[name] for batch in (self.open, self.writing) if batch is not None and name in batch.ended]
        return any(found) if found else None

    def when_ended(self, name: str, call: Callable[[float], None]) -> None:
        """Call *call*, with the time, when the end of session *name* is written, or could not be."""
        if name not in self.open.ended and self.writing is not None:
            self.writing.watchers.append(call)
        else:
            self.open.watchers.append(call)
            self.dirty = True

    def when_written(self, call: Callable[[float], None]) -> bool:
        """Call *call*, with the time, when all recorded so far is written, or could not be; False: it is."""
        batch = self.open if self.open.changes else self.writing
        if batch is not None:
            batch.watchers.append(call)
        return batch is not None

    def subscribe(self, row: int, topic_filter: str, values: Row) -> None:
        """Record a subscription of whose retained messages none has been sent, or all have."""
        self.dirty = True
        self.open.replayed.pop((row, topic_filter), None)
        self.open.subscriptions[row, topic_filter] = values

    def unsubscribe(self, row: int, topic_filter: str) -> None:
        """Record that a subscription was removed."""
        self.dirty = True
        self.open.replayed.pop((row, topic_filter), None)
        self.open.subscriptions[row, topic_filter] = None

    def replays(self, row: int, topic_filter: str, values: Row) -> None:
        """Record that some of a subscription's retained messages have been sent, and more will be."""
        self.dirty = True
        self.open.subscriptions[row, topic_filter] = values

    def replayed(self, row: int, topic_filter: str, number: int) -> None:
        """Record that the retained message *number* has been sent to a subscription: not to be sent again."""
        self.dirty = True
        self.open.replayed.setdefault((row, topic_filter), []).append(number)

    # Messages on their way out

    def restore(self, number: int, listed: int, left: int) -> None:
        """Take note of a dispatch that is in the store, of the places *listed* there, and those that are *left*."""
        self._outstanding.restore(number, listed, left)

    def add(self, row: int, stored: PersonalMessage) -> None:
        """Record that session *row* must receive *stored*, which is given its `sequence`."""
        self.dirty = True
        message = stored.message
        if message.row == 0:
            self._last_message += 1
            message.row = self._last_message
            self.open.messages[message.row] = self._message_row(message)
        message.references += 1
        self._outstanding.add(self.open, row, stored)

    def advance(self, stored: PersonalMessage, packet_id: int, *, released: bool) -> None:
        """Record the packet identifier of a QoS 2 delivery, and whether its PUBREC was received."""
        self.dirty = True
        stored.recorded = True
        self.open.progress[stored.sequence] = packet_id, released

    def sent(self, stored: PersonalMessage, packet_id: int) -> None:
        """Record the packet identifier of a QoS 1 delivery, which is being sent for the first time."""
        self.dirty = True
        stored.recorded = True
        self.open.sent[stored.sequence] = packet_id

    def remove(self, delivery: PersonalMessage | Released) -> None:
        """Record that *delivery* is over; what was never written need not be removed."""
        if self._outstanding.remove(self.open, delivery.sequence, recorded=delivery.recorded):
            self.dirty = True
        message = delivery.message
        if message is None:
            return
        message.references -= 1
        if message.references == 0:
            if self.open.messages.pop(message.row, None) is None:
                self.open.unreferenced.append((message.row,))
            message.row = 0

    def remove_unneeded(self, rows: list[int]) -> None:
        """Have the messages with these *rows* removed, which no delivery names."""
        self.dirty = True
        self.open.unreferenced.extend((row,) for row in rows)

    # Messages on their way in, and retained ones

    def owe(self, session: Outbox, packet_id: int, connection: Answerable) -> Again:
        """Record that QoS 1 message *packet_id* of *session* was sent again, on *connection*, while the store fails.

        Returns what was known of it: see `Owed`.
        """
        return self.owed.setdefault(session, Owed()).again(packet_id, connection)

    def use_anew(self, session: Outbox, packet_id: int) -> None:
        """Take note that *packet_id* now names another message of *session*."""
        if session in self.owed:
            self.owed[session].use_anew(packet_id)

    def incoming(self, row: int, packet_id: int, *, known: bool) -> None:
        """Record a packet identifier between PUBLISH and PUBREL, or that it is free again."""
        self.dirty = True
        self.open.incoming[row, packet_id] = known
        if not known:
            self.open.freed.add(row)

    def freed(self, row: int) -> bool:
        """Return whether a packet identifier of session *row* became free, and the store may not know it."""
        return row in self.open.freed or (self.writing is not None and row in self.writing.freed)

    def retain(
        self,
        topic_name: str,
        message: Message | None,
        publisher: str = "",
        number: int = 0,
        *,
        replaces: bool = True,
    ) -> None:
        """Record a topic's retained message, its publisher and *number*, or that it has none.

        *replaces*: the topic may have had one.
        """
        self.dirty = True
        row = None if message is None else (*self._message_row(message), publisher, number)
        writing, batch = self.writing, self.open
        new = not (replaces or topic_name in batch.retained or (writing is not None and topic_name in writing.retained))
        batch.retain(topic_name, row, new=new)

    # The store's side

    def take(self, *, probe: bool = False) -> Batch | None:
        """Return the batch to write next, or None if one is being written or there is nothing to write.

        To *probe* a store that has failed, there is always one.
        """
        if self.writing is not None or not (self.dirty or probe):
            return None
        self.writing, self.open = self.open, Batch()
        self.number += 1
        self._taken_session = self._last_session
        self.writing.drop_void()
        self._outstanding.taken(self.writing)
        self.writing.probe = probe
        return self.writing

    def written(self) -> set[Outbox]:
        """Release what waited for the batch, or for nothing any more; return the sessions to flush.

        Sessions that must retransmit are in `resuming` then.
        """
        batch, self.writing = self.writing, None
        self._release_held()
        self.owed.clear()
        touched: set[Outbox] = set()
        if batch is not None:
            self._stored_session = self._taken_session
            self.released = self.number - 1
            self._outstanding.written(batch)
            if batch.changes or batch.probe:  # Otherwise nothing was written: the store may still be failing.
                self.failed = False
            for connection, packet in batch.packets:
                session = connection.session
                if session is not None:
                    session.outbox.append(packet)
                    touched.add(session)
            _release(batch.answers, touched)
            self.resuming.extend(batch.resumed)
            self.watching.extend(batch.watchers)
        batch = self.open
        if not batch.holds_answers:  # They waited only to keep the order.
            _release(batch.answers, touched)
            batch.answers.clear()
            self.dirty = batch.changes or bool(batch.watchers)  # They wait, even if for nothing any more.
        return touched

    def has_waiting(self) -> bool:
        """Whether any who waited for a batch have yet to be let on: `resuming`, `watching`."""
        return bool(self.resuming or self.watching)

    def resume_some(self, now: float) -> list[Outbox]:
        """Let some of `resuming` retransmit, a portion of packets in total; return the sessions to flush."""
        touched: list[Outbox] = []
        packets = 0
        while self.resuming and packets < _PORTION:
            session = self.resuming.popleft().session
            if session is not None:  # Otherwise the connection has ended; a newer one comes later in the queue.
                before = len(session.outbox)
                session.send_again(now)
                packets += 1 + len(session.outbox) - before
                touched.append(session)
        return touched

    def not_written(self, now: float) -> set[Outbox]:
        """Merge the batch into the open one, to be retried; return the sessions to flush."""
        self.failed = True
        self._release_held()
        batch = self.writing
        if batch is not None:
            begun = [row for row, values in batch.sessions.items() if values is not None and row > self._stored_session]
            batch.tried = frozenset([*begun, *batch.new_topics])
            void = [row for row, values in self.open.sessions.items() if values is None and row > self._stored_session]
            batch.take_in(self.open)
            for row in void:
                del batch.sessions[row]
            batch.drop_unneeded()
            batch.probe = False
            self.open, self.writing, self._taken_session = batch, None, self._stored_session
        watchers, self.open.watchers = self.open.watchers, []
        self.watching.extend(watchers)
        touched: set[Outbox] = set()
        # Closing a connection may record more: it comes after what is here.
        answers, self.open.answers = self.open.answers, []
        waiting: list[tuple[Answerable, bytes, bytes | Otherwise]] = []
        for connection, packet, otherwise in answers:
            session = connection.session
            if session is None:
                continue
            if otherwise is Otherwise.WAIT:
                waiting.append((connection, packet, otherwise))
            elif otherwise is Otherwise.CLOSE:
                session.unanswered(now)
            else:
                session.outbox.append(otherwise)
                touched.add(session)
        self.open.answers[:0] = waiting
        return touched

    def _message_row(self, message: Message) -> Row:
        expires_at = None if message.expires_at is None else message.expires_at + self.wall_offset
        return (message.topic, message.payload, message.qos, message.retain, message.properties, expires_at)


def _release(answers: list[tuple[Answerable, bytes, bytes | Otherwise]], touched: set[Outbox]) -> None:
    for connection, packet, _ in answers:
        session = connection.session
        if session is not None:
            session.outbox.append(packet)
            touched.add(session)
