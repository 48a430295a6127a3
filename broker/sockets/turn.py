"""One turn of the event loop: everything that was read is answered with one write per connection.

Theory
------
What a read produces (messages for subscribers, acknowledgements for the publisher) is appended to the *outbox* of each
session concerned, and the session, or the route that leads to many sessions, is marked as touched. When all sockets
that were ready in this turn have been read, `end` flushes every touched outbox once. A thousand messages to one
subscriber cost one system call and one series of TLS records, not a thousand.

Messages to very many subscribers are written in rounds instead, with turns in between (`broker.sockets.rounds`). And
what a client asks for beyond a portion waits here (`portion`).

Hot: `routes.add` and `request` run once per read or message. Budget: part of that of `broker.connection.connection`,
measured with it by benchmarks/receive_loop.py. Slow twin: each recipient's session marked by itself;
tests/properties/test_fast_path_properties.py requires the same writes from both.

Rules
-----
1. Between two turns every outbox is empty, except those that `rounds` still has to write.
2. No I/O and no clock here: the loop's ``call_soon`` is passed in, and a session writes through its connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from broker.sockets.rounds import VERY_MANY, Flushable, Rounds
from broker.sockets.work import PORTION, Work

ALLOWANCE: Final = 512
"""Reads of one turn, beyond one per connection, that all connections share: some milliseconds of work.

A read counts once, and once more for each KB: a full one can hold five hundred messages.
"""
_MOST_WORK: Final = 4 * PORTION
"""Work of one turn for all clients together (`broker.sockets.work`), beyond the first packet of each read."""
_LEAST_SHARE: Final = 8
"""Work of one of them in a round in which very many go on: waiting costs as much as a tenth of a packet."""


class Touched(Protocol):
    """A route: it leads to the sessions to which a message was appended."""

    @property
    def few(self) -> tuple[Flushable, ...]:
        """The sessions to flush; empty if there are so many that `rounds` does it."""


class Turn:
    """What has been touched since the last flush."""

    __slots__ = (
        "_call_soon",
        "_portions",
        "_requested",
        "_serves",
        "after",
        "allowance",
        "most_work",
        "rounds",
        "routes",
        "sessions",
        "work",
    )

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._requested = False
        self.work = Work()
        """The work done so far for all clients that costs more than its bytes."""
        self.most_work = _MOST_WORK
        """Up to which count of that clients get more than their next packet handled in this turn."""
        self._portions: deque[Callable[[], None]] = deque()
        """What waits to be gone on with, in turn."""
        self._serves = False
        self.allowance = ALLOWANCE
        """How many more reads, of less than a KB, all connections together may make in this turn, beyond one each."""
        self.after: Callable[[], None] | None = None
        """Called when everything is flushed: the store begins to write the changes of the turn."""
        self.rounds = Rounds(call_soon)
        """Writes to very many subscribers, a part at a time."""
        self.routes: set[Touched] = set()
        self.sessions: set[Flushable] = set()

    def begin(self) -> None:
        """Say that the caller will call `end` itself: until then `request` does nothing."""
        self._requested = True
        self.most_work = self.work.done + _MOST_WORK

    @property
    def is_spent(self) -> bool:
        """Whether so much was done in this turn for all clients together that what costs much waits for its portion."""
        return self.work.done >= self.most_work

    def request(self) -> None:
        """Ask for `end` to be called when the reads of this turn are done."""
        if not self._requested:
            self._requested = True
            self._call_soon(self.end)

    def later(self, call: Callable[[], None]) -> None:
        """Call *call* after one round of the event loop, when all others have been served."""
        self._call_soon(call)

    def portion(self, call: Callable[[], None]) -> None:
        """Call *call* when it is its turn: in each round of the event loop as many as do a portion of work together.

        So however many clients ask for much, a round takes no longer; and if they are many, each gets less of it, so
        that one who asks for little more than others does not wait for all that they ask for.
        """
        self._portions.append(call)
        self._go_on_soon()

    def _go_on_soon(self) -> None:
        if self._portions and not self._serves:
            self._serves = True
            self._call_soon(self._go_on)

    def _go_on(self) -> None:
        self._serves = False
        waiting = len(self._portions)
        share, most = max(_LEAST_SHARE, PORTION // max(1, waiting)), self.work.done + PORTION
        try:
            for _ in range(waiting):  # Who waits again is behind all others.
                self.most_work = self.work.done + share
                self._portions.popleft()()
                if self.work.done >= most:
                    break
        finally:
            self._go_on_soon()

    def end(self) -> None:
        """Flush every session that was touched."""
        self._requested = False
        self.allowance = ALLOWANCE
        if len(self.routes) == 1:  # A fleet's messages lead to the same few: avoids a new set for the next turn.
            for subscriber in self.routes.pop().few:
                subscriber.flush()
        elif self.routes:
            self._flush_routes()
        if self.sessions:
            if len(self.sessions) == 1:  # A single client: as above.
                self.sessions.pop().flush()
            else:
                sessions, self.sessions = self.sessions, set()
                if len(sessions) > VERY_MANY:  # A batch was written for which very many were waiting.
                    self.rounds.answer(sessions)
                    sessions.clear()
                for session in sessions:
                    session.flush()
        if self.after is not None:
            self.after()

    def _flush_routes(self) -> None:
        routes, self.routes = self.routes, set()
        for route in routes:
            for subscriber in route.few:
                subscriber.flush()
