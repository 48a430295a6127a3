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
2. The loop never blocks: connecting, which resolves names and may take seconds, is left to threads. It is given up
   when nobody waits for it any more (`provisioning.store.still_wanted`).
3. A socket that becomes readable while nobody waits for it is no longer watched, so it cannot keep the loop busy.
4. No wait lasts for ever: a server that is stopped, and whose kernel still acknowledges what is sent, ends neither a
   statement that takes too long nor its connection. After the seconds of `Silence` the connection is closed, here, so
   that the caller gets the error of one that broke. A time in which this process was itself stopped does not count.
5. The same where a statement that the session has prepared is not there: it is another client's session, given by a
   pooler; or a table's columns have other types. Whatever the error, the next transaction has another connection.

The loop watches an epoll of ours, which watches the socket. The epoll is readable for any event of the socket,
including errors, which uvloop does not report to a reader. And the driver closes its socket whenever a connection
breaks: the kernel then removes it from our epoll, and the loop is not left with a descriptor that may be reused.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import psycopg
import psycopg.errors
from greenlet import getcurrent, greenlet
from psycopg.abc import PQGen, PQGenConn
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait

from provisioning.store.still_wanted import Unwanted, is_wanted

ResultT = TypeVar("ResultT")

_SLICE_SECONDS: Final = 0.002
_BOTH: Final = select.EPOLLIN | select.EPOLLOUT
_LOOK_SECONDS: Final = 0.1  # The driver's own, for waits in a thread.
PROMPT_SECONDS: Final = 5.0
"""What waits for nothing but the server itself is answered within: as long as connecting may take."""


_UNPREPARED: Final = (
    psycopg.errors.InvalidSqlStatementName,
    psycopg.errors.DuplicatePreparedStatement,
)
_REPLANNED: Final = "RevalidateCachedQuery"
"""PostgreSQL's function that says that a cached plan must not change its result's type, as of what it does not have."""


class ServerSilent(psycopg.OperationalError):
    """The server has not said anything for longer than it lets any statement take."""


class ConnectionUnwanted(psycopg.OperationalError, Unwanted):
    """It was not opened: nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class Silence:
    """For how many seconds the server may say nothing while it is waited for."""

    here: float
    """On the event loop, where works are short: as they may wait for a lock, and a little."""
    in_thread: float
    """Elsewhere: as a statement may take, and a little."""


class Silences:
    """What one of a store's connections tells the others: when it was closed for silence, those that rested then."""

    last = -math.inf
    """The last time, by the monotonic clock."""
    strange = -math.inf
    """The last time that a session was perhaps not the one that was opened: a pooler may have given another."""
    moves = 0
    """How often a session was the first at another server: those from before lead to the former one, perhaps."""


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
        self._given_up_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def run(self, function: Callable[[], None]) -> None:
        """Start *function*, which must not raise; it may continue after this has returned."""
        self._resume(greenlet(function))

    def until(self, wanted: Wait, seconds: float) -> Ready:
        """Yield to the loop until the socket is ready for what is *wanted*; return for what it is ready.

        Raises `ServerSilent` if it is not within so many *seconds*.
        """
        if bool(wanted & Wait.W) is not self._writing:
            self._writing = not self._writing
            self._epoll.modify(self._descriptor, _BOTH if self._writing else select.EPOLLIN)
        if not self._watched:
            self.loop.add_reader(self._epoll.fileno(), self._ready)
            self._watched = True
        self._waiting = getcurrent()
        self._given_up_at = self.loop.time() + seconds
        # One timer serves many waits: most are over long before it is due.
        if seconds < math.inf and (self._timer is None or self._timer.when() > self._given_up_at):
            self._set_timer(self._given_up_at)
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
        if self._timer is not None:
            self._timer.cancel()
        self._epoll.close()

    def _ready(self) -> None:
        whose, self._waiting = self._waiting, None
        if whose is None:
            self._unwatch()
        else:
            self._resume(whose)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(when, self._due)

    def _due(self) -> None:
        """Give up if nothing has been heard for long enough, and nothing has arrived that the loop has yet to see."""
        self._timer = None
        if self._waiting is None or self._given_up_at == math.inf:
            return
        if self.loop.time() < self._given_up_at:
            self._set_timer(self._given_up_at)
        elif self._epoll.poll(0):  # This process was stopped, or had no processor, for as long.
            self._ready()
        else:
            whose, self._waiting = self._waiting, None
            self._resume(whose, ServerSilent)

    def _resume(self, whose: greenlet, raising: type[Exception] | None = None) -> None:
        self._hub = getcurrent()
        self._since = time.monotonic()
        if raising is None:
            whose.switch()
        else:
            whose.throw(raising)

    def _unwatch(self) -> None:
        if self._watched:
            self.loop.remove_reader(self._epoll.fileno())
            self._watched = False


