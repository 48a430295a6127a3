"""PostgreSQL's one writer, and the look-ups beside it; both on the event loop if works are short.

Theory
------
All works that wait when the writer is free share one transaction (`provisioning.store.postgresql_group`),
on the event loop if all are declared short (`provisioning.store.kept_lane`). One that is not runs in
the thread, with those that arrive meanwhile.

Rules
-----
1. A group is closed after `_ALONE_SECONDS`, or `_GROUP_SECONDS` if another process has recently held the lock, which
   may wait for it now; or after as long as its predecessor's commit took, if that was longer: later works are in the
   next one. So a slow disk has larger groups, and works get at least half of the time.
2. Works run in order of arrival; those that go side by side take turns. After one has waited in vain for another
   program's lock, works wait only briefly for a while (`provisioning.store.patience`).
3. A look has no transaction: each of its statements sees what is committed when it is executed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Final

from sqlalchemy import event
from sqlalchemy.engine import Engine

from provisioning.store.kept_connection import Stale
from provisioning.store.kept_lane import KeptLane
from provisioning.store.lanes import Job, Outcome, explained, is_locked
from provisioning.store.patience import Patience
from provisioning.store.postgresql_group import SharedTransaction, WaitedInVain, note_statement

_ALONE_SECONDS: Final = 0.03
_GROUP_SECONDS: Final = 0.01
_CROWDED_SECONDS: Final = 5.0
_LONGEST_GROUP_SECONDS: Final = 0.1
_LARGEST_COMPANY: Final = 64


class PostgresqlLooks(KeptLane):
    """Short look-ups, one after the other."""

    def _serve(self, pause: Callable[[], None], *, here: bool) -> Callable[[], None]:  # noqa: ARG002 - It is short.
        job, begun, connected = self._jobs[0], time.monotonic(), False
        try:
            with self._kept.asking() as connection:
                connected = True
                outcome = Outcome(job.work(connection))
        except Stale:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
            outcome = Outcome(failure=explained(error))
        self._jobs.popleft()
        in_vain = not connected or is_locked(outcome.failure)
        told = [job, *(self._waiting_since(begun) if in_vain else ())]

        def tell() -> None:
            for each in told:
                each.settle(outcome)

        return tell


class PostgresqlLane(KeptLane):
    """The writer: works that wait together are committed together."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine, name)
        event.listen(engine, "before_cursor_execute", note_statement)
        self._commit_seconds = 0.0
        self._crowded_until = 0.0
        self._patience: Final = Patience()
        self._begun: float | None = None

    def seconds_at_work(self) -> float:
        """Return how long the server has been executing the last request, for which all others wait."""
        begun = self._begun
        return 0.0 if begun is None else time.monotonic() - begun

    def _serve(self, pause: Callable[[], None], *, here: bool) -> Callable[[], None]:
        group = _Group(self._jobs, self._waiting_since, self._patience, here=here)
        self._begun = time.monotonic()
        try:
            with self._kept.transaction(pause) as transaction:
                group.run(transaction, time.monotonic() + self._seconds(alone=transaction.alone))
                done = time.monotonic()
            self._commit_seconds = time.monotonic() - done
        except Stale:
            raise
        except Exception as error:  # noqa: BLE001 - of the transaction as a whole: it is told to everybody in it
            group.fail(error)
        finally:
            self._begun = None
        return group.settle

    def _seconds(self, *, alone: bool) -> float:
        """Return how long a group that begins now may stay open; not *alone*: it had to wait for another process."""
        now = time.monotonic()
        if not alone:
            self._crowded_until = now + _CROWDED_SECONDS
        least = _ALONE_SECONDS if now >= self._crowded_until else _GROUP_SECONDS
        return max(least, min(self._commit_seconds, _LONGEST_GROUP_SECONDS))


class _Group:
    """The jobs of one transaction, taken from the queue while it runs, and their outcomes."""

    def __init__(
        self, queue: deque[Job], waiting_since: Callable[[float], list[Job]], patience: Patience, *, here: bool
    ) -> None:
        """Begin empty; *here*: on the event loop, where only short works may run."""
        self._queue = queue
        self._waiting_since = waiting_since
        self._patience = patience
        self._here = here
        self._begun = time.monotonic()
        self._jobs: Final[list[Job]] = []
        self._outcomes: list[Outcome] = []

    def run(self, transaction: SharedTransaction, closes_at: float) -> None:
        """Run the jobs that wait, and those that arrive until *closes_at*."""
        while True:
            self._outcomes += self._together(transaction, self._company())
            if not self._may_take() or time.monotonic() >= closes_at:
                return

    def _together(self, transaction: SharedTransaction, company: Sequence[Job]) -> list[Outcome]:
        """Run *company* side by side, and by itself whoever has to."""
        found: Sequence[Outcome | None] = [None] * len(company)
        begun = time.monotonic()
        wait = self._patience.wait(begun)
        if len(company) > 1:
            try:
                found = transaction.attempt_together([job.work for job in company], wait)
            except WaitedInVain:
                self._patience.waited_in_vain(begun, time.monotonic(), wait)
        return [
            self._alone(transaction, job) if each is None else each for job, each in zip(company, found, strict=True)
        ]

    def _alone(self, transaction: SharedTransaction, job: Job) -> Outcome:
        begun = time.monotonic()
        wait = self._patience.wait(begun)
        outcome = transaction.attempt(job.work, wait)
        if is_locked(outcome.failure):
            self._patience.waited_in_vain(begun, time.monotonic(), wait)
        return outcome

    def fail(self, error: Exception) -> None:
        """Mark the transaction as lost: every job that has not failed itself gets *error*."""
        failure, began = Outcome(failure=explained(error)), bool(self._jobs)
        if not began:
            self._jobs.append(self._queue.popleft())
        if not began or is_locked(failure.failure):
            self._jobs.extend(self._waiting_since(self._begun))
        told = [each if each.failure is not None else failure for each in self._outcomes]
        self._outcomes = told + [failure] * (len(self._jobs) - len(told))

    def settle(self) -> None:
        """Answer all callers; on their event loop."""
        for job, outcome in zip(self._jobs, self._outcomes, strict=True):
            job.settle(outcome)

    def _may_take(self) -> bool:
        return bool(self._queue) and (not self._here or self._queue[0].short)

    def _company(self) -> Sequence[Job]:
        """Take the next job, and those that may run side by side with it."""
        first = self._queue.popleft()
        self._jobs.append(first)
        taken = _decides_upon(first)
        if taken is None:
            return [first]
        company = [first]
        while len(company) < _LARGEST_COMPANY and self._may_take():
            more = _decides_upon(self._queue[0])
            if more is None or not taken.isdisjoint(more):
                break
            taken |= more
            company.append(self._queue.popleft())
        self._jobs.extend(company[1:])
        return company


def _decides_upon(job: Job) -> set[Hashable] | None:
    if job.apart is None:
        return None
    try:
        found = job.apart()
    except Exception:  # noqa: BLE001 - What is wrong with it the work itself will tell its caller.
        return None
    return None if found is None else set(found)
