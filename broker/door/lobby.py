"""The epoll set of one listener's newcomers: handshakes and CONNECTs, separate from admitted clients.

Theory
------
A handshake costs a millisecond of CPU, a message some microseconds. In one common set, a reconnecting fleet would fill
every batch with handshakes, and connected clients would wait for hundreds of them. So newcomers have a set of their
own, and get `SECONDS_A_TURN` of each turn of the event loop: enough for a few handshakes, or very many connections that
lead to nothing. That bounds a connected device's wait, however many newcomers there are. The newcomers lose nothing,
since they wait for the CPU anyway. Once admitted, a transport moves to the other set (`TlsTransport.settle`).

Newcomers are also counted here, by address (`broker.door.strangers`), and those that wait for a place are kept here
(`broker.door.waiting_room`, `broker.door.crowd`).
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Iterator
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
        """Move clients to *admitted* when they are admitted; *limits* returns the present limits."""
        super().__init__(loop, turn)
        self._ends_a_turn = 1 << 30  # Here time counts.
        self.behind = False
        """Whether some who have sent data were not served in the last turn: new arrivals would only wait."""
        self._admitted = admitted
        self._limits = limits
        self.strangers = Strangers(loop.time())
        self.waiting = WaitingRoom()
        self._sources: dict[int, tuple[Source, float]] = {}
        """For each descriptor with a place, the longest-held first: its source, and since when it has it."""

    def _events(self) -> Iterator[tuple[int, int]]:
        """Yield the descriptors to call now, with their events, until the turn's time is over."""
        until = self._loop.time() + SECONDS_A_TURN
        self.behind = False
        inside = self._again
        batch = self._batch()
        for served, each in enumerate(batch, 1):
            yield each
            if self._loop.time() >= until:
                self.behind = True  # epoll reports the others again, except for bytes inside OpenSSL.
                for left, _ in batch[served:]:
                    if left in inside and left in self._watched:
                        self.again(left)
                break

    def _leave(self, events: Iterable[tuple[int, int]], seen: int, inside: set[int], waited: dict[int, int]) -> bool:
        """Leave nobody out for what was done: here time counts."""
        del events, seen, inside, waited
        return False

    def crowd(self) -> Crowd:
        """Return a snapshot of who has the places."""
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
        """Stop watching *descriptor*, which is still open and whose client was not admitted."""
        place = self._sources.pop(descriptor, None)
        if place is not None:
            place[0].leave(admitted=False)
        super().forget(descriptor)

    def settled(self, descriptor: int, transport: Watched, events: int, *, dozes: bool) -> Poller:
        """Release *descriptor*, whose client is admitted; return the set that watches it now."""
        del dozes
        place = self._sources.pop(descriptor, None)
        if place is not None:
            place[0].leave(admitted=True)
        return self._pass(descriptor, transport, events, self._admitted)
