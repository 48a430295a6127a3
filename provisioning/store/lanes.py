"""Threads that run transactions, and the queue in front of them.

Theory
------
The cost of a transaction is mostly its end: the fsync that makes it durable. So all works that wait when the writer is
free share one transaction, each in a savepoint of its own::

    BEGIN ─ SAVEPOINT ─ work ─ RELEASE ─ SAVEPOINT ─ work ✗ ROLLBACK TO ─ … ─ COMMIT ─► all are answered

No caller is answered before the commit, so what is answered is on disk. With one caller at a time nothing changes;
sixteen pay for one fsync. Each database has its own lane for that: `provisioning.store.sqlite_lane`,
`provisioning.store.postgresql_lane`. Works that only read have a transaction each (`PooledLane`).

Rules
-----
1. The queue is bounded; a cancelled caller waits for the end of its transaction and never continues beside it. Where
   all are cancelled, no connection is opened for them (`provisioning.store.still_wanted`).
2. A work that fails undoes only its own changes. If the transaction as a whole fails, all works in it are
   refused, and nothing of it is in the store.
3. Waits are bounded, however many wait. If a work has waited in vain for another program's lock, or for a connection,
   all that have waited as long are refused with it, or the next ones wait only briefly (`provisioning.store.patience`):
   they do not wait for the same thing one after the other.
4. A store that cannot be used is `Refused` with UNAVAILABLE, here and nowhere else, and so is an audit log that cannot
   be written, for whatever reason. The reason goes to the log only: it names hosts and users, which must not be
   disclosed.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DatabaseError, DataError, DBAPIError, InternalError, OperationalError

from provisioning.errors import Code, Refused
from provisioning.program.shielded import Lasting
from provisioning.quick_values import quickly_made
from provisioning.store import audit
from provisioning.store.outage import Outage
from provisioning.store.still_wanted import Unwanted, connecting_while

log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")
Apart = Callable[[], Collection[Hashable] | None]
"""Returns all that a work's decisions depend on, None if it cannot tell."""

_WAITING: Final = 4096
_outage: Final = Outage()
"""Of the process's store."""
_FORBIDDEN: Final = "42501"
_MENDABLE: Final = frozenset({_FORBIDDEN, "3F000", "42P01", "42703"})
"""PostgreSQL's errors for a missing privilege, on a table or on the schema, and for a missing table or column:
an operator can fix them. SQLite's for the last is an OperationalError."""

_MADE: Final = ("CREATE TABLE", "CREATE SCHEMA")
"""What may not be made has no owner yet. An index is its table's."""
_HIDING: Final = "check_enable_rls"
"""Where PostgreSQL raises the same error for row-level security."""
RIGHTS_REMEDY: Final = (
    "let the database's user own the tables, and so their sequences: as PostgreSQL's superuser, ALTER TABLE … OWNER TO "
    "for each of them"
)
"""Where the user of a database lacks a right, as after a restore or a logical replication as another user."""

_READ_ONLY: Final = "25006"
"""PostgreSQL's error for a change on a server that takes none."""

_LOCKED: Final = "55P03"
"""PostgreSQL's error for a lock that was not released within `lock_timeout`."""

_NO_ROOM: Final = "53100"
"""PostgreSQL's error where a file cannot grow: its volume is full."""


