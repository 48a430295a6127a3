"""Runs plain database code on the event loop, and yields to the loop while the server takes to answer.

Theory
------
A statement is a short computation, a wait for a socket, and a short computation. In a thread each of them takes the GIL
from the event loop and gives it back. Here the code runs in a greenlet of the loop's own thread, and
where the driver would wait (`psycopg.Connection.wait`), it switches to the loop, which switches back when the socket is
readable::

    event loop   ─ requests ─┐             ┌─ requests, answers ─┐             ┌─ …
    greenlet                 └─ statement ─┘      (waiting)      └─ statement ─┘

The code is unaware of it: the same function runs in a thread, where the driver waits as usual.

Rules
-----
1. A connection is used by one caller at a time, on the loop or in a thread; `LoopConnection.waits` says which.
2. The loop never blocks: connecting, which resolves names and may take seconds, is left to threads.
3. A socket that becomes readable while nobody waits for it is no longer watched, so it cannot keep the loop busy.

The loop watches an epoll of ours, which watches the socket. The epoll is readable for any event of the socket,
including errors, which uvloop does not report to a reader. And the driver closes its socket whenever a connection
breaks: the kernel then removes it from our epoll, and the loop is not left with a descriptor that may be reused.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg
from greenlet import getcurrent, greenlet
from psycopg.abc import PQGen
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait

ResultT = TypeVar("ResultT")

_SLICE_SECONDS: Final = 0.002
_BOTH: Final = select.EPOLLIN | select.EPOLLOUT
_LOOK_SECONDS: Final = 0.1  # The driver's own, for waits in a thread.


class LoopWaits:
    """Waits for one socket while the event loop continues; made, used and closed on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        self.loop: Final = loop
        self._descriptor: Final = descriptor
        self._epoll: Final = select.epoll()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._watched = False
        self._writing = False
        self._waiting: greenlet | None = None
        self._hub = getcurrent()
        self._since = 0.0

    def run(self, function: Callable[[], None]) -> None:
        """Start *function*, which must not raise; it may continue after this has returned."""
        self._resume(greenlet(function))

    def until(self, wanted: Wait) -> Ready:
        """Yield to the loop until the socket is ready for what is *wanted*; return for what it is ready."""
        if bool(wanted & Wait.W) is not self._writing:
            self._writing = not self._writing
            self._epoll.modify(self._descriptor, _BOTH if self._writing else select.EPOLLIN)
        if not self._watched:
            self.loop.add_reader(self._epoll.fileno(), self._ready)
            self._watched = True
        self._waiting = getcurrent()
        self._hub.switch()
        if not self._writing:
            return Ready.R  # Or broken, which reading tells.
        ready = 0
        for _, events in self._epoll.poll(0):
            ready |= (events & select.EPOLLOUT and Ready.W) | (events & ~select.EPOLLOUT and Ready.R)
        return Ready(ready)

    def pause(self) -> None:
        """Yield to the loop for a moment, if it has been blocked for longer than one."""
        if time.monotonic() - self._since > _SLICE_SECONDS:
            self.loop.call_soon(self._resume, getcurrent())
            self._hub.switch()

    def close(self) -> None:
        """Stop watching the socket."""
        self._unwatch()
        self._epoll.close()

    def _ready(self) -> None:
        whose, self._waiting = self._waiting, None
        if whose is None:
            self._unwatch()
        else:
            self._resume(whose)

    def _resume(self, whose: greenlet) -> None:
        self._hub = getcurrent()
        self._since = time.monotonic()
        whose.switch()

    def _unwatch(self) -> None:
        if self._watched:
            self.loop.remove_reader(self._epoll.fileno())
            self._watched = False


class LoopConnection(psycopg.Connection[TupleRow]):
    """A connection whose waits are the event loop's while `waits` is set, and the driver's own otherwise."""

    waits: LoopWaits | None = None

    def wait(self, gen: PQGen[ResultT], interval: float = _LOOK_SECONDS, timeout: float | None = None) -> ResultT:
        """Consume *gen*, which yields what it waits for."""
        if self.waits is None or timeout is not None:
            return super().wait(gen, interval, timeout)
        step: Any = gen.send
        given: Ready | None = None
        try:
            while True:
                given = self.waits.until(step(given))
        except StopIteration as end:
            result: ResultT = end.value
            return result
