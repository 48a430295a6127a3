"""One SQLite transaction that many works share, from BEGIN to COMMIT, and the outcome for each of them.

Theory
------
::

    begin ─ SAVEPOINT ─ work ─ RELEASE ─ SAVEPOINT ─ work ✗ ROLLBACK TO ─ … ─ close ─ commit ─► settle: all get answers

Rules
-----
1. No caller gets an outcome before the transaction has ended.
2. A work that fails undoes only its own changes. If the transaction as a whole fails, all works in it are
   refused, and nothing of it is in the store.

Each step may run in another thread than the one before, but only one at a time: `provisioning.store.sqlite_lane`
ensures it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from provisioning.store import audit
from provisioning.store.executor import executor_of, told
from provisioning.store.lanes import Job, Outcome, explained, is_locked
from provisioning.store.sqlite_writer import PATIENCE_MILLISECONDS, SqliteWriter


class SqliteGroup:
    """A transaction, and the jobs that it runs."""

    def __init__(self, writer: SqliteWriter, closes_at: float) -> None:
        """*closes_at* (monotonic clock) is when no more jobs should be added."""
        self.closes_at: Final = closes_at
        self.begun = False
        self.failed = False
        """Whether the transaction as a whole has failed; nothing can be run in it any more."""
        self._writer = writer
        self._log = contextlib.ExitStack()
        """The context that all entries of the audit log share."""
        self._connection: Connection | None = None
        self._begun_at = math.inf
        self._jobs: Final[list[Job]] = []
        self._outcomes: Final[list[Outcome]] = []
        self._failure = Outcome()

    @property
    def is_empty(self) -> bool:
        """Whether no job has been run in it."""
        return not self._jobs

    def begin(self) -> None:
        """Wait for SQLite's lock and begin; if that fails, `run` fails its jobs."""
        self.begun = True
        self._begun_at = time.monotonic()
        try:
            self._open(PATIENCE_MILLISECONDS)
        except Exception as error:  # noqa: BLE001 - of the transaction as a whole: it is told to everybody in it
            self._fail(error)

    def begin_at_once(self) -> bool:
        """Begin if that is possible without waiting, and return whether it was."""
        try:
            self._open(0)
        except DBAPIError:
            return False
        self.begun = True
        return True

    def run(self, job: Job) -> None:
        """Run one job; if the transaction is lost by that, or was before, the job fails with that error."""
        self._jobs.append(job)
        if self.failed or self._connection is None:
            return
        try:
            self._outcomes.append(_attempt(self._connection, job.work))
        except Exception as error:  # noqa: BLE001 - the same
            self._fail(error)

    @property
    def waited_in_vain_since(self) -> float | None:
        """When it began to wait for SQLite's lock, if it did not get it."""
        return self._begun_at if self.failed and is_locked(self._failure.failure) else None

    def close(self) -> None:
        """Take no more jobs, and write what they have in common: the end of the audit log."""
        if not self.failed:
            try:
                self._log.close()
            except Exception as error:  # noqa: BLE001 - the same
                self._fail(error)

    def commit(self) -> float:
        """Commit after `close`, unless the transaction is lost; return how many seconds that took."""
        begun = time.monotonic()
        if not self.failed:
            try:
                self._writer.commit()
            except Exception as error:  # noqa: BLE001 - the same
                self._fail(error)
        return time.monotonic() - begun

    def settle(self) -> None:
        """Answer all callers; on their event loop, after `commit`."""
        for place, job in enumerate(self._jobs):
            outcome = self._outcomes[place] if place < len(self._outcomes) else self._failure
            if self.failed and outcome.failure is None:
                outcome = self._failure
            job.settle(outcome)

    def _open(self, patience: int) -> None:
        self._connection = self._writer.begin(patience)
        self._log.enter_context(audit.one_end(self._connection))

    def _fail(self, error: Exception) -> None:
        self.failed = True
        self._failure = Outcome(failure=explained(error))
        with contextlib.suppress(Exception):  # It is lost anyway; the first error is the one to report.
            self._log.__exit__(type(error), error, error.__traceback__)
        with contextlib.suppress(Exception):
            self._writer.release()


def _attempt(connection: Connection, work: Callable[[Connection], Any]) -> Outcome:
    """Run one work in a savepoint; raise what SQLAlchemy raises if the whole transaction is lost."""
    # Not through SQLAlchemy, whose savepoints cost a tenth of an enrolment.
    executor = executor_of(connection)
    _say(connection, executor, "SAVEPOINT work")
    end = audit.end_of(connection)
    try:
        result = work(connection)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
        try:
            executor.execute("ROLLBACK TO work")
            audit.take_back(connection, end)
        except connection.dialect.loaded_dbapi.Error as lost:
            # A full disk, where SQLite has rolled everything back already: all callers are told.
            raise error if isinstance(error, DBAPIError) else OperationalError("ROLLBACK TO", None, lost) from None
        return Outcome(failure=explained(error))
    _say(connection, executor, "RELEASE work")
    return Outcome(result)


def _say(connection: Connection, executor: Any, text: str) -> None:
    try:
        executor.execute(text)
    except connection.dialect.loaded_dbapi.Error as error:
        raise told(connection, text, error) from error
