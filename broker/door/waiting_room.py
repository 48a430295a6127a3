"""Accepted connections without a place: an extension of the kernel's queue, ordered fairly by source.

Theory
------
The kernel returns connections in order of arrival. That is fair while there are places; but if one source takes all of
them and fills the queue behind them, a good device waits behind all of its connections. So a connection that finds no
place is taken out of the queue and waits here, without TLS and without a deadline, as it would there. When a place
becomes free, networks take turns, and within a network its addresses do.

Rules
-----
1. Bounded. When it is full, the latest arrival of the network with most waiting is turned away, and so is a newcomer
   from a network that already has its equal share. Where no network has more than a few, the listener leaves
   further ones in the kernel's queue (`is_full`).
2. A client that has given up is only noticed when it gets a place.
3. Queueing takes constant time, however many networks and addresses there are (`broker.door.ranking`): an attacker
   chooses their number.
4. No clock, and no I/O except closing the sockets of those turned away.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from broker.door.ranking import Ranking
from broker.door.strangers import Network, Source

_FEW: Final = 4


class Waiting:
    """One waiting connection."""

    __slots__ = ("accepted", "address", "source")

    def __init__(self, accepted: socket.socket, address: tuple[str, int], source: Source) -> None:
        self.accepted = accepted
        self.address = address
        self.source = source


class _Line:
    """The waiting connections of one network, by address in order of turns; no empty entries."""

    __slots__ = ("addresses", "ranking")

    def __init__(self) -> None:
        self.addresses: dict[Source, deque[Waiting]] = {}
        self.ranking: Ranking[Source] = Ranking()


class WaitingRoom:
    """All connections that wait at one listener."""

    __slots__ = ("_lines", "_ranking", "_size")

    def __init__(self) -> None:
        self._lines: dict[Network, _Line] = {}
        """By network in order of turns; no empty entries."""
        self._ranking: Ranking[Network] = Ranking()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def is_full(self, most: int) -> bool:
        """Return whether *most* are waiting and no network has too many."""
        return self._size >= most and self._size <= _FEW * len(self._lines)

    def add(self, newcomer: Waiting, most: int) -> Waiting | None:
        """Queue *newcomer*; if *most* are waiting already, return the one to turn away, perhaps the newcomer."""
        away = None
        if self._size >= most:
            away = self.gives_way(newcomer.source)
            if away is None:
                return newcomer
        source = newcomer.source
        line = self._lines.get(source.network)
        if line is None:
            line = self._lines[source.network] = _Line()
        waiting = line.addresses.get(source)
        if waiting is None:
            waiting = line.addresses[source] = deque()
        waiting.append(newcomer)
        line.ranking.add(source)
        self._ranking.add(source.network)
        self._size += 1
        source.waiting += 1
        return away

    def gives_way(self, source: Source) -> Waiting | None:
        """Take out the one to turn away for a newcomer from *source*; None if it is the newcomer itself."""
        ours = self._ranking.of(source.network)
        if ours and ours * len(self._lines) >= self._size:
            return None
        return self._last_of_most()

    def next(
        self, may: Callable[[Source], bool], of_network: Callable[[Network], bool] = lambda _: True
    ) -> Waiting | None:
        """Take out the next one whose address *may* have a place; None if there is none.

        A network that *of_network* rejects is skipped at once, however many of its addresses wait.
        """
        for network, line in self._lines.items():
            if not of_network(network):
                continue
            for source, waiting in line.addresses.items():
                if may(source):
                    found = waiting.popleft()
                    del line.addresses[source], self._lines[network]
                    if waiting:
                        line.addresses[source] = waiting
                    if line.addresses:
                        self._lines[network] = line
                    self._gone(line, source)
                    return found
        return None

    def close(self) -> None:
        """Turn all away."""
        for line in self._lines.values():
            for waiting in line.addresses.values():
                for each in waiting:
                    each.accepted.close()
        self._lines.clear()
        self._ranking = Ranking()
        self._size = 0

    def _last_of_most(self) -> Waiting | None:
        """Take out the latest arrival of the network with most, from its address with most."""
        network = self._ranking.first()
        if network is None:
            return None
        line = self._lines[network]
        source = line.ranking.first()
        if source is None:
            raise AssertionError("a network without anybody has no line")
        waiting = line.addresses[source]
        last = waiting.pop()
        if not waiting:
            del line.addresses[source]
        if not line.addresses:
            del self._lines[network]
        self._gone(line, source)
        return last

    def _gone(self, line: _Line, source: Source) -> None:
        """Uncount one from *source*, of *line*."""
        line.ranking.take(source)
        self._ranking.take(source.network)
        self._size -= 1
        source.waiting -= 1
