"""The epoll set of one listener's newcomers: handshakes and CONNECTs, apart from those who are admitted.

Theory
------
A handshake costs a millisecond of processor, a message some microseconds. In one set, a reconnecting fleet would fill
every batch with handshakes, and whoever is connected already would wait for hundreds of them. So newcomers have a set
of their own, and of each turn of the event loop they get `SECONDS_A_TURN`: a few handshakes, or very many connections
that lead to nothing. That is what a connected device waits, however many are at the door. The newcomers lose nothing,
since they wait for the processor anyway. Once admitted, a transport moves to the other set (`TlsTransport.settle`).

It is also where newcomers are counted, by address (`broker.door.strangers`), and where those are who wait for a place
(`broker.door.waiting_room`, `broker.door.crowd`).
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from typing import Final

from broker.door.crowd import Crowd
from broker.door.strangers import Source, Strangers
from broker.door.waiting_room import WaitingRoom
from broker.settings.limits import Limits
from broker.sockets.poller import Poller, Watched
from broker.sockets.turn import Turn

SECONDS_A_TURN: Final = 0.01


class Lobby(Poller):
    """Where a connection waits until its client is admitted."""

    __slots__ = ("_admitted", "_limits", "_sources", "behind", "strangers", "waiting")

    def __init__(self, loop: AbstractEventLoop, turn: Turn, admitted: Poller, limits: Callable[[], Limits]) -> None:
        """Let those who are admitted move on to *admitted*; *limits* says what counts at the moment."""
        super().__init__(loop, turn)
        self.behind = False
        """Whether some who have spoken were not served in the last turn: whoever came in now would only wait."""
        self._admitted = admitted
        self._limits = limits
        self.strangers = Strangers(loop.time())
        self.waiting = WaitingRoom()
        self._sources: dict[int, tuple[Source, float]] = {}
        """Of who has a place, the longest first: where from, and since when."""

    def _events(self) -> Iterator[tuple[int, int]]:
        """Yield whom to call now, and why, until the turn's time is over."""
        until = self._loop.time() + SECONDS_A_TURN
        self.behind = False
        inside = self._again
        batch = self._batch()
        for served, each in enumerate(batch, 1):
            yield each
            if self._loop.time() >= until:
                self.behind = True  # The kernel tells of the others again, but for bytes that it does not have.
                for left, _ in batch[served:]:
                    if left in inside and left in self._watched:
                        self.again(left)
                break

    def crowd(self) -> Crowd:
        """Return whose the places are at this moment."""
        return Crowd(self._sources, self._loop.time())

    def put_out(self, descriptor: int, code: str, detail: str) -> None:
        """Close the connection of *descriptor*, which has a place."""
        self._watched[descriptor].abort(code, detail)

    def watch(self, descriptor: int, transport: Watched, events: int) -> None:
        """Begin to watch *descriptor* for *events*."""
        now, limits = self._loop.time(), self._limits()
        source = self.strangers.source(transport.host, limits, now)
        source.arrive(limits, now)
        self._sources[descriptor] = source, now
        super().watch(descriptor, transport, events)

    def forget(self, descriptor: int) -> None:
        """Stop watching *descriptor*, which is still open: its client was not admitted."""
        place = self._sources.pop(descriptor, None)
        if place is not None:
            place[0].leave(admitted=False)
        super().forget(descriptor)

    def settled(self, descriptor: int, transport: Watched, events: int, *, dozes: bool) -> Poller:
        """Let go of *descriptor*, whose client is admitted; return the set that watches it now."""
        del dozes
        place = self._sources.pop(descriptor, None)
        if place is not None:
            place[0].leave(admitted=True)
        return self._pass(descriptor, transport, events, self._admitted)