class LoopConnection(psycopg.Connection[TupleRow]):
    """A connection whose waits are the event loop's while `waits` is set, and the driver's own otherwise."""

    waits: LoopWaits | None = None
    silence: Silence = Silence(PROMPT_SECONDS, PROMPT_SECONDS)
    """While the session is being opened; then, what follows from the server's own limits."""
    patient = False
    """Whether the transaction may take as long as it does: it changes the schema."""
    session = 0
    """The server's number of the session that was opened."""
    moves = 0
    """How many there were of `Silences.moves` when it was opened."""
    at_standby = False
    """Whether the server was one then: once it is none, it has another timeline, which this session has not told."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.silences = Silences()
        """Of all connections of the store's."""

    @property
    def is_former(self) -> bool:
        """Whether others have led to another server since."""
        return self.moves != self.silences.moves

    @classmethod
    def _connect_gen(cls, *arguments: Any, **named: Any) -> PQGenConn[Self]:
        """Connect to one server; the driver resumes this every tenth of a second, and asks it for each server."""
        return _while_wanted(super()._connect_gen(*arguments, **named))

    def wait(self, gen: PQGen[ResultT], interval: float = _LOOK_SECONDS, timeout: float | None = None) -> ResultT:
        """Consume *gen*, which yields what it waits for; close the connection if it is waited for in vain."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        seconds = math.inf if self.patient else self.silence.in_thread if self.waits is None else self.silence.here
        try:
            if self.waits is None:
                begins = not self.autocommit and self.pgconn.transaction_status == TransactionStatus.IDLE
                first = min(seconds, PROMPT_SECONDS) if begins else seconds  # The driver sends a BEGIN by itself.
                return super().wait(_watched(gen, first / interval, seconds / interval), interval)
            return _on_loop(gen, self.waits, seconds)
        except ServerSilent:
            self.silences.last = time.monotonic()
            self.close()  # So that it counts as broken, and nobody mistakes a late answer for his own.
            raise ServerSilent("the server has not answered in time: it, or its disk, hangs") from None
        except _UNPREPARED:
            self.leave()
            raise
        except psycopg.errors.FeatureNotSupported as error:
            if error.diag.source_function == _REPLANNED:
                self.leave()
            raise

    def leave(self) -> None:
        """Close the connection, as its session is not as it was opened; nor may be those of the others."""
        self.silences.last = self.silences.strange = time.monotonic()
        self.close()

    @contextlib.contextmanager
    def as_on_loop(self) -> Iterator[None]:
        """Wait in a thread no longer than on the event loop: what is asked computes nothing."""
        before = self.silence
        self.silence = Silence(before.here, min(before.here, before.in_thread))
        try:
            yield
        finally:
            self.silence = before

    @contextlib.contextmanager
    def prompt(self) -> Iterator[None]:
        """Expect each answer of the block soon: what is asked waits for nothing, or can be asked again."""
        before = self.silence
        self.silence = Silence(min(before.here, PROMPT_SECONDS), min(before.in_thread, PROMPT_SECONDS))
        try:
            yield
        finally:
            self.silence = before


def _on_loop(gen: PQGen[ResultT], waits: LoopWaits, seconds: float) -> ResultT:
    step: Any = gen.send
    given: Ready | None = None
    try:
        while True:
            given = waits.until(step(given), seconds)
    except StopIteration as end:
        result: ResultT = end.value
        return result


def _while_wanted(gen: PQGenConn[ResultT]) -> PQGenConn[ResultT]:
    """Yield what *gen* does; raise the driver's error, of a server that it has not reached, when nobody waits."""
    step: Any = gen.send
    given: int | None = None
    try:
        while is_wanted():
            given = yield step(given)
    except StopIteration as end:
        result: ResultT = end.value
        return result
    gen.close()
    raise ConnectionUnwanted("nobody waits for the connection any more")


def _watched(gen: PQGen[ResultT], first: float, most: float) -> PQGen[ResultT]:
    """Yield what *gen* does; raise `ServerSilent` when the driver has looked so often in a row, and in vain.

    *first*: for the first answer. Looks are counted, and no time, of which a process that is stopped may be given any
    amount between two of them.
    """
    in_vain, allowed = 0, first
    try:
        wanted = next(gen)
        while True:
            given = yield wanted
            in_vain = 0 if given else in_vain + 1
            if in_vain >= allowed:
                raise ServerSilent
            if given & Ready.R:
                allowed = most
            wanted = gen.send(given)
    except StopIteration as end:
        result: ResultT = end.value
        return result
