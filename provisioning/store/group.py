"""One transaction that many works share, from BEGIN to COMMIT, and what each of them is told.

Theory
------
::

    begin ─ lock ─ SAVEPOINT ─ work ─ RELEASE ─ SAVEPOINT ─ work ✗ ROLLBACK TO ─ … ─ commit ─► settle: everybody hears

Rules
-----
1. Nobody hears anything before the transaction has ended.
2. A work that fails undoes its own changes and nobody else's. If the transaction as a whole fails, everybody in it is
   refused, and nothing of it is in the store.
3. A store that cannot be used is `Refused` with UNAVAILABLE, here and nowhere else. The reason goes to the log: it
   names hosts and users, which are nobody's business outside.

Each step may be in another thread than the one before, but one at a time: `provisioning.store.lanes` sees to that.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, InternalError, OperationalError

from provisioning.errors import Code, Refused
from provisioning.store import audit

log = structlog.get_logger(__name__)

_WRITERS: Final = 0x666C656574  # "fleet"; any number that nobody else uses.
_PATIENCE_MILLISECONDS: Final = 10_000  # Only another process, such as a backup, can hold SQLite's lock.


@dataclass(frozen=True, slots=True)
class Job:
    """A work and who waits for it; *short*: it computes, reads and writes a few rows, and waits for nobody."""

    work: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    short: bool = False


@dataclass(frozen=True, slots=True)
class _Outcome:
    result: Any = None
    failure: Exception | None = None


class Group:
    """A transaction, and the jobs that it runs."""

    def __init__(self, engine: Engine, closes_at: float) -> None:
        """*closes_at*, of the monotonic clock, is when no more jobs should be added."""
        self.closes_at: Final = closes_at
        self.begun = False
        self.failed = False
        """Of the transaction as a whole; nothing can be run in it any more."""
        self._engine = engine
        self._stack = contextlib.ExitStack()
        self._connection: Connection | None = None
        self._jobs: Final[list[Job]] = []
        self._outcomes: Final[list[_Outcome]] = []
        self._failure = _Outcome()

    def begin(self) -> None:
        """Wait for the lock of all writers and begin; if that fails, `run` tells it."""
        self.begun = True
        try:
            self._open(_PATIENCE_MILLISECONDS)
        except Exception as error:  # noqa: BLE001 - of the transaction as a whole: it is told to everybody in it
            self._fail(error)

    def begin_at_once(self) -> bool:
        """Begin if that needs no waiting, and return whether it has; SQLite only."""
        try:
            self._open(0)
        except DBAPIError:
            self._stack.close()
            return False
        self.begun = True
        return True

    def run(self, job: Job) -> None:
        """Run one job; if the transaction is lost by that, or was before, it will hear so."""
        self._jobs.append(job)
        if self.failed or self._connection is None:
            return
        try:
            self._outcomes.append(_attempt(self._connection, job.work))
        except Exception as error:  # noqa: BLE001 - the same
            self._fail(error)

    def commit(self) -> float:
        """Commit, unless the transaction is lost; return how many seconds that took."""
        begun = time.monotonic()
        if not self.failed:
            try:
                self._stack.close()
            except Exception as error:  # noqa: BLE001 - the same
                self._fail(error)
        return time.monotonic() - begun

    def settle(self) -> None:
        """Tell everybody; on their event loop, after `commit`."""
        for place, job in enumerate(self._jobs):
            outcome = self._outcomes[place] if place < len(self._outcomes) else self._failure
            if self.failed and outcome.failure is None:
                outcome = self._failure
            if outcome.failure is not None:
                job.future.set_exception(outcome.failure)
            else:
                job.future.set_result(outcome.result)

    def _open(self, patience: int) -> None:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._engine.connect())
            if connection.dialect.name == "sqlite":
                driver: Any = connection.connection.driver_connection
                driver.execute(f"PRAGMA busy_timeout = {patience}")
            stack.enter_context(connection.begin())
            _lock_out_others(connection)
            stack.enter_context(audit.one_end(connection))
            self._connection, self._stack = connection, stack.pop_all()

    def _fail(self, error: Exception) -> None:
        self.failed = True
        self._failure = _Outcome(failure=explained(error))
        with contextlib.suppress(Exception):  # It is lost anyway; the first error is the one to tell.
            self._stack.__exit__(type(error), error, error.__traceback__)


def _attempt(connection: Connection, work: Callable[[Connection], Any]) -> _Outcome:
    # The driver's own connection: SQLAlchemy's savepoints cost a tenth of an enrolment.
    driver: Any = connection.connection.driver_connection
    driver.execute("SAVEPOINT work")
    end = audit.end_of(connection)
    try:
        result = work(connection)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's: he gets it
        try:
            driver.execute("ROLLBACK TO work")
            audit.take_back(connection, end)
        except connection.dialect.loaded_dbapi.Error as lost:
            # A full disk, of which SQLite has undone everything already, or a server that is gone: everybody is told.
            raise error if isinstance(error, DBAPIError) else OperationalError("ROLLBACK TO", None, lost) from None
        return _Outcome(failure=explained(error))
    driver.execute("RELEASE work")
    return _Outcome(result)


def _lock_out_others(connection: Connection) -> None:
    """Wait until no other process writes, and let none begin until the transaction ends; SQLite's BEGIN has done it."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def explained(error: Exception) -> Exception:
    """Return what the caller is told: that the store cannot be used now or takes no such value, or the error itself."""
    if not isinstance(error, DBAPIError):
        return error
    if isinstance(error, DataError):  # PostgreSQL has no text with a NUL in it, and numbers have an end.
        unfit = Refused(Code.INVALID_REQUEST, "a field holds a character or a number that cannot be stored")
        unfit.__cause__ = error
        return unfit
    # InternalError: PostgreSQL's word for a server that has become a read-only replica.
    if isinstance(error, OperationalError | InternalError) or error.connection_invalidated:
        log.warning("store cannot be used", error=" ".join(str(error.orig).split()))
        refusal = Refused(Code.UNAVAILABLE, "the store cannot be used now; try again")
        refusal.__cause__ = error
        return refusal
    return error
