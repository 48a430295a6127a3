"""All client sockets in one epoll set, behind a single reader of the event loop.

Theory
------
The loop's own ``add_reader`` creates objects per socket and wraps each readiness event in a handle and a context. Here
one ``epoll_wait`` returns up to a few hundred ready sockets as plain integers, a dict maps each to its transport, and
when all have been served the turn ends at once: what was read is answered before the loop does anything else. epoll
sets nest, so the loop watches the set's descriptor as it would a socket. Figures: docs/decisions/0002.

Hot: `_ready`. Budget: part of that of `broker.sockets.transport`, measured with it by benchmarks/side_by_side.py.
Slow twin: each socket read by itself; tests/properties/test_poller_properties.py has everybody hear the same.

Rules
-----
1. A transport is called only while it is watched: one that another of the same batch has closed is skipped.
   Bytes that OpenSSL has read ahead are no longer in the kernel, so epoll does not report them: a transport that leaves
   some there requests (`again`) another call in the next turn.
2. An unexpected error closes the connection that met it, with its traceback in the log, and no other: also if closing
   it fails. It is not watched then.
3. A batch is bounded, so that timers, the feed and the listener get their time in between. So is what is done for it:
   beyond that (`Turn.is_spent`) the rest of the batch waits for the next turn, in which whoever has waited and whoever
   is new are called alternately, in both cases those last whose peer has ended (decisions 0329 and 0339), and few of
   these in one turn: others have their answers at its end (decision 0344).
4. When many clients send one by one, a turn may wait a moment for more (`broker.sockets.coalescing`).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from asyncio import AbstractEventLoop
from collections.abc import Iterable
from itertools import zip_longest
from time import monotonic
from typing import Final, Protocol

import structlog

from broker.sockets.coalescing import Coalescing
from broker.sockets.lingering import Lingering
from broker.sockets.turn import Turn

log = structlog.get_logger("broker")

READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP
"""There are bytes, or the peer has ended."""
WRITABLE: Final = select.EPOLLOUT
BATCH: Final = 256
"""The most transports called in one turn."""
_ENDED: Final = select.EPOLLRDHUP
_ASKS: Final = int(select.EPOLLIN)
"""The usual event, and nothing besides."""
_ENDS_A_TURN: Final = 16
"""How many of those whose peer has ended are called in a turn: together about a portion of work."""
_ALL: Final = 4096
"""How many epoll is asked for while some wait: who is new may be behind them, and behind many that have ended."""
_FEW: Final = 32
"""As many as usually are ready at most: for more, epoll's answer takes a place that has to be found and freed."""


Events = list[tuple[int, int]]
"""Descriptors, with what epoll has reported of each."""


class Watched(Protocol):
    """A transport."""

    @property
    def host(self) -> str:
        """The peer's address, without the port."""

    def on_readable(self) -> None:
        """Read: there are bytes, the end, or an error."""

    def on_writable(self) -> None:
        """Write: the socket accepts bytes again."""

    def close(self) -> None:
        """Write what is left, and close."""

    def abort(self, code: str = "ABORTED", detail: str = "") -> None:
        """Close at once, and report why."""


