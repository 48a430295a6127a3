"""Whose place a newcomer has when all are taken: of the network that has most of them.

Theory
------
Who is silent on purpose holds a place until `handshake_timeout`, and looks like a good device on a slow link. So it is
not the silent who make room but those of whom there are too many: as long as all are from networks with a fair share
each, whoever comes waits. A network that has more loses its oldest newcomer to one from a network that has fewer, until
they have the same; and within a network that has more, an address to an address. An honest fleet behind one address
that fills all places loses one of them for each device that comes from elsewhere, and that one comes again.

The places are looked through when somebody comes whom there is none for, a few times a second: nobody else pays.

Rules
-----
1. A network's fair share is one of `SHARES`: nobody in it is put out as long as it has no more.
2. Nobody is put out for one who would then be in the same place: the difference must be two.
3. Who has come since that moment is put out by nobody: his descriptor is not known here.
4. No I/O, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from broker.strangers import Network, Source

SHARES: Final = 32


class Crowd:
    """All places of one moment: where those who have them are from, the oldest first."""

    __slots__ = ("_addresses", "_fair", "_heavy", "_sizes")

    def __init__(self, places: Mapping[int, Source]) -> None:
        self._fair = len(places) // SHARES
        self._sizes: dict[Network, int] = {}
        self._addresses: dict[Network, dict[Source, deque[int]]] = {}
        for descriptor, source in places.items():
            network = source.network
            self._sizes[network] = self._sizes.get(network, 0) + 1
            self._addresses.setdefault(network, {}).setdefault(source, deque()).append(descriptor)
        self._heavy = [each for each, size in self._sizes.items() if size > self._fair]

    def makes_room(self, source: Source) -> int | None:
        """Return the descriptor of who is to go for a newcomer from *source*, who then has that place, or None."""
        theirs = self._heaviest()
        if theirs is None:
            return None
        ours, sizes = source.network, self._sizes
        if sizes[theirs] < sizes.get(ours, 0) + 2:
            if sizes.get(ours, 0) <= self._fair:
                return None
            theirs = ours
        addresses = self._addresses.get(theirs, {})
        most = max(addresses, key=lambda each: len(addresses[each]), default=None)
        if most is None or not addresses[most]:
            return None
        if theirs is ours and len(addresses[most]) < len(addresses.get(source, ())) + 2:
            return None
        sizes[theirs] -= 1
        sizes[ours] = sizes.get(ours, 0) + 1
        return addresses[most].popleft()

    def _heaviest(self) -> Network | None:
        """Return the network with most places, of those that have more than is fair: there are fewer than `SHARES`."""
        heavy = [each for each in self._heavy if self._sizes[each] > self._fair]
        return max(heavy, key=lambda each: self._sizes[each], default=None)
