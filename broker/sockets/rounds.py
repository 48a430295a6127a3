"""Very many outboxes are written in rounds, with a turn for everybody else between two.

Theory
------
To write one message to one subscriber takes some 15 µs, most of it TLS and the kernel. So the end of a turn writes what
went to a few hundred; a message to ten thousand would be 150 ms in which nobody else is served, and so would be the
answers of a batch that ten thousand waited for. Those are written here, so many at a time. Meanwhile their messages
stay in their outboxes, and whatever comes behind is appended there: the order stays as it was.

What makes the many cheap is that messages share a write a subscriber, as they do within a turn. So while more comes
turn by turn it is not begun at once; what has come by then, and comes meanwhile, is one cycle. What is appended in one
is bounded: beyond `ROOM` bytes whoever publishes to very many waits until all is written.

Rules
-----
1. Answers go first: they are one packet each, and somebody waits for them.
2. A round is so much of what is done: an outbox that is written counts, and so do its bytes; an empty one hardly.
3. No I/O and no clock here, as in `broker.sockets.turn`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Final, Protocol

VERY_MANY: Final = 512
"""Whom the end of a turn still writes to at once: some 7 ms."""
ROOM: Final = 16 * 1024 * 1024
"""Bytes that are appended and not written, to all of them together, beyond which publishers to very many wait."""
PLACE: Final = 8
"""Bytes that a packet takes in an outbox if others have the same."""
PACKET: Final = 48
"""What one takes of which each has his own, beside its bytes."""
_PATIENCE: Final = 8
"""Turns for which it is not begun while each brings more."""
_ROUND: Final = 4096
_WRITE: Final = 16
"""What an outbox that is written counts in a round, beside its kilobytes: one that is empty counts 1."""


class Flushable(Protocol):
    """A session with an outbox."""

    outbox: list[bytes]

    def flush(self) -> None:
        """Write out the outbox and leave it empty."""


class Wide(Protocol):
    """A route that leads to very many."""

    @property
    def subscribers(self) -> tuple[Flushable, ...]:
        """Whom to flush."""


class Rounds:
    """Whose outboxes are still to be written."""

    __slots__ = (
        "_answers",
        "_call_soon",
        "_more",
        "_now",
        "_patience",
        "_queue",
        "_requested",
        "_unwritten",
        "_waiting",
        "full",
    )

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._requested = False
        self._more = False
        """Whether something was added since the last round."""
        self._patience = _PATIENCE
        self._answers: set[Flushable] = set()
        self._queue: dict[Wide, None] = {}
        """Routes whose turn has not come, in the order in which they were touched."""
        self._now: Iterator[Flushable] | None = None
        """Who is still to be written to, of the route whose turn it is."""
        self._unwritten = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self.full = False
        """Whether a message to very many has to wait until all is written, see `wait`."""

    def add(self, route: Wide, size: int) -> None:
        """Write to the subscribers of *route*, to whom together *size* bytes are appended before the next round."""
        self._queue[route] = None
        self._unwritten += size
        self.full = self.full or self._unwritten >= ROOM
        self._more = True
        self._request()

    def answer(self, sessions: Collection[Flushable]) -> None:
        """Write to *sessions*, before all others."""
        self._answers.update(sessions)
        self._request()

    def wait(self, call: Callable[[], None]) -> None:
        """Call *call* when there is room again; those who wait are called one by one, a turn each."""
        self._waiting.append(call)
        self._request()

    def _request(self) -> None:
        if not self._requested:
            self._requested = True
            self._call_soon(self._round)

    def _round(self) -> None:
        self._requested = False
        left = _ROUND
        while self._answers and left > 0:
            self._answers.pop().flush()
            left -= _WRITE
        if self._more and self._now is None and self._patience > 0 and not self.full:
            self._patience -= 1
        else:
            while left > 0 and self._begin():
                left = self._write(left)
        self._more = False
        if self._now is None and not self._queue:
            self._unwritten, self._patience, self.full = 0, _PATIENCE, False
        if self._waiting and not self.full:
            self._waiting.popleft()()
        if self._answers or self._queue or self._waiting or self._now is not None:
            self._request()

    def _begin(self) -> bool:
        """Say whether there is a route whose turn it is."""
        if self._now is None and self._queue:
            route = next(iter(self._queue))
            del self._queue[route]  # If it is touched from now on, its turn comes once more.
            self._now = iter(route.subscribers)
        return self._now is not None

    def _write(self, left: int) -> int:
        """Write to some of whom it is the turn of; return what is left of the round."""
        for subscriber in self._now or ():
            left -= 1
            if subscriber.outbox:
                left -= _WRITE + (sum(map(len, subscriber.outbox)) >> 10)
            subscriber.flush()
            if left <= 0:
                return left
        self._now = None
        return left
