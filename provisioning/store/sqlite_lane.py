"""SQLite's one writer: works run in a thread or, if they are short, on the event loop; commits always in the thread.

Theory
------
As on PostgreSQL, all works that wait when the writer is free share one transaction and its fsync
(`provisioning.store.sqlite_group`). A commit waits for the disk and is always in the thread. A work computes: in a
thread it and the event loop take the GIL from each other, a dozen times per enrolment. So works declared as short run
on the event loop, two milliseconds at a time between its other events, and the thread only does the commit, for which
it does not need the GIL (docs/decisions/0082-short-sqlite-transactions-on-the-event-loop.md)::

    event loop   requests ─ works ─ works ──┐ requests ─ checks ─ … ┌── answers, works ─ …
    thread                                  └──── COMMIT, fsync ────┘

Rules
-----
1. Works run in order of arrival, wherever they run.
2. A group is closed after `_GROUP_SECONDS`, or after as long as its predecessor's commit took, if that was longer:
   later works are in the next one. So a slow disk has larger groups, and works get at least half of the time.
3. The event loop never blocks: if another process has SQLite's lock, a group begins in the thread, and after a short
   work that took too long (a disk that does not answer) all works run in the thread for a while.
4. A lane is used from one event loop.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from sqlalchemy.engine import Engine

from provisioning.store.lanes import QueuedLane
from provisioning.store.sqlite_files import SqliteFiles
from provisioning.store.sqlite_group import SqliteGroup
from provisioning.store.sqlite_writer import SqliteWriter

log = structlog.get_logger(__name__)


_GROUP_SECONDS: Final = 0.01
_LONGEST_GROUP_SECONDS: Final = 0.1
_SLICE_SECONDS: Final = 0.002
_SHORT_SECONDS: Final = 0.02
_THREADED_SECONDS: Final = 5.0


class SqliteLane(QueuedLane):
    """One connection; works that wait together share a commit, and run on the event loop if all are short."""

    def __init__(self, engine: Engine, name: str, files: SqliteFiles | None) -> None:
        super().__init__(engine, name)
        self._writer: Final = SqliteWriter(engine, files)
        self._commit_seconds = 0.0
        self._threaded_until = 0.0

    def stop(self) -> None:
        """Finish the queue, and give the connection back."""
        super().stop()
        self._writer.release()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin a group. `Job.apart` is ignored: a statement is a call, so combining several gains nothing."""
        seconds = max(_GROUP_SECONDS, min(self._commit_seconds, _LONGEST_GROUP_SECONDS))
        group = SqliteGroup(self._writer, time.monotonic() + seconds)
        if self._jobs[0].short and time.monotonic() >= self._threaded_until and group.begin_at_once():
            self._run_slice(loop, group)
        else:
            self._end_in_thread(loop, group)

    def _run_slice(self, loop: asyncio.AbstractEventLoop, group: SqliteGroup) -> None:
        """Run short works on the event loop for a moment; continue after its other events."""
        begun = now = time.monotonic()
        while self._jobs and self._jobs[0].short and not group.failed:
            if now >= group.closes_at and not group.is_empty:  # Beginning may have taken all of its time.
                break
            group.run(self._jobs.popleft())
            before, now = now, time.monotonic()
            if now > before + _SHORT_SECONDS:
                self._threaded_until = now + _THREADED_SECONDS
                log.info("the store is slow: changes are made in a thread for a while", seconds=round(now - before, 3))
                break
            if now > begun + _SLICE_SECONDS:
                loop.call_soon(self._run_slice, loop, group)
                return
        group.close()
        self._end_in_thread(loop, group)

    def _end_in_thread(self, loop: asyncio.AbstractEventLoop, group: SqliteGroup) -> None:
        self._worker.submit(self._end, loop, group)

    def _end(self, loop: asyncio.AbstractEventLoop, group: SqliteGroup) -> None:
        """Commit; if works do not run on the event loop, begin and run them first."""
        if not group.begun:
            group.begin()
            group.run(self._jobs.popleft())
            while self._jobs and not group.failed and time.monotonic() < group.closes_at:
                group.run(self._jobs.popleft())
            if (since := group.waited_in_vain_since) is not None:
                for job in self._waiting_since(since):
                    group.run(job)
            group.close()
        self._commit_seconds = group.commit()
        loop.call_soon_threadsafe(self._ended, loop, group)

    def _ended(self, loop: asyncio.AbstractEventLoop, group: SqliteGroup) -> None:
        self._next(loop)  # First, so that the disk has work while answers are written.
        group.settle()
