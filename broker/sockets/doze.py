"""The epoll set of clients that say nothing but that they are there.

Theory
------
An idle fleet wakes the broker once for each ping: ten thousand devices with a keep alive of a minute do so every 6 ms,
and each ping finds a processor that has slept and forgotten everything. Nobody waits for an answer to a ping, and who
has said nothing else for ten seconds seldom will in the next moment. So such clients *doze*: they have a set of
their own, and when they come fast one upon another the set is looked at in intervals, and each look serves all who have
come. Network drivers do the same when interrupts come too often (Linux calls it NAPI).

While they come seldom each is served at once, as everybody is: a small fleet gains nothing by waiting. A dozing client
that says anything else, or is sent anything but the answer to its ping, is awake again, and back in the other set.

Rules
-----
1. A dozing client is served `doze_milliseconds` later than another at most; 0 switches intervals off.
2. Intervals begin when two are there at once, or one comes within an interval after the last; they end with the first
   look that finds fewer than two.
3. More than a batch does not wait for the next interval.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable

from broker.sockets.poller import BATCH, Poller, Watched
from broker.sockets.turn import Turn


class Doze(Poller):
    """Where a client is watched that does nothing but ping."""

    __slots__ = ("_admitted", "_brought", "_interval", "_last", "_often", "_timer")

    def __init__(self, loop: AbstractEventLoop, turn: Turn, admitted: Poller, interval: Callable[[], float]) -> None:
        """Let those of *admitted* doze here, to be looked at every *interval()* seconds when they come often."""
        super().__init__(loop, turn)
        self._admitted = admitted
        self._brought = 0
        self._interval = interval
        self._last = 0.0
        self._often = False
        """Whether the set is looked at in intervals, and the event loop does not watch it."""
        self._timer: TimerHandle | None = None
        admitted.doze = self

    def settled(self, descriptor: int, transport: Watched, events: int, *, dozes: bool) -> Poller:
        """Let go of *descriptor* if its client is awake; return the set that watches it now."""
        return self if dozes else self._pass(descriptor, transport, events, self._admitted)

    def close(self) -> None:
        """Give the epoll set back."""
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def _events(self) -> list[tuple[int, int]]:
        events = self._batch()
        self._brought = len(events)
        return events

    def _ready(self) -> None:
        super()._ready()
        if self._timer is not None:  # Between two looks, for bytes inside.
            return
        now, interval = self._loop.time(), self._interval()
        follows = not self._often and self._brought == 1 and now - self._last < interval
        often = interval > 0 and (follows or self._brought > 1)
        if often:
            if not self._often:
                self._loop.remove_reader(self._epoll.fileno())
            self._timer = self._loop.call_later(interval if self._brought < BATCH else 0.0, self._look)
        elif self._often:
            self._loop.add_reader(self._epoll.fileno(), self._ready)
        self._last, self._often = now, often

    def _look(self) -> None:
        self._timer = None
        self._ready()
