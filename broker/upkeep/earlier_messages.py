"""Messages of an earlier process expire by the wall clock as it is, also after it was set.

Theory
------
What this process has seen ends after so many seconds, whatever the clock. Messages of an earlier process end at a time:
a machine without a clock of its own starts with one that is behind, and sets it later. They are moved then: there may
be a million of them, so a portion at a time; the journal converts times by the clock before until all are done.

Rules
-----
1. No I/O and no clock here.
2. Each message is moved once for each time that the clock is set, however many sessions wait for it. Meanwhile one may
   be stored anew, for a session to which a retained one is sent. Its row is right if it was not moved by then
   (`broker.store.batch.Moved.kept`); else the store moves it, as all that this process has stored.
3. What a session has is moved, also if it has ended and still gives that to others (`broker.engine.handover`).
4. One that is retained no more, and for which a session waits that has it from this process, counts as seen by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from broker.engine.engine import Engine
from broker.mqtt.message import Message, PersonalMessage
from broker.session.session import Session
from broker.store.journal import Journal

_PORTION: Final = 4096
"""Looks at a retained message, or a session, in one round of the event loop: some milliseconds."""


class EarlierMessages:
    """Moves them when the clock is set."""

    def __init__(
        self, engine: Engine, later: Callable[[Callable[[], None]], object], *, portion: int = _PORTION
    ) -> None:
        """Move those of *engine*; *later* calls what it is given after one round of the event loop."""
        self._engine = engine
        self._later = later
        self._portion = portion
        self._ahead = 0.0
        """By how many seconds the clock was set ahead since what is under way began."""
        self._walk: Iterator[None] | None = None

    def clock_set(self, ahead: float) -> None:
        """Take note that the clock was set ahead by *ahead* seconds; begin, unless it is under way."""
        self._ahead += ahead
        if self._walk is None:
            self._go_on()

    def _go_on(self) -> None:
        if self._walk is None:
            self._walk = self._moved()
        if len(list(islice(self._walk, self._portion))) == self._portion:
            self._later(self._go_on)
        else:
            self._walk = None

    def _moved(self) -> Iterator[None]:
        """Move all, a step at a time, and have the store moved."""
        journal = self._engine.journal
        while journal is not None and self._ahead:
            ahead, self._ahead = self._ahead, 0.0
            kept: set[int] = set()
            yield from _move_retained(self._engine, journal, ahead, kept)
            if kept or journal.first_message:
                yield from _move_queued(self._engine, journal, ahead)
            journal.clock_set(ahead, kept)
            self._engine.turn.request()  # So that it is written.


def _move_retained(engine: Engine, journal: Journal, ahead: float, kept: set[int]) -> Iterator[None]:
    """Move the retained messages; add to *kept* the rows that they have as messages for sessions."""
    for message in engine.retained.expiring(journal.first_retained):
        if message is not None:
            _move(message, ahead)
            if message.row > journal.first_message:
                kept.add(message.row)
        yield


def _move_queued(engine: Engine, journal: Journal, ahead: float) -> Iterator[None]:
    """Move the messages that sessions wait for."""
    moved: set[int] = set()
    for session in [*engine.registry.all(), *engine.handovers.sessions]:
        session.look_for_expired()
        for message in _waiting(session):
            if 0 < message.row <= journal.first_message and message.row not in moved:
                moved.add(message.row)
                _move(message, ahead)
        yield


def _waiting(session: Session) -> Iterator[Message]:
    return (each.message for each in session.deliveries() if isinstance(each, PersonalMessage))


def _move(message: Message, ahead: float) -> None:
    if message.expires_at is not None:
        message.expires_at -= ahead
