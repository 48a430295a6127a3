"""Threads that run transactions, and the queue in front of them.

Theory
------
What a transaction costs is mostly its end: the fsync that makes it durable. So whoever waits when the writer is free
shares one transaction with the others, each in a savepoint of his own::

    BEGIN ─ lock ─ SAVEPOINT ─ work ─ RELEASE ─ SAVEPOINT ─ work ✗ ROLLBACK TO ─ … ─ COMMIT ─► everybody has his answer

Nobody is answered before the commit, so what is answered is on disk. With one caller at a time nothing changes; with
sixteen, they pay for one fsync. On PostgreSQL the transactions of several processes meet at the end of the audit log
anyway, so there they take a lock of all writers first (docs/decisions/0067-one-writer-at-a-time.md): a group holds the
rows of many callers, and two groups that met in the middle could wait for each other. There, works that have nothing in
common share their statements, too (`provisioning.store.company`). SQLite has a lane of its own
(`provisioning.store.sqlite_lane`).

Rules
-----
1. The queue is bounded; a caller who is cancelled waits for the end of his transaction and never goes on beside it.
2. A work that fails undoes its own changes and nobody else's. If the transaction as a whole fails, everybody in it is
   refused, and nothing of it is in the store.
3. A group is closed after `_GROUP_SECONDS`, or after as long as its predecessor's commit took, if that was longer: who
   comes later is in the next one. So a slow disk has larger groups, and works get half of the time at least.
4. A store that cannot be used is `Refused` with UNAVAILABLE, here and nowhere else. The reason goes to the log: it
   names hosts and users, which are nobody's business outside.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, InternalError, OperationalError

from provisioning.errors import Code, Refused
from provisioning.store import announcements, audit
from provisioning.store.prepared import driver_of
from provisioning.store.side_by_side import COMPANY, GoneAlone

log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")
Apart = Callable[[], Collection[Hashable] | None]
"""Returns all that a work decides upon, None if it cannot say."""

_WAITING: Final = 4096
_GROUP_SECONDS: Final = 0.01
_LONGEST_GROUP_SECONDS: Final = 0.1
_LARGEST_COMPANY: Final = 64
_WRITERS: Final = 0x666C656574  # "fleet"; any number that nobody else uses.


class Lane(ABC):
    """Runs transactions, each in some thread, in order of arrival."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting = 0

    async def run(
        self, work: Callable[[Connection], ResultT], apart: Apart | None = None, *, short: bool = False
    ) -> ResultT:
        """Return what *work* returns, once its transaction is committed; *short* as in `Database.write`.

        *apart* returns all that it decides upon: others that have nothing of it in common may be done side by side with
        it. Without it, or if it returns None, *work* is done by itself.
        """
        if self._waiting >= _WAITING:
            raise Refused(Code.UNAVAILABLE, "too many requests wait for the store; try again")
        self._waiting += 1
        future = self._submit(work, apart, short=short)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            future.exception()  # Nobody is left to hear of it; the transaction is undone.
            raise
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Finish what waits, and close every connection."""
        self._stop()
        self._engine.dispose()

    @abstractmethod
    def _submit(
        self, work: Callable[[Connection], ResultT], apart: Apart | None, *, short: bool
    ) -> asyncio.Future[ResultT]:
        """Hand *work* to whoever runs it."""

    @abstractmethod
    def _stop(self) -> None:
        """Let the threads finish what waits."""


class PooledLane(Lane):
    """Several threads, a transaction for each work: for those that only read."""

    def __init__(self, engine: Engine, threads: int, name: str) -> None:
        super().__init__(engine)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def _submit(
        self,
        work: Callable[[Connection], ResultT],
        apart: Apart | None,  # noqa: ARG002 - Each has a transaction of its own.
        *,
        short: bool,  # noqa: ARG002 - The same.
    ) -> asyncio.Future[ResultT]:
        return asyncio.get_running_loop().run_in_executor(self._executor, self._transact, work)

    def _stop(self) -> None:
        self._executor.shutdown()

    def _transact(self, work: Callable[[Connection], ResultT]) -> ResultT:
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            raise explained(error) from error


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[Connection], Any]
    apart: Apart | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]

    def settle(self, outcome: Outcome) -> None:
        """Give the caller his answer; called on his loop."""
        if outcome.failure is not None:
            self.future.set_exception(outcome.failure)
        else:
            self.future.set_result(outcome.result)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a work has returned, or why it did not."""

    result: Any = None
    failure: Exception | None = None


