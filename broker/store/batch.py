"""What is written in one transaction, and what waits for it: answers, packets, sessions, clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, Final, Protocol

from broker.store.dispatch import PLACE_BITS, Dispatch

Row = tuple[Any, ...]

_EXPIRES_AT: Final = 5
"""The column in a message's row."""
_ENDED_AT: Final = 4
"""The column in a session's row."""


class Otherwise(Enum):
    """What happens to an answer whose batch cannot be written, if no other answer replaces it."""

    CLOSE = auto()
    WAIT = auto()


class Outbox(Protocol):
    """A session, as far as answers are concerned."""

    outbox: list[bytes]

    def flush(self) -> None:
        """Write out the outbox."""

    def unanswered(self, now: float) -> None:
        """Close the connection: the store has failed, and the client's protocol version cannot say so."""

    def send_again(self, now: float) -> None:
        """Retransmit what the client has not acknowledged: everything recorded about it is stored."""


class Answerable(Protocol):
    """A connection, as far as answers are concerned."""

    @property
    def session(self) -> Outbox | None:
        """Its session; None when it has ended."""


@dataclass(frozen=True, slots=True)
class Moved:
    """By how much the wall clock was set, and which stored rows have times of the clock before that."""

    seconds: float
    earlier: frozenset[int]
    """Rows of sessions that are excluded: they ended before this process began, by the clock of that time."""
    message: int
    """Messages with a higher number, …"""
    kept: Mapping[int, float]
    """… and by how much less these, retained by an earlier process and queued by this one."""
    retained: int
    """Retained messages with a higher number."""


