"""Who is accepted and has no place yet: the kernel's queue continued, but by where they come from.

Theory
------
The kernel hands over whoever came first. As long as there are places that is fair; when somebody takes all of them and
fills the queue behind them, a good device waits for everybody before it. So who finds no place is taken out of the
queue and waits here, without TLS and without a deadline, as he would there; and when a place is free, networks have it
by turns, and in a network its addresses.

Rules
-----
1. Bounded. When it is full, who came last from the network that has most here is turned away, and so is whoever comes
   from one that has as many as others. Where none has more than a few, the listener leaves the others in the kernel's
   queue (`is_full`).
2. Who has given up meanwhile is found out when he has a place.
3. To let somebody wait takes the same time however many networks and addresses there are (`broker.door.most`): that is
   an attacker's to choose.
4. No clock, and no I/O but to close the socket of who is turned away.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from broker.door.most import Most
from broker.door.strangers import Network, Source

_FEW: Final = 4


class Waiting:
    """One who waits."""

    __slots__ = ("accepted", "address", "source")

    def __init__(self, accepted: socket.socket, address: tuple[str, int], source: Source) -> None:
        self.accepted = accepted
        self.address = address
        self.source = source


class _Line:
    """Those of one network, by address: whose turn is next first, and none without anybody."""

    __slots__ = ("addresses", "most")

    def __init__(self) -> None:
        self.addresses: dict[Source, deque[Waiting]] = {}
        self.most: Most[Source] = Most()


class WaitingRoom:
    """All who wait at one listener."""

    __slots__ = ("_lines", "_most", "_size")

    def __init__(self) -> None:
        self._lines: dict[Network, _Line] = {}
        """Whose turn is next first, and none without anybody."""
        self._most: Most[Network] = Most()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def is_full(self, most: int) -> bool:
        """Return whether *most* wait, and of no network too many."""
        return self._size >= most and self._size <= _FEW * len(self._lines)

    def add(self, newcomer: Waiting, most: int) -> Waiting | None:
        """Let *newcomer* wait; return who is to be turned away where *most* do already, perhaps himself."""
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
        line.most.add(source)
        self._most.add(source.network)
        self._size += 1
        source.waiting += 1
        return away

    def gives_way(self, source: Source) -> Waiting | None:
        """Take out who is to be turned away for a newcomer from *source*; None if that is the newcomer himself."""
        ours = self._most.of(source.network)
        if ours and ours * len(self._lines) >= self._size:
            return None
        return self._last_of_most()

    def next(
        self, may: Callable[[Source], bool], of_network: Callable[[Network], bool] = lambda _: True
    ) -> Waiting | None:
        """Take out whose turn it is of those whose address *may* have a place; None if there is nobody.

        A network that *of_network* says no of is passed over at once, however many of its addresses wait.
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
        """Turn everybody away."""
        for line in self._lines.values():
            for waiting in line.addresses.values():
                for each in waiting:
                    each.accepted.close()
        self._lines.clear()
        self._most = Most()
        self._size = 0

    def _last_of_most(self) -> Waiting | None:
        """Take out who came last of the network that has most, from the address in it that has."""
        network = self._most.first()
        if network is None:
            return None
        line = self._lines[network]
        source = line.most.first()
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
        """Count one from *source*, of *line*, no more."""
        line.most.take(source)
        self._most.take(source.network)
        self._size -= 1
        source.waiting -= 1