class Lane(ABC):
    """Runs transactions, each in some thread, in order of arrival."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting = 0

    async def run(
        self, work: Callable[[Connection], ResultT], apart: Apart | None = None, *, short: bool = False
    ) -> ResultT:
        """Return what *work* returns, once its transaction is committed; *short* as in `Database.write`.

        *apart* returns all that its decisions depend on: works that share nothing of it may run side by side with it.
        Without it, or if it returns None, *work* runs by itself.
        """
        if self._waiting >= _WAITING:
            raise Refused(Code.UNAVAILABLE, "too many requests wait for the store; try again")
        self._waiting += 1
        future = self._submit(work, apart, short=short)
        try:
            result = await future
        except Refused as refusal:
            if refusal.code is Code.UNAVAILABLE and isinstance(refusal.__cause__, DBAPIError):
                _outage.stops(self)
            raise
        except asyncio.CancelledError:
            future.exception()  # Retrieved, as no caller is left; the transaction has ended.
            raise
        else:
            if _outage.lasts:
                self._tell_end()
            return result
        finally:
            self._waiting -= 1

    def _tell_end(self) -> None:
        seconds = _outage.works(self, time.monotonic())
        if seconds is not None:
            log.info("store can be used again", code="STORE_BACK", seconds=round(seconds, 1))

    def seconds_at_work(self) -> float:
        """Return how long the transaction that all others wait for has been in progress; 0 if there is none."""
        return 0.0

    def renew(self) -> None:  # noqa: B027 - most lanes keep none
        """Use other connections from the next transaction on, also where one is kept; does nothing on SQLite."""

    @abstractmethod
    def stop(self) -> None:
        """Finish the queue, and let the threads end; nothing is submitted any more."""

    def dispose(self) -> None:
        """Close every connection that is not in use; one that is stays open."""
        self._engine.dispose()

    @abstractmethod
    def _submit(self, work: Callable[[Connection], ResultT], apart: Apart | None, *, short: bool) -> Lasting[ResultT]:
        """Queue *work*."""


class PooledLane(Lane):
    """Several threads, a transaction for each work: for works that only read."""

    def __init__(self, engine: Engine, threads: int, name: str) -> None:
        super().__init__(engine)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._vain_since = -math.inf
        """When the last work began that waited in vain for a lock or a connection."""

    def _submit(
        self,
        work: Callable[[Connection], ResultT],
        apart: Apart | None,  # noqa: ARG002 - Each has a transaction of its own.
        *,
        short: bool,  # noqa: ARG002 - The same.
    ) -> Lasting[ResultT]:
        loop = asyncio.get_running_loop()
        future: Lasting[ResultT] = Lasting(loop=loop)

        def tell(done: Future[ResultT]) -> None:
            if not loop.is_closed():  # Else nobody waits any more.
                loop.call_soon_threadsafe(_pass_on, done, future)

        self._executor.submit(self._transact, work, time.monotonic(), future).add_done_callback(tell)
        return future

    def stop(self) -> None:
        """Finish what waits."""
        self._executor.shutdown()

    def _transact(self, work: Callable[[Connection], ResultT], since: float, future: Lasting[ResultT]) -> ResultT:
        if since <= self._vain_since:
            raise unusable()
        begun, connected = time.monotonic(), False
        try:
            with connecting_while(lambda: not future.unwanted), self._engine.begin() as connection:
                connected = True
                return work(connection)
        except DBAPIError as error:
            failure = explained(error)
            if is_locked(failure) or not (connected or isinstance(error.orig, Unwanted)):
                self._vain_since = max(self._vain_since, begun)
            raise failure from error


class QueuedLane(Lane):
    """One writer, with a thread if it needs one; jobs that arrive meanwhile wait in order. `_begin` serves them."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine)
        self._jobs: Final[deque[Job]] = deque()
        self._busy = False
        self._idle: Final = threading.Event()
        self._idle.set()
        self._worker: Final = ThreadPoolExecutor(1, thread_name_prefix=name)

    @abstractmethod
    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve waiting jobs, at least one; at the end have *loop* call `_next`."""

    def _submit(self, work: Callable[[Connection], ResultT], apart: Apart | None, *, short: bool) -> Lasting[ResultT]:
        loop = asyncio.get_running_loop()
        future: Lasting[ResultT] = Lasting(loop=loop)
        self._jobs.append(Job(work, future, short, apart, time.monotonic()))
        if not self._busy:
            self._busy = True
            self._idle.clear()
            loop.call_soon(self._next, loop)  # So that other jobs that have arrived join it.
        return future

    def stop(self) -> None:
        """Finish what waits."""
        self._idle.wait()
        self._worker.shutdown()

    def _waiting_since(self, begun: float) -> list[Job]:
        """Take those from the queue who have been waiting since *begun*, when a work began that waited in vain."""
        taken = []
        while self._jobs and self._jobs[0].since <= begun:
            taken.append(self._jobs.popleft())
        return taken

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._jobs:
            self._begin(loop)
        else:
            self._busy = False
            self._idle.set()


def _pass_on(done: Future[ResultT], future: asyncio.Future[ResultT]) -> None:
    failure = done.exception()
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(done.result())


@quickly_made
@dataclass(frozen=True, slots=True)
class Outcome:
    """A work's result, or why it has none."""

    result: Any = None
    failure: Exception | None = None


