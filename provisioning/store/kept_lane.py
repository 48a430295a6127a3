"""A lane on one connection to PostgreSQL that is kept: on the event loop or, where a work is not short, in a thread.

Theory
------
A work asks the server, and computes between its questions. In a thread it has to take the interpreter's lock from the
event loop after each answer, and the event loop takes it back. So works that say that they are short run on the event
loop, in a greenlet that leaves it while they wait for the server (`provisioning.store.loop_waits`). A work that is not
short computes for long, or waits for somebody else, and is in the thread. What runs them is the same code.

Rules
-----
1. Works begin in order of arrival, wherever they run.
2. The event loop waits for nobody. The connection is opened in the thread, and anew when it turns out to be broken
   before anything has been done on it.
3. A lane is used from one event loop.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from sqlalchemy.engine import Connection, Engine

from provisioning.store.kept_connection import KeptConnection, Stale
from provisioning.store.lanes import Apart, Job, Lane

ResultT = TypeVar("ResultT")


class KeptLane(Lane):
    """Runs whoever waits, one after the other; `_serve` says how."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine)
        self._jobs: Final[deque[Job]] = deque()
        self._kept: Final = KeptConnection(engine)
        self._busy = False
        self._idle: Final = threading.Event()
        self._idle.set()
        self._worker: Final = ThreadPoolExecutor(1, thread_name_prefix=name)

    @abstractmethod
    def _serve(self, pause: Callable[[], None], *, here: bool) -> Callable[[], None]:
        """Run the first of the jobs, and those that go with it; return what tells their callers, on their loop.

        *here* is on the event loop, where only short works may run, and *pause* lets it go on for a moment. Raises
        `Stale`, and leaves the jobs where they are, if nothing has been done because the connection is broken.
        """

    def _submit(
        self, work: Callable[[Connection], ResultT], apart: Apart | None, *, short: bool
    ) -> asyncio.Future[ResultT]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ResultT] = loop.create_future()
        self._jobs.append(Job(work, future, short, apart))
        if not self._busy:
            self._busy = True
            self._idle.clear()
            loop.call_soon(self._next, loop)  # Who else has arrived is in it.
        return future

    def _stop(self) -> None:
        self._idle.wait()
        self._worker.submit(self._kept.drop)
        self._worker.shutdown()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve whoever waits, if somebody does."""
        if not self._jobs:
            self._busy = False
            self._idle.set()
        elif self._jobs[0].short and self._kept.is_open:
            waits = self._kept.on_loop(loop)
            waits.run(lambda: self._serve_here(loop, waits.pause))
        else:
            self._worker.submit(self._serve_in_thread, loop)

    def _serve_here(self, loop: asyncio.AbstractEventLoop, pause: Callable[[], None]) -> None:
        """Go on for as long as it can be done on the event loop; in a greenlet."""
        while self._jobs and self._jobs[0].short and self._kept.is_open:
            try:
                tell = self._serve(pause, here=True)
            except Stale:
                break
            loop.call_soon(tell)
        loop.call_soon(self._next, loop)

    def _serve_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        self._kept.in_thread()
        try:
            tell = self._serve(_go_on, here=False)
        except Stale:
            tell = self._serve(_go_on, here=False)  # On a new connection, which cannot be.
        loop.call_soon_threadsafe(tell)
        loop.call_soon_threadsafe(self._next, loop)


def _go_on() -> None:
    """Take no pause: a thread is in nobody's way."""
