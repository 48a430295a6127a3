"""A lane on one persistent PostgreSQL connection: on the event loop or, for works that are not short, in a thread.

Theory
------
A work queries the server, and computes in between. In a thread it has to take the GIL from the event loop after each
answer, and the event loop takes it back. So works declared as short run on the event loop, in a greenlet that yields to
it while they wait for the server (`provisioning.store.loop_waits`). A work that is not short computes for long, or
waits for something else, and runs in the thread. The same code runs both.

Rules
-----
1. Works begin in order of arrival, wherever they run.
2. The event loop never blocks. The connection is opened in the thread, and reopened if it turns out to be broken
   before anything has been done on it.
3. A lane is used from one event loop.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Final

from sqlalchemy.engine import Engine

from provisioning.store.kept_connection import KeptConnection, Stale
from provisioning.store.lanes import QueuedLane
from provisioning.store.still_wanted import connecting_while


class KeptLane(QueuedLane):
    """Runs waiting jobs, one after the other; `_serve` defines how."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine, name)
        self._kept: Final = KeptConnection(engine)

    @abstractmethod
    def _serve(self, pause: Callable[[], None], *, here: bool) -> Callable[[], None]:
        """Run the first of the jobs, and those that go with it; return the function that answers their callers.

        That function runs on the callers' loop. *here*: on the event loop, where only short works may run, and *pause*
        yields to it. Raises `Stale`, and leaves the jobs queued, if nothing was done as the connection is broken.
        """

    def renew(self) -> None:
        """Use another connection from the next transaction on."""
        self._kept.renew()

    def stop(self) -> None:
        """Finish the queue, and close the connection."""
        self._idle.wait()
        self._worker.submit(self._kept.drop)
        super().stop()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._kept.doubt()
        if self._jobs[0].short and self._kept.is_open:
            waits = self._kept.on_loop(loop)
            waits.run(lambda: self._serve_here(loop, waits.pause))
        else:
            self._worker.submit(self._serve_in_thread, loop)

    def _serve_here(self, loop: asyncio.AbstractEventLoop, pause: Callable[[], None]) -> None:
        """Serve jobs for as long as they can run on the event loop; called in a greenlet."""
        while self._jobs and self._jobs[0].short and self._kept.is_open:
            try:
                tell = self._serve(pause, here=True)
            except Stale:
                break
            loop.call_soon(tell)
            self._kept.doubt()  # Meanwhile another session may be the first at another server.
        loop.call_soon(self._next, loop)

    def _serve_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        self._kept.in_thread()
        with connecting_while(self._is_awaited):
            try:
                tell = self._serve(_go_on, here=False)
            except Stale:
                tell = self._serve(_go_on, here=False)  # On a new connection, which cannot be stale.
        loop.call_soon_threadsafe(tell)
        loop.call_soon_threadsafe(self._next, loop)

    def _is_awaited(self) -> bool:
        """Whether any caller was not cancelled; asked in the thread, while the loop may add jobs."""
        return not all(job.future.unwanted for job in self._jobs.copy())


def _go_on() -> None:
    """Do not pause: a thread blocks nothing else."""