@quickly_made
@dataclass(frozen=True, slots=True)
class Job:
    """A work that waits for a writer, and the caller that waits for it; see `Lane.run`."""

    work: Callable[[Connection], Any]
    future: Lasting[Any]
    short: bool = False
    apart: Apart | None = None
    since: float = math.inf
    """When it was queued, by the monotonic clock."""

    def settle(self, outcome: Outcome) -> None:
        """Give the caller the outcome; called on the caller's loop."""
        if outcome.failure is not None:
            self.future.set_exception(outcome.failure)
        else:
            self.future.set_result(outcome.result)


def is_read_only(refusal: Refused) -> bool:
    """Whether the store has refused a change because its server takes none: a standby, or one whose settings say so."""
    return _state(refusal) == _READ_ONLY


def is_forbidden(refusal: Refused) -> bool:
    """Whether the database's user lacks a right to what is there; where a policy hides rows, none helps."""
    if _state(refusal) != _FORBIDDEN or str(getattr(refusal.__cause__, "statement", "")).lstrip().startswith(_MADE):
        return False
    error = getattr(refusal.__cause__, "orig", None)
    return getattr(getattr(error, "diag", None), "source_function", None) != _HIDING


def is_locked(failure: BaseException | None) -> bool:
    """Whether a work has failed because it waited in vain for a lock that somebody else has."""
    if _state(failure) == _LOCKED:
        return True
    orig = getattr(getattr(failure, "__cause__", None), "orig", None)
    return getattr(orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def lacks_something(failure: BaseException) -> bool:
    """Whether it has failed for the lack of a lock or of room, which others may do without."""
    return is_locked(failure) or _state(failure) == _NO_ROOM


def lacks_the_log(failure: BaseException) -> bool:
    """Whether it has failed because the audit log cannot be written, which others may do without."""
    if isinstance(failure, audit.Unwritable):
        return True
    error = failure.__cause__
    return isinstance(error, DBAPIError) and not error.connection_invalidated and audit.concerns(error.statement)


def _state(failure: BaseException | None) -> str | None:
    """Return PostgreSQL's code for what `explained` has explained."""
    return getattr(getattr(getattr(failure, "__cause__", None), "orig", None), "sqlstate", None)


def unusable() -> Refused:
    """Return the refusal of whoever needs the store while it cannot be used."""
    return Refused(Code.UNAVAILABLE, "the store cannot be used now; try again")


def explained(error: Exception) -> Exception:
    """Return the caller's error: that the store cannot be used now or takes no such value, or *error* itself."""
    if not isinstance(error, DBAPIError):
        return error
    if isinstance(error, DataError):  # PostgreSQL takes no NUL in text, and bounds numbers.
        unfit = Refused(Code.INVALID_REQUEST, "a field holds a character or a number that cannot be stored")
        unfit.__cause__ = error
        return unfit
    # InternalError: PostgreSQL's for a server that has become a read-only replica. DatabaseError itself: SQLite's
    # for a file that is damaged, or no database.
    is_unusable = isinstance(error, OperationalError | InternalError) or type(error) is DatabaseError
    if is_unusable or error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _MENDABLE:
        refusal = unusable()
        refusal.__cause__ = error
        if isinstance(error.orig, Unwanted):
            return refusal
        detail = " ".join(str(error.orig).split())
        if is_locked(refusal):
            detail += ": another program has locked what is needed"
        if is_forbidden(refusal):
            detail += f": {RIGHTS_REMEDY}"
        if times := _outage.failed(detail, time.monotonic()):
            log.warning("store cannot be used", code="STORE_FAILED", detail=detail, times=times)
        return refusal
    if audit.concerns(error.statement):  # A trigger, a rule or a constraint that somebody added.
        log.error(
            "audit log cannot be written: nothing is issued or changed",
            code="AUDIT_FAILED",
            detail=" ".join(str(error.orig).split()),
        )
        refusal = audit.unwritable()
        refusal.__cause__ = error
        return refusal
    return error
