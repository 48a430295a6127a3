"""The queues in front of the store: who runs transactions, and where.

Theory
------
What a transaction costs is mostly its end: the fsync that makes it durable. So whoever waits when the writer is free
shares one transaction with the others, each in a savepoint of his own (`provisioning.store.group`). Nobody is answered
before the commit, so what is answered is on disk. With one caller at a time nothing changes; with sixteen, they pay for
one fsync. On PostgreSQL the transactions of several processes meet at the end of the audit log anyway, so there they
take a lock of all writers first (docs/decisions/0067-one-writer-at-a-time.md): a group holds the rows of many callers,
and two groups that met in the middle could wait for each other.

A commit waits for the disk and is always in a thread. A work computes: in a thread it takes the interpreter's lock
from the event loop and the event loop from it, a dozen times for each enrolment. So on SQLite works that say they are
short run on the event loop, a few milliseconds at a time between its other events, and the thread is left with the
commit, for which it does not need the lock (docs/decisions/0082-short-works-run-on-the-event-loop.md)::

    event loop   requests ─ works ─ works ──┐ requests ─ checks ─ … ┌── answers, works ─ …
    thread                                  └──── COMMIT, fsync ────┘

Rules
-----
1. The queue is bounded; a caller who is cancelled waits for the end of his transaction and never goes on beside it.
2. A group is closed after `_GROUP_SECONDS`, or after as long as its predecessor's commit took, if that was longer: who
   comes later is in the next one. So a slow disk has larger groups, and works get half of the time at least.
3. The event loop waits for nobody: where SQLite's lock is somebody else's, a group begins in the thread, and a work
   that took too long for one that is short (a disk that does not answer) sends all into the thread for a while.
4. A lane is used from one event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import structlog
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from provisioning.errors import Code, Refused
from provisioning.store.group import Group, Job, explained

log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")

_WAITING: Final = 4096
_GROUP_SECONDS: Final = 0.01
_LONGEST_GROUP_SECONDS: Final = 0.1
_SLICE_SECONDS: Final = 0.002
_SHORT_SECONDS: Final = 0.02
_THREADED_SECONDS: Final = 5.0


class Lane(ABC):
    """Runs transactions, each in some thread, in order of arrival."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting = 0

    async def run(self, work: Callable[[Connection], ResultT], *, short: bool = False) -> ResultT:
        """Return what *work* returns, once its transaction is committed; *short* as in `Job`."""
        if self._waiting >= _WAITING:
            raise Refused(Code.UNAVAILABLE, "too many requests wait for the store; try again")
        self._waiting += 1
        future = self._submit(work, short=short)
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
    def _submit(self, work: Callable[[Connection], ResultT], *, short: bool) -> asyncio.Future[ResultT]:
        """Hand *work* to whoever runs it."""

    @abstractmethod
    def _stop(self) -> None:
        """Let the threads finish what waits."""


class PooledLane(Lane):
    """Several threads, a transaction for each work: for those that only read."""

    def __init__(self, engine: Engine, threads: int, name: str) -> None:
        super().__init__(engine)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def _submit(self, work: Callable[[Connection], ResultT], *, short: bool) -> asyncio.Future[ResultT]:  # noqa: ARG002
        return asyncio.get_running_loop().run_in_executor(self._executor, self._transact, work)

    def _stop(self) -> None:
        self._executor.shutdown()

    def _transact(self, work: Callable[[Connection], ResultT]) -> ResultT:
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            raise explained(error) from error


class GroupingLane(Lane):
    """One connection; works that wait together are committed together, in a thread or, where all are short, here."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine)
        self._jobs: Final[deque[Job]] = deque()
        self._busy = False
        self._idle: Final = threading.Event()
        self._idle.set()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._has_locks = engine.dialect.name != "sqlite"
        self._commit_seconds = 0.0
        self._threaded_until = 0.0

    def _submit(self, work: Callable[[Connection], ResultT], *, short: bool) -> asyncio.Future[ResultT]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ResultT] = loop.create_future()
        self._jobs.append(Job(work, future, short and not self._has_locks))
        if not self._busy:
            self._busy = True
            self._idle.clear()
            loop.call_soon(self._next, loop)  # Who else has arrived is in it.
        return future

    def _stop(self) -> None:
        self._idle.wait()
        self._worker.shutdown()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin a group with whoever waits, if somebody does."""
        if not self._jobs:
            self._busy = False
            self._idle.set()
            return
        seconds = max(_GROUP_SECONDS, min(self._commit_seconds, _LONGEST_GROUP_SECONDS))
        group = Group(self._engine, time.monotonic() + seconds)
        if self._jobs[0].short and time.monotonic() >= self._threaded_until and group.begin_at_once():
            self._run_slice(loop, group)
        else:
            self._end_in_thread(loop, group)

    def _run_slice(self, loop: asyncio.AbstractEventLoop, group: Group) -> None:
        """Run short works on the event loop for a moment; go on after whatever else it has to do."""
        begun = now = time.monotonic()
        while self._jobs and self._jobs[0].short and now < group.closes_at and not group.failed:
            group.run(self._jobs.popleft())
            before, now = now, time.monotonic()
            if now > before + _SHORT_SECONDS:
                self._threaded_until = now + _THREADED_SECONDS
                log.info("store is slow: works leave the event loop for a while", seconds=round(now - before, 3))
                break
            if now > begun + _SLICE_SECONDS:
                loop.call_soon(self._run_slice, loop, group)
                return
        self._end_in_thread(loop, group)

    def _end_in_thread(self, loop: asyncio.AbstractEventLoop, group: Group) -> None:
        self._worker.submit(self._end, loop, group)

    def _end(self, loop: asyncio.AbstractEventLoop, group: Group) -> None:
        """Commit; where works are not run on the event loop, begin and run them first."""
        if not group.begun:
            group.begin()
            group.run(self._jobs.popleft())
            while self._jobs and not group.failed and time.monotonic() < group.closes_at:
                group.run(self._jobs.popleft())
        self._commit_seconds = group.commit()
        loop.call_soon_threadsafe(self._ended, loop, group)

    def _ended(self, loop: asyncio.AbstractEventLoop, group: Group) -> None:
        self._next(loop)  # First, so that the disk has work while answers are written.
        group.settle()