@dataclass(slots=True)
class Batch:
    """Changes that are written in one transaction, by table; None stands for a removal."""

    moved: Moved | None = None
    """A shift of times already stored, before these changes are written, which have the present clock's times."""

    sessions: dict[int, Row | None] = field(default_factory=dict)
    subscriptions: dict[tuple[int, str], Row | None] = field(default_factory=dict)
    messages: dict[int, Row] = field(default_factory=dict)
    deliveries: dict[int, Dispatch] = field(default_factory=dict)
    done: list[tuple[int]] = field(default_factory=list)
    """Numbers of dispatches in the store to a single session, which is done."""
    remaining: dict[int, int] = field(default_factory=dict)
    """Numbers of those to several sessions to the places that are left, as bits; …"""
    thinned: set[int] = field(default_factory=set)
    """… for these they are so few that the row is written anew."""
    progress: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """Sequence to (packet identifier, released): the progress of a QoS 2 exchange."""
    sent: dict[int, int] = field(default_factory=dict)
    """The same of what was sent at QoS 1, to its packet identifier. Nobody waits for that."""
    finished: list[tuple[int]] = field(default_factory=list)
    """Sequences of deliveries that are over, and of which the store has either."""
    unreferenced: list[tuple[int]] = field(default_factory=list)
    incoming: dict[tuple[int, int], bool] = field(default_factory=dict)
    freed: set[int] = field(default_factory=set)
    """Rows of sessions of whose `incoming` some became free."""
    retained: dict[str, Row | None] = field(default_factory=dict)
    new_topics: set[str] = field(default_factory=set)
    """Topics in `retained` of which the store holds nothing: that such a one is cleared again need not be written."""
    replayed: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    """(session, topic filter) to the numbers of retained messages sent at QoS 2 while more are to come."""
    answers: list[tuple[Answerable, bytes, bytes | Otherwise]] = field(default_factory=list)
    """Connection, its answer, and the answer instead if the batch cannot be written."""
    packets: dict[tuple[Answerable, bytes], None] = field(default_factory=dict)
    """Connection and packet, in order; each once, however often a client asks for it."""
    resumed: list[Answerable] = field(default_factory=list)
    """Connections whose sessions retransmit unacknowledged messages as soon as this is written."""
    ended: dict[str, bool] = field(default_factory=dict)
    """Names of stored sessions that end with it; whether an exchange at QoS 2 was unfinished."""
    watchers: list[Callable[[float], None]] = field(default_factory=list)
    """Called when it is written, or could not be: answers for which no session is needed."""
    gone: set[int] = field(default_factory=set)
    """Rows of sessions that have ended, whose other changes are still here and void: see `drop_void`."""
    tried: frozenset[int | str] = field(default=frozenset(), compare=False)
    """Sessions and topics that the store has never held, and that were here when it could not be written: the log may
    hold them (`sqlite`, rule 4)."""
    struck: bool = False
    """Whether a retained message was struck that a crash may bring back: nobody is told before a write succeeds."""
    probe: bool = False
    """Whether it must be written even if empty, to find out whether the store can be written."""

    @property
    def changes(self) -> bool:
        """Whether there is anything to write."""
        over = self.remaining or self.done or self.finished or self.unreferenced
        return bool(self.promises or self.sessions or over or self.sent or self.replayed or self.moved)

    @property
    def promises(self) -> bool:
        """Whether it contains anything that an answer promises to be stored.

        No answer promises that a delivery is over, or was sent: it would be repeated. Nor, on its own, a session's row.
        """
        self.drop_void()
        return bool(
            self.deliveries or self.messages or self.progress or self.incoming or self.subscriptions or self.retained
        )

    @property
    def holds_answers(self) -> bool:
        """Whether its answers must wait until it is written."""
        return bool(self.promises or self.packets or self.resumed or self.struck)

    def take_in(self, later: Batch) -> None:
        """Add the changes made after this batch, which could not be written; drop what is obsolete by then."""
        later.drop_void()
        if later.moved is not None:
            self.move(later.moved)
        self.gone.update(row for row, values in later.sessions.items() if values is None)
        self.drop_void()
        self.sessions |= later.sessions
        for subscribed in later.subscriptions:
            self.replayed.pop(subscribed, None)
        self.subscriptions |= later.subscriptions
        for subscribed, numbers in later.replayed.items():
            self.replayed.setdefault(subscribed, []).extend(numbers)
        self.messages |= later.messages
        self._take_in_deliveries(later)
        for (number,) in later.unreferenced:
            if self.messages.pop(number, None) is None:
                self.unreferenced.append((number,))
        self.incoming |= later.incoming
        self.freed |= later.freed
        for topic_name, row in later.retained.items():
            self.retain(topic_name, row, new=topic_name in later.new_topics)
        self.answers += later.answers
        self.packets |= later.packets
        self.resumed += later.resumed
        self.ended |= {name: left or self.ended.get(name, False) for name, left in later.ended.items()}
        self.watchers += later.watchers

    def _take_in_deliveries(self, later: Batch) -> None:
        """Add those of *later*, and strike what is over by then; a dispatch of this batch knows what is left of it."""
        unwritten = self.deliveries
        self.progress |= later.progress
        self.sent |= later.sent
        for (sequence,) in later.finished:
            self.progress.pop(sequence, None)
            self.sent.pop(sequence, None)
            if sequence >> PLACE_BITS not in unwritten:
                self.finished.append((sequence,))
        for number, left in later.remaining.items():
            if number not in unwritten:
                self.remaining[number] = left
            elif not left:
                del unwritten[number]
        for (number,) in later.done:
            if unwritten.pop(number, None) is None:
                self.done.append((number,))
        unwritten |= later.deliveries

    def seal(self) -> None:
        """Take note that its dispatches are written as they are now, whatever becomes of them meanwhile."""
        for dispatch in self.deliveries.values():
            dispatch.listed = dispatch.left

    def retain(self, topic_name: str, row: Row | None, *, new: bool) -> None:
        """Record a topic's retained message, or that it has none; *new*: nothing older holds any of that topic."""
        if row is None and topic_name in self.new_topics:
            self.new_topics.remove(topic_name)
            self.struck = self.strike(self.retained, topic_name) or self.struck
            return
        if new:
            self.new_topics.add(topic_name)
        self.retained[topic_name] = row

    def strike(self, table: dict[Any, Any], key: int | str) -> bool:
        """Drop a row that the store has never held; return whether a crash may bring it back all the same."""
        table.pop(key, None)
        return key in self.tried

    def drop_unneeded(self) -> None:
        """Drop what need not be kept while the store fails, perhaps for days, in which clients come and go.

        Packets go with their connection. That a session has ended concerns the next client of its name only if an
        exchange was unfinished: it waits for nothing as long as the store fails, and then all here is written at once.
        """
        self.packets = {each: None for each in self.packets if each[0].session is not None}
        self.resumed = [each for each in self.resumed if each.session is not None]
        self.ended = {name: left for name, left in self.ended.items() if left}

    def move(self, moved: Moved) -> None:
        """Record that stored times are shifted, and shift those in this batch, which are by the clock before that."""
        before, self.moved = self.moved, moved
        if before is not None:
            kept = {row: before.kept.get(row, 0.0) + seconds for row, seconds in moved.kept.items()}
            self.moved = replace(before, seconds=before.seconds + moved.seconds, kept={**before.kept, **kept})
        for table, column in ((self.messages, _EXPIRES_AT), (self.retained, _EXPIRES_AT), (self.sessions, _ENDED_AT)):
            _add(table, column, moved.seconds, kept=moved.kept if table is self.messages else {})

    def forget(self, row: int) -> None:
        """Drop the changes of session *row*, which has ended: at the next look at what there is to write.

        A row is never used again. So many sessions that end in one turn cost one pass through the batch, not one each.
        """
        self.gone.add(row)

    def drop_void(self) -> None:
        """Drop the changes of the sessions that have ended; before anybody reads the tables."""
        gone = self.gone
        if not gone:
            return
        by_session: tuple[dict[Any, Any], ...] = (self.subscriptions, self.incoming, self.replayed)
        for table in by_session:
            for key in [key for key in table if key[0] in gone]:
                del table[key]
        gone.clear()


def _add(table: dict[Any, Any], column: int, seconds: float, *, kept: Mapping[int, float]) -> None:
    """Add *seconds* to the time in *column* of each row of *table* that has one, less what *kept* says."""
    for key, row in table.items():
        if row is not None and row[column] is not None:
            table[key] = (*row[:column], row[column] + seconds - kept.get(key, 0.0), *row[column + 1 :])