class Poller:
    """The epoll set."""

    __slots__ = (
        "_again",
        "_coalescing",
        "_empty",
        "_ends",
        "_ends_a_turn",
        "_epoll",
        "_late",
        "_left",
        "_lingering",
        "_loop",
        "_most",
        "_served",
        "_turn",
        "_watched",
        "doze",
    )

    def __init__(self, loop: AbstractEventLoop, turn: Turn, coalescing: Coalescing | None = None) -> None:
        """Use *coalescing* to decide when to wait for more before calling those that are ready."""
        self._coalescing = coalescing
        self._loop = loop
        self._turn = turn
        self._epoll = select.epoll()
        self._most = BATCH
        """How many epoll is asked for first."""
        self._watched: dict[int, Watched] = {}
        self._lingering = Lingering(loop)
        self._again: set[int] = set()
        self._left: dict[int, int] = {}
        """Those of the last batch who were not called, with their events, in their order, …"""
        self._served: set[int] = set()
        """… and those who were: not the first to be called again."""
        self._late: Events = []
        """Those of the present batch whose peer has ended, beyond as many as one turn calls."""
        self._ends = self._ends_a_turn = _ENDS_A_TURN
        """How many of those are still called in this turn, and in each."""
        self._empty = asyncio.Event()
        self.doze: Poller | None = None
        """The set for clients that only ping; None: this set."""
        loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, descriptor: int, transport: Watched, events: int) -> None:
        """Begin to watch *descriptor* for *events*."""
        self._epoll.register(descriptor, events)
        self._watched[descriptor] = transport

    def change(self, descriptor: int, events: int) -> None:
        """Watch *descriptor* for other *events*; errors are reported even for 0."""
        self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Stop watching *descriptor*, which is still open."""
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
            self.enough(descriptor)  # The number may soon be reused.
        elif not self._lingering.forget(descriptor):
            return
        if not (self._watched or self._lingering):
            self._empty.set()

    def linger(self, descriptor: int, transport: Watched) -> None:
        """Stop watching *descriptor*, whose *transport* has said goodbye: it is looked at a moment later."""
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
            self.enough(descriptor)
            self._lingering.add(descriptor, transport)

    def again(self, descriptor: int) -> None:
        """Call the transport of *descriptor* in the next turn regardless of epoll: OpenSSL holds bytes for it."""
        if not self._again:
            self._loop.call_soon(self._look_again)
        self._again.add(descriptor)

    def enough(self, descriptor: int) -> None:
        """Cancel that: it is not to be read for now."""
        self._again.discard(descriptor)
        self._left.pop(descriptor, None)

    def settled(self, descriptor: int, transport: Watched, events: int, *, dozes: bool) -> Poller:
        """Take note that the client of *transport* is admitted; return the set that watches *descriptor* from now on.

        That is this one, unless it *dozes*. Newcomers are in `broker.door.lobby`.
        """
        return self._pass(descriptor, transport, events, self.doze) if dozes and self.doze is not None else self

    def _pass(self, descriptor: int, transport: Watched, events: int, to: Poller) -> Poller:
        """Move *descriptor* to the set *to*, and return that."""
        has_more = descriptor in self._again or descriptor in self._left
        Poller.forget(self, descriptor)
        to.watch(descriptor, transport, events)
        if has_more:
            to.again(descriptor)
        return to

    def __len__(self) -> int:
        """Return how many transports there are."""
        return len(self._watched) + len(self._lingering)

    def abort(self) -> None:
        """Close every transport at once."""
        for transport in list(self._watched.values()):
            transport.abort()
        self._lingering.abort()

    async def drained(self, patience: float) -> None:
        """Close all transports cleanly, wait up to *patience* seconds until they are gone, then abort the rest."""
        self._empty.clear()
        for transport in list(self._watched.values()):
            transport.close()
        if len(self):
            patient = self._loop.call_later(patience, self._empty.set)
            await self._empty.wait()
            patient.cancel()
        self.abort()
        self.close()

    def close(self) -> None:
        """Close the epoll set."""
        self._loop.remove_reader(self._epoll.fileno())
        self._again.clear()
        self._left.clear()
        self._epoll.close()

    def _look_again(self) -> None:
        if self._again:  # Otherwise they have been served, are not to be read, or the set is closed.
            self._ready()

    def _events(self) -> Iterable[tuple[int, int]]:
        """Return the descriptors to call now, with their events."""
        return self._with_waiting(self._batch())

    def _with_waiting(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return *events* and, alternately, those who have waited since the last turn."""
        return self._alternately(events) if self._left else events

    def _alternately(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return *events* and those who have waited. Rare: much was done for others."""
        waited, self._left = self._left, {}
        new = sorted(
            (each for each in events if each[0] not in waited),
            key=lambda new: (new[1] & _ENDED, new[0] in self._served),
        )
        return [each for two in zip_longest(waited.items(), new) for each in two if each is not None]

    def _leave(self, events: Iterable[tuple[int, int]], seen: int, inside: set[int], waited: dict[int, int]) -> bool:
        """Leave all but the first *seen* of *events*, and `_late` of those, to the next turn; return whether.

        epoll reports them again, except those that are here for bytes *inside* OpenSSL. Those who have *waited* already
        stay ahead of all others, and those who have ended come last: nobody waits for an answer there.
        """
        ready, late = list(events), self._late
        self._served = {each[0] for each in ready[:seen]}.difference([each[0] for each in late])
        rest = [*late, *ready[seen:]]
        self._left = dict(sorted(rest, key=lambda left: (left[0] not in waited, left[1] & _ENDED)))
        late.clear()
        for left in inside.intersection(self._left, self._watched):
            self.again(left)
        return True

    def _batch(self) -> list[tuple[int, int]]:
        """Return the descriptors that are ready, with their events."""
        events = self._poll()
        coalescing, ready = self._coalescing, len(events)
        if coalescing is not None and not coalescing.skips(ready) and coalescing.waited(ready, monotonic()):
            events = self._poll()
            coalescing.brought(len(events) - ready)
        if self._again:  # Rare: a peer has sent more than one turn reads.
            again, self._again = self._again, set()
            events += [(descriptor, select.EPOLLIN) for descriptor in again.difference([each[0] for each in events])]
        return events

    def _poll(self) -> list[tuple[int, int]]:
        """Return what epoll reports. If it is full, ask for more: whoever was reported is reported again."""
        if self._left:
            return self._epoll.poll(0, _ALL)
        events = self._epoll.poll(0, self._most)
        if len(events) < _FEW:
            self._most = _FEW
        elif self._most < BATCH:
            self._most = BATCH
            events = self._epoll.poll(0, BATCH)
        return events

    def _ready(self) -> None:
        watched, inside, waited = self._watched, self._again, self._left
        turn = self._turn
        turn.begin()
        self._ends = self._ends_a_turn
        ready, seen = self._events(), 0
        for descriptor, events in ready:
            if (seen == BATCH or (turn.is_spent and seen)) and self._leave(ready, seen, inside, waited):
                break
            seen += 1
            transport = watched.get(descriptor)
            if transport is None:
                continue
            try:
                if events == _ASKS or self._is_read(descriptor, transport, events):
                    transport.on_readable()
            except MemoryError:  # Not the fault of this connection: `provisioning.program.out_of_memory`.
                raise
            except Exception:  # A bug that one connection meets must not affect the others.
                log.exception("connection failed", code="INTERNAL_ERROR")
                self._give_up(descriptor, transport)
        if self._late:
            self._leave(ready, seen, inside, waited)
        turn.end()
        coalescing = self._coalescing
        if coalescing is not None and coalescing.is_near:
            coalescing.ended(monotonic())

    def _is_read(self, descriptor: int, transport: Watched, events: int) -> bool:
        """Do what *events* ask for besides reading; return whether *transport* is read now."""
        if events & _ENDED:
            if not self._ends:
                self._late.append((descriptor, events))
                return False
            self._ends -= 1
        if events & WRITABLE:
            transport.on_writable()
            return events != WRITABLE and descriptor in self._watched
        return True

    def _give_up(self, descriptor: int, transport: Watched) -> None:
        """Close a connection that has failed."""
        try:
            transport.abort()
        except MemoryError:
            raise
        except Exception:
            log.exception("connection failed, and so did closing it", code="INTERNAL_ERROR")
            with contextlib.suppress(OSError):  # It may be closed, and just not said so.
                self.forget(descriptor)  # Otherwise it would be reported in each turn.