class GroupingLane(Lane):
    """One thread with one connection; works that wait together are committed together."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine)
        self._jobs: Final[queue.SimpleQueue[_Job | None]] = queue.SimpleQueue()
        self._stopping = False
        self._commit_seconds = 0.0
        self._held_back: _Job | None = None
        self._together = engine.dialect.name == "postgresql"
        if self._together:
            event.listen(engine, "before_cursor_execute", _note_statement)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _submit(
        self,
        work: Callable[[Connection], ResultT],
        apart: Apart | None,
        *,
        short: bool,  # noqa: ARG002 - A server is asked, which is waiting: never on the event loop.
    ) -> asyncio.Future[ResultT]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ResultT] = loop.create_future()
        self._jobs.put(_Job(work, apart, loop, future))
        return future

    def _stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while not self._stopping or self._held_back is not None:
            first, self._held_back = self._held_back or self._jobs.get(), None
            if first is None:
                return
            group = [first]
            for job, outcome in zip(group, self._transact(group), strict=True):
                job.loop.call_soon_threadsafe(job.settle, outcome)

    def _transact(self, group: list[_Job]) -> list[Outcome]:
        """Run the first job of *group*, and all that arrive in time, which are added to it."""
        outcomes: list[Outcome] = []
        closes_at = time.monotonic() + max(_GROUP_SECONDS, min(self._commit_seconds, _LONGEST_GROUP_SECONDS))
        try:
            with self._engine.begin() as connection, announcements.at_end(connection), audit.one_end(connection):
                _lock_out_others(connection)
                while len(outcomes) < len(group):
                    outcomes.extend(self._run(connection, group, len(outcomes)))
                    if time.monotonic() < closes_at and (following := self._next_waiting()) is not None:
                        group.append(following)
                done = time.monotonic()
            self._commit_seconds = time.monotonic() - done
        except Exception as error:  # noqa: BLE001 - of the transaction as a whole: it is told to everybody in it
            failure = Outcome(failure=explained(error))
            return [each if each.failure is not None else failure for each in outcomes] + [failure] * (
                len(group) - len(outcomes)
            )
        return outcomes

    def _run(self, connection: Connection, group: list[_Job], start: int) -> list[Outcome]:
        """Run the job of *group* at *start*, or a company that begins with it and whose others are added to *group*."""
        taken = self._decides_upon(group[start])
        if taken is None:
            return [attempt(connection, group[start].work)]
        while len(group) - start < _LARGEST_COMPANY and (following := self._next_waiting()) is not None:
            more = self._decides_upon(following)
            if more is None or not taken.isdisjoint(more):
                self._held_back = following
                break
            taken |= more
            group.append(following)
        return _attempt_together(connection, [each.work for each in group[start:]])

    def _decides_upon(self, job: _Job) -> set[Hashable] | None:
        if job.apart is None or not self._together:
            return None
        try:
            found = job.apart()
        except Exception:  # noqa: BLE001 - What is wrong with it the work itself will tell its caller.
            return None
        return None if found is None else set(found)

    def _next_waiting(self) -> _Job | None:
        held, self._held_back = self._held_back, None
        if held is not None:
            return held
        try:
            job = self._jobs.get_nowait()
        except queue.Empty:
            return None
        if job is None:
            self._stopping = True
        return job


def attempt(connection: Connection, work: Callable[[Connection], Any]) -> Outcome:
    """Run one work in a savepoint; raise what SQLAlchemy raises if the whole transaction is lost."""
    # The driver's own connection: SQLAlchemy's savepoints cost a tenth of an enrolment.
    driver = driver_of(connection)
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
        return Outcome(failure=explained(error))
    driver.execute("RELEASE work")
    return Outcome(result)


def _attempt_together(connection: Connection, works: Sequence[Callable[[Connection], Any]]) -> list[Outcome]:
    """Run *works*, which have nothing in common, side by side; each by itself where that comes to nothing."""
    from provisioning.store.company import BrokenUp, Company  # Only PostgreSQL needs greenlets.

    if len(works) == 1:
        return [attempt(connection, works[0])]
    driver: Any = connection.connection.driver_connection
    driver.execute("SAVEPOINT company")
    end = audit.end_of(connection)
    try:
        members = Company(connection, works).run()
        driver.execute("RELEASE company")
    except (BrokenUp, DBAPIError, connection.dialect.loaded_dbapi.Error) as error:
        log.info("works that went together are done one by one", works=len(works), error=repr(error.__cause__ or error))
        try:
            driver.execute("ROLLBACK TO company")
        except connection.dialect.loaded_dbapi.Error as lost:
            raise OperationalError("ROLLBACK TO", None, lost) from error
        audit.take_back(connection, end)
        return [attempt(connection, work) for work in works]
    return [
        attempt(connection, member.work)
        if isinstance(member.failure, GoneAlone)
        else Outcome(member.result, None if member.failure is None else explained(member.failure))
        for member in members
    ]


def _note_statement(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
    leader = connection.info.get(COMPANY)
    if leader is not None:
        leader.about_to_execute(statement)


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
