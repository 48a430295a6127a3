"""Very many outboxes are written in rounds, with a turn for all other clients between two.

Theory
------
Writing one message to one subscriber takes some 15 µs, most of it TLS and the kernel. The end of a turn therefore
writes to at most a few hundred; ten thousand would take 150 ms in which no other client is served, and so would the
answers of a batch that ten thousand clients waited for. Those are written here, some at a time. Meanwhile their
messages stay in their outboxes, and later ones are appended there, so order is kept.

Large numbers are cheap because messages share a write per subscriber, as they do within a turn. So while every turn
adds more, writing is postponed; what accumulates before and during the writing forms one cycle. The bytes appended in
one cycle are bounded: beyond `ROOM`, publishers to very many subscribers wait until everything is written.

Rules
-----
1. Answers go first: they are one packet each, and a client waits for each.
2. A round is a fixed amount of work: each written outbox counts, and so do its bytes; an empty one hardly counts.
3. No I/O and no clock here, as in `broker.sockets.turn`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Final, Protocol

VERY_MANY: Final = 512
"""How many subscribers the end of a turn still writes to at once: some 7 ms."""
ROOM: Final = 16 * 1024 * 1024
"""Bytes appended and not yet written, to all subscribers together, beyond which publishers to very many wait."""
PLACE: Final = 8
"""Bytes that a packet shared with others takes in an outbox."""
PACKET: Final = 48
"""Bytes that a packet of one subscriber alone takes, besides its content."""
_PATIENCE: Final = 8
"""Turns for which writing is postponed while each adds more."""
_ROUND: Final = 4096
_WRITE: Final = 16
"""What a written outbox counts in a round, besides its kilobytes; an empty one counts 1."""


class Flushable(Protocol):
    """A session with an outbox."""

    outbox: list[bytes]

    def flush(self) -> None:
        """Write out the outbox and leave it empty."""


class Wide(Protocol):
    """A route to very many subscribers."""

    @property
    def subscribers(self) -> tuple[Flushable, ...]:
        """The sessions to flush."""


class Rounds:
    """The outboxes still to be written."""

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
        """Whether anything was added since the last round."""
        self._patience = _PATIENCE
        self._answers: set[Flushable] = set()
        self._queue: dict[Wide, None] = {}
        """Routes whose turn has not come, in the order in which they were touched."""
        self._now: Iterator[Flushable] | None = None
        """The remaining subscribers of the route being written."""
        self._unwritten = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self.full = False
        """Whether messages to very many subscribers must wait until all is written, see `wait`."""

    def add(self, route: Wide, size: int) -> None:
        """Schedule the subscribers of *route*; *size* bytes in total are appended to their outboxes before then."""
        self._queue[route] = None
        self._unwritten += size
        self.full = self.full or self._unwritten >= ROOM
        self._more = True
        self._request()

    def answer(self, sessions: Collection[Flushable]) -> None:
        """Schedule *sessions* before all others."""
        self._answers.update(sessions)
        self._request()

    def wait(self, call: Callable[[], None]) -> None:
        """Call *call* when there is room again; waiting calls are made one per turn."""
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
        """Begin with the next route, if there is one; return whether a route is being written."""
        if self._now is None and self._queue:
            route = next(iter(self._queue))
            del self._queue[route]  # If touched from now on, it is written once more.
            self._now = iter(route.subscribers)
        return self._now is not None

    def _write(self, left: int) -> int:
        """Write some outboxes of the current route; return what is left of the round."""
        for subscriber in self._now or ():
            left -= 1
            if subscriber.outbox:
                left -= _WRITE + (sum(map(len, subscriber.outbox)) >> 10)
            subscriber.flush()
            if left <= 0:
                return left
        self._now = None
        return left
