"""What must be on disk, gathered turn by turn; and what may be said only when it is.

Theory
------
Decision D6: a QoS 1 or 2 message is acknowledged only when every persistent session that must get it has it on disk.
While a turn is handled, changes of persistent state are noted in the *open batch*, and the answers that depend on them
(PUBACK, PUBREC, PUBCOMP, SUBACK, UNSUBACK) are held back with it. The store writes one batch at a time; whatever
happens meanwhile goes into the next. So many messages share one fsync, and a message that its subscriber acknowledges
before its batch is written is never written at all.

Exactly once across a crash needs more: a PUBLISH at QoS 2 leaves only when its packet identifier is stored, and a
PUBREL only when it is stored that the PUBREC was received. Those packets are held back likewise.

Rules
-----
1. Answers leave in the order in which they were given [MQTT-4.6.0-2]: while anything is unwritten, all of them wait.
2. A batch that cannot be written becomes part of the open one, and is tried again. What was routed is never refused:
   its answer goes on waiting, until it is written, or until nothing that an answer promises is left in the batch,
   because every subscriber has acknowledged. An answer that is not about a message ends its connection. What comes
   while the store fails is refused before it is routed, so that no refused message is ever delivered (decision 0094).
3. What waits belongs to one *connection*: it is forgotten with it, and never comes out of the next one of the same
   session, whose client uses the packet identifiers anew.
4. What waits is bounded, however long a write takes: beyond `MOST_WAITING` answers and retained topics publishers are
   *held*, their packets are not read until the batch is written, or is known to have failed.
5. No I/O, no clock: `sqlite` writes, times are converted by an offset to the wall clock. When that is set, what this
   process has stored is moved with it: an hour is an hour, also for whoever reads it after a restart. What was stored
   before this process stays, as by the clock of then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from broker.mqtt.message import Message
from broker.store.batch import Answerable, Batch, Moved, Otherwise, Outbox, Row

MOST_WAITING = 65_536
"""Answers and retained topics of one batch from which on publishers are held: some megabytes."""
_PORTION: Final = 128
"""Packets that are sent again before others are served: more only of one session, up to its Receive Maximum."""
_FEW_HELD = 1024
"""Held publishers among whom nobody looks for those that have gone."""


class Publisher(Protocol):
    """A connection that is held."""

    closed: bool

    def release(self) -> None:
        """Read again from the client."""


class Stored(Protocol):
    """A delivery with its place in the session's order."""

    message: Message
    sequence: int
    exactly_once: bool
    retain: bool
    identifiers: bytes
    share: str


