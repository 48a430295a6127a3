"""One turn of the event loop: everything that was read is answered with one write per connection.

Theory
------
What a read produces (messages for subscribers, acknowledgements for the publisher) is appended to the *outbox* of each
session concerned, and the session, or the route that leads to many sessions, is marked as touched. When all sockets
that were ready in this turn have been read, `end` flushes every touched outbox once. A thousand messages to one
subscriber cost one system call and one series of TLS records, not a thousand.

Messages to very many subscribers are written in rounds instead, with turns in between (`broker.sockets.rounds`).

Hot: `routes.add` and `request` run once per read or message. Budget and measurement: docs/performance.md.

Rules
-----
1. Between two turns every outbox is empty, except those that `rounds` still has to write.
2. No I/O and no clock here: the loop's ``call_soon`` is passed in, and a session writes through its connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from broker.sockets.rounds import VERY_MANY, Flushable, Rounds
from broker.sockets.work import Work

ALLOWANCE: Final = 512
"""Reads of one turn, beyond one per connection, that all connections share: some milliseconds of work.

A read counts once, and once more for each KB: a full one can hold five hundred messages.
"""


class Touched(Protocol):
    """A route: it leads to the sessions to which a message was appended."""

    @property
    def few(self) -> tuple[Flushable, ...]:
        """The sessions to flush; empty if there are so many that `rounds` does it."""


class Turn:
    """What has been touched since the last flush."""

    __slots__ = ("_call_soon", "_requested", "after", "allowance", "rounds", "routes", "sessions", "work")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._requested = False
        self.work = Work()
        """The work done so far for all clients that costs more than its bytes."""
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

    def request(self) -> None:
        """Ask for `end` to be called when the reads of this turn are done."""
        if not self._requested:
            self._requested = True
            self._call_soon(self.end)

    def later(self, call: Callable[[], None]) -> None:
        """Call *call* after one round of the event loop, when all others have been served."""
        self._call_soon(call)

    def end(self) -> None:
        """Flush every session that was touched."""
        self._requested = False
        self.allowance = ALLOWANCE
        if self.routes:
            routes, self.routes = self.routes, set()
            for route in routes:
                for subscriber in route.few:
                    subscriber.flush()
        if self.sessions:
            if len(self.sessions) == 1:  # A single client: avoids a new set for the next turn.
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
