"""The epoll set of idle clients: those that only send pings.

Theory
------
An idle fleet wakes the broker once per ping: ten thousand devices with a keep alive of a minute do so every 6 ms, and
each ping finds a CPU with cold caches. No client waits for the answer to a ping, and one that has sent nothing else for
ten seconds is unlikely to in the next moment. So such clients *doze*: they have an epoll set of their own. When pings
arrive in quick succession the set is polled at intervals, and each poll serves all that have arrived. Linux's network
drivers do the same when interrupts are too frequent (NAPI).

While pings are rare, each is served at once: a small fleet would gain nothing by waiting. A dozing client that sends
anything else, or is sent anything but the answer to its ping, wakes up and returns to the other set.

Rules
-----
1. A dozing client is served at most `doze_milliseconds` later than others; 0 disables intervals.
2. Intervals begin when two pings are there at once, or one arrives within an interval after the last; they end with the
   first poll that finds fewer than two.
3. If there is more than one batch, the rest does not wait for the next interval.
4. Whatever error a turn meets, the set is polled again.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable

from broker.sockets.poller import BATCH, Poller, Watched
from broker.sockets.turn import Turn


class Doze(Poller):
    """Watches clients that only ping."""

    __slots__ = ("_admitted", "_brought", "_interval", "_last", "_often", "_timer")

    def __init__(self, loop: AbstractEventLoop, turn: Turn, admitted: Poller, interval: Callable[[], float]) -> None:
        """Let clients of *admitted* doze here; poll them every *interval()* seconds when their pings are frequent."""
        super().__init__(loop, turn)
        self._admitted = admitted
        self._brought = 0
        self._interval = interval
        self._last = 0.0
        self._often = False
        """Whether the set is polled at intervals, and not watched by the event loop."""
        self._timer: TimerHandle | None = None
        admitted.doze = self

    def settled(self, descriptor: int, transport: Watched, events: int, *, dozes: bool) -> Poller:
        """Release *descriptor* if its client is awake; return the set that watches it now."""
        return self if dozes else self._pass(descriptor, transport, events, self._admitted)

    def close(self) -> None:
        """Close the epoll set."""
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def _events(self) -> list[tuple[int, int]]:
        events = self._batch()
        self._brought = len(events)
        return self._with_waiting(events)

    def _ready(self) -> None:
        try:
            super()._ready()
        finally:  # The event loop may not be watching the set: nothing else would call this again.
            self._poll_again()

    def _poll_again(self) -> None:
        if self._timer is not None:  # Between two polls, for bytes inside OpenSSL.
            return
        now, interval = self._loop.time(), self._interval()
        follows = not self._often and self._brought == 1 and now - self._last < interval
        often = interval > 0 and (follows or self._brought > 1)
        if often:
            if not self._often:
                self._loop.remove_reader(self._epoll.fileno())
            all_served = self._brought < BATCH and not self._left
            self._timer = self._loop.call_later(interval if all_served else 0.0, self._look)
        elif self._often:
            self._loop.add_reader(self._epoll.fileno(), self._ready)
        self._last, self._often = now, often

    def _look(self) -> None:
        self._timer = None
        self._ready()