class Journal:
    """The open batch and the one that is being written."""

    __slots__ = (
        "_first_message",
        "_held",
        "_last_message",
        "_last_session",
        "_sweep_at",
        "begin",
        "dirty",
        "earlier",
        "failed",
        "first_retained",
        "open",
        "owed",
        "resuming",
        "wall_offset",
        "writing",
    )

    def __init__(self, wall_offset: float, *, last_session: int = 0, last_message: int = 0) -> None:
        """Start with the highest row numbers in use; *wall_offset* plus monotonic time is the wall clock."""
        self._first_message = last_message
        self.earlier: set[int] = set()
        """Rows of sessions that ended before this process began, and have not been noted since."""
        self.first_retained = 0
        """The highest number of a retained message that was there before."""
        self.open = Batch()
        self.writing: Batch | None = None
        self.begin: Callable[[], None] | None = None
        """Begins to write the open batch; None: whoever has the journal asks for it himself."""
        self.failed = False
        """Whether the last write failed: nothing durable is accepted until one succeeds."""
        self.dirty = False
        """Whether anything is unwritten, so that answers have to wait."""
        self.owed: dict[Outbox, set[int]] = {}
        """What came again at QoS 1 while the store fails, and is answered when all else is: not to be routed twice."""
        self.resuming: deque[Answerable] = deque()
        """Who may send again what was not acknowledged, a fleet perhaps that has come back: see `resume_some`."""
        self.wall_offset = wall_offset
        self._held: list[Publisher] = []
        self._sweep_at = _FEW_HELD
        self._last_session = last_session
        self._last_message = last_message

    def clock_set(self, seconds: float) -> None:
        """Take note that the wall clock was set ahead by so many *seconds*."""
        self.dirty = True
        self.open.move(Moved(seconds, frozenset(self.earlier), self._first_message, self.first_retained))
        self.wall_offset += seconds

    def turn_ended(self) -> None:
        """Have what the turn has changed written. Hot: a turn that changed nothing costs the store nothing."""
        if self.dirty and self.begin is not None:
            self.begin()

    # Answers and packets

    def answer(self, connection: Answerable, packet: bytes, otherwise: bytes | Otherwise = Otherwise.CLOSE) -> None:
        """Send *packet* when all that was noted so far is written; *otherwise* if that fails."""
        session = connection.session
        if self.dirty:
            self.open.answers.append((connection, packet, otherwise))
        elif session is not None:
            session.outbox.append(packet)

    def send(self, connection: Answerable, packet: bytes) -> None:
        """Send *packet*, which promises what was just noted, when that is written."""
        self.dirty = True
        self.open.packets.append((connection, packet))

    def resume(self, connection: Answerable) -> None:
        """Let the session send again what was not acknowledged when all that was noted so far is written."""
        self.open.resumed.append(connection)

    # Publishers that bring more than is written

    @property
    def crowded(self) -> bool:
        """Whether publishers should be held; not while writing fails: then what they bring is refused."""
        return not self.failed and len(self.open.answers) + len(self.open.retained) >= MOST_WAITING

    def hold(self, publisher: Publisher) -> None:
        """Remember that *publisher* is not read until the batch that is being written is out of the way."""
        if len(self._held) >= self._sweep_at:  # Whoever is held long goes and comes again: who has gone is let go of.
            self._held = [each for each in self._held if not each.closed]
            self._sweep_at = max(_FEW_HELD, 2 * len(self._held))
        self._held.append(publisher)

    def give_up(self) -> None:
        """Take note that a second has passed. Nothing can be taken meanwhile, however long the disk needs."""

    def _release_held(self) -> None:
        held, self._held = self._held, []
        for publisher in held:
            publisher.release()

    # Sessions

    def new_session(self) -> int:
        """Return the row number for a new persistent session."""
        self._last_session += 1
        return self._last_session

    def save_session(self, row: int, values: Row) -> None:
        """Note the state of a session."""
        self.dirty = True
        self.earlier.discard(row)
        self.open.sessions[row] = values

    def remove_session(self, row: int) -> None:
        """Note that a session has ended; its subscriptions and deliveries go with it."""
        self.dirty = True
        self.earlier.discard(row)
        self.open.forget(row)
        self.open.sessions[row] = None

    def subscribe(self, row: int, topic_filter: str, values: Row) -> None:
        """Note a subscription, of whose retained messages none has been sent, or all have."""
        self.dirty = True
        self.open.replayed.pop((row, topic_filter), None)
        self.open.subscriptions[row, topic_filter] = values

    def unsubscribe(self, row: int, topic_filter: str) -> None:
        """Note that a subscription is gone."""
        self.dirty = True
        self.open.replayed.pop((row, topic_filter), None)
        self.open.subscriptions[row, topic_filter] = None

    def replays(self, row: int, topic_filter: str, values: Row) -> None:
        """Note that some of a subscription's retained messages have been sent, and the rest will be."""
        self.dirty = True
        self.open.subscriptions[row, topic_filter] = values

    def replayed(self, row: int, topic_filter: str, number: int) -> None:
        """Note that the retained message *number* has been sent to a subscription: not to be sent again."""
        self.dirty = True
        self.open.replayed.setdefault((row, topic_filter), []).append(number)

    # Messages on their way out

    def add(self, row: int, stored: Stored) -> None:
        """Note that session *row* must get *stored*."""
        self.dirty = True
        message = stored.message
        if message.row == 0:
            self._last_message += 1
            message.row = self._last_message
            self.open.messages[message.row] = self._message_row(message)
        message.references += 1
        self.open.deliveries[row, stored.sequence] = (
            message.row,
            2 if stored.exactly_once else 1,
            stored.retain,
            stored.identifiers,
            stored.share,
        )

    def advance(self, row: int, sequence: int, packet_id: int, *, released: bool) -> None:
        """Note the packet identifier of a QoS 2 delivery, and whether its PUBREC was received."""
        self.dirty = True
        self.open.progress[row, sequence] = packet_id, released

    def remove(self, row: int, sequence: int, message: Message) -> None:
        """Note that a delivery is over; what was never written need not be removed."""
        batch = self.open
        key = row, sequence
        batch.progress.pop(key, None)
        if batch.deliveries.pop(key, None) is None:
            self.dirty = True
            batch.done.append(key)
        self.release(message)

    def release(self, message: Message) -> None:
        """Note that one delivery less needs *message*."""
        message.references -= 1
        if message.references == 0:
            if self.open.messages.pop(message.row, None) is None:
                self.open.unreferenced.append((message.row,))
            message.row = 0

    # Messages on their way in, and retained ones

    def owe(self, session: Outbox, packet_id: int) -> bool:
        """Note that the QoS 1 message *packet_id*, sent again while the store fails, waits; False if it did already.

        Whether it was routed before, nobody knows: it may come twice, but must not be refused.
        """
        known = self.owed.setdefault(session, set())
        if packet_id in known:
            return False
        known.add(packet_id)
        return True

    def use_anew(self, session: Outbox, packet_id: int) -> None:
        """Take note that *packet_id* names another message of *session* now."""
        if session in self.owed:
            self.owed[session].discard(packet_id)

    def incoming(self, row: int, packet_id: int, *, known: bool) -> None:
        """Note a packet identifier between PUBLISH and PUBREL, or that it is free again."""
        self.dirty = True
        self.open.incoming[row, packet_id] = known

    def retain(self, topic_name: str, message: Message | None, publisher: str = "", number: int = 0) -> None:
        """Note the retained message of a topic, who published it and its *number*, or that there is none."""
        self.dirty = True
        row = None if message is None else (*self._message_row(message), publisher, number)
        self.open.retained[topic_name] = row

    # The store's side

    def take(self, *, probe: bool = False) -> Batch | None:
        """Return the batch to write next, or None if one is being written or there is nothing left to write.

        To *probe* a store that has failed there always is one.
        """
        if self.writing is not None or not (self.dirty or probe):
            return None
        self.writing, self.open = self.open, Batch()
        self.writing.probe = probe
        return self.writing

    def written(self) -> set[Outbox]:
        """Release what waited for the batch, or for nothing any more; return whose outbox to flush.

        Who was to send again is in `resuming` then.
        """
        batch, self.writing = self.writing, None
        self._release_held()
        self.owed.clear()
        touched: set[Outbox] = set()
        if batch is not None:
            if batch.changes or batch.probe:  # Else nothing was written: whether it can be is not known.
                self.failed = False
            for connection, packet in batch.packets:
                session = connection.session
                if session is not None:
                    session.outbox.append(packet)
                    touched.add(session)
            _release(batch.answers, touched)
            self.resuming.extend(batch.resumed)
        batch = self.open
        if not batch.holds_answers:  # They waited only for their turn.
            _release(batch.answers, touched)
            batch.answers.clear()
            self.dirty = batch.changes
        return touched

    def resume_some(self, now: float) -> list[Outbox]:
        """Let some of `resuming` send again, a portion of packets in all; return whose outbox to flush."""
        touched: list[Outbox] = []
        packets = 0
        while self.resuming and packets < _PORTION:
            session = self.resuming.popleft().session
            if session is not None:  # Else the connection has ended; another one would be further behind.
                before = len(session.outbox)
                session.send_again(now)
                packets += 1 + len(session.outbox) - before
                touched.append(session)
        return touched

    def not_written(self, now: float) -> set[Outbox]:
        """Let the batch be open again, to be tried again; return whose outbox to flush."""
        self.failed = True
        self._release_held()
        batch = self.writing
        if batch is not None:
            batch.take_in(self.open)
            batch.probe = False
            self.open, self.writing = batch, None
        touched: set[Outbox] = set()
        # Closing a connection may note more: it is behind what stands here.
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
