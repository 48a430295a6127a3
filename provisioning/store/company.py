"""Combines the statements of transactions that wait together: one round trip for a company, not for each member.

Theory
------
On PostgreSQL a statement costs a round trip to the server, and then a wait for the GIL: the server itself needs a
fraction of that for an enrolment's fourteen statements. Works of the same kind from several callers make the same
queries, so they run side by side, each in a coroutine of its own (a greenlet: a work is plain code that is unaware of
it), and their queries are combined in one statement for all of them::

    work A ─ find token ┐                   ┌ add device ┐
    work B ─ find token ┼─ one statement ──►┼ add device ┼─ one statement ──► … ─ entries of the audit log ─ sign ─ …
    work C ─ find token ┘                   └ lock group ┘
                                                 C alone

Only one of them runs at a time, in one thread; they switch at their queries to the store.

Rules
-----
1. Each member declares what it depends on (`Job.apart`), and no two members of a company share any of it. So none can
   see or disturb what another is about to do; a work that shares something comes later.
2. If a work finds that it depends on something shared, such as a limit on a group's devices, it runs
   alone: `go_alone` before anything was changed.
3. The audit log's entries are written when no member asks for anything else. So a refusal comes before any member
   has signed, and nothing is signed before its entry is written.
4. If a member fails after a change, the whole company is rolled back (`BrokenUp`), and each work is done again
   by itself. A member that has signed does not run again: its serial number is spent.

Handles: works whose busiest statements are `Prepared`. Others run one by one, between those of the other members.
Does not handle: SQLite, where a statement is a call and not a round trip.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from greenlet import greenlet
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from provisioning.store.compiled import Values
from provisioning.store.prepared import Answer, Prepared
from provisioning.store.side_by_side import COMPANY

_Work = Callable[[Connection], Any]


class BrokenUp(Exception):
    """A member has failed after a change; its cause says how. Undo everything, and do each work by itself."""


@dataclass(frozen=True, slots=True)
class _Asked:
    prepared: Prepared
    rows: Sequence[Values]

    @property
    def kind(self) -> tuple[int, tuple[str, ...]]:
        """What may be combined in one statement: the same statement, with values of the same names."""
        return id(self.prepared), tuple(self.rows[0])


@dataclass(slots=True)
class Member:
    """One work, and how it ended."""

    work: _Work
    result: Any = None
    failure: Exception | None = None
    wrote: bool = False
    steps: int = 0
    asked: _Asked | None = None

    def live(self, connection: Connection) -> None:
        """Do the work."""
        try:
            self.result = self.work(connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
            self.failure = error


def _go_on() -> None:
    """Do not pause."""


class Company:
    """Leads works side by side on one connection, in its transaction."""

    def __init__(self, connection: Connection, works: Iterable[_Work], pause: Callable[[], None] = _go_on) -> None:
        """*pause* is called before each step of a member: other code may run then."""
        self._connection = connection
        self._pause = pause
        self._members: Final = [Member(work) for work in works]
        self._lives: Final = [greenlet(member.live) for member in self._members]
        self._now: Member | None = None
        self._leader: Final = greenlet.getcurrent()

    def run(self) -> list[Member]:
        """Return the members when all have ended; raise `BrokenUp`, or SQLAlchemy's error."""
        notes = self._connection.info
        notes[COMPANY] = self
        try:
            for place in range(len(self._members)):
                self._resume(place, self._connection)
            while waiting := [place for place, member in enumerate(self._members) if member.asked is not None]:
                self._answer(waiting)
        finally:
            notes.pop(COMPANY, None)
            self._end()
        return self._members

    def ask(self, prepared: Prepared, rows: Sequence[Values]) -> list[Answer]:
        """Let the running member wait for its answers, one for each of *rows*; called by `Prepared`."""
        answers: list[Answer] = self._leader.switch(_Asked(prepared, rows))
        return answers

    def about_to_execute(self, statement: str) -> None:
        """Note a statement that the running member executes by itself."""
        if self._now is not None and not statement.lstrip().startswith("SELECT"):
            self._now.wrote = True

    def _answer(self, waiting: Sequence[int]) -> None:
        """Execute the request of the member furthest behind, `comes_last` ones at the end, and all of its kind."""
        asked = [(place, asked) for place in waiting if (asked := self._members[place].asked) is not None]
        _, first = min(asked, key=lambda each: (each[1].prepared.comes_last, self._members[each[0]].steps))
        same = [(place, each) for place, each in asked if each.kind == first.kind]
        answers = iter(first.prepared.answers(self._connection, [row for _, each in same for row in each.rows]))
        for place, each in same:
            own = [next(answers) for _ in each.rows]
            member = self._members[place]
            member.wrote = member.wrote or (not first.prepared.reads and any(answer.count for answer in own))
            self._resume(place, own)

    def _resume(self, place: int, given: object) -> None:
        member, life = self._members[place], self._lives[place]
        self._pause()
        member.asked, self._now = None, member
        member.steps += 1
        asked = life.switch(given)
        self._now = None
        if not life.dead:
            member.asked = asked
        elif member.failure is not None and (member.wrote or isinstance(member.failure, DBAPIError)):
            raise BrokenUp from member.failure

    def _end(self) -> None:
        for life in self._lives:
            with contextlib.suppress(Exception):  # Its error no longer matters.
                if life and not life.dead:
                    life.throw()
