"""Whose place a newcomer has when all are taken: of the network that has most of them.

Theory
------
Who is silent on purpose holds a place until `handshake_timeout`, and looks like a good device on a slow link. So it is
not the silent who make room but those of whom there are too many. A network that has more than its fair share loses its
oldest newcomer to one from a network that has fewer, until they have the same; and within a network that has more, an
address to an address. An honest fleet behind one address that fills all places loses one of them for each device that
comes from elsewhere, and that one comes again.

Somebody may have so many networks that each keeps within its share. So where none has more, those are counted who have
had `PATIENCE` to say who they are: the network with most of them loses its oldest to one from a network that has fewer.
A fleet that comes back through many networks is through its handshakes before that, and loses nobody.

The places are looked through when somebody comes whom there is none for, once a turn at most: nobody else pays.

Rules
-----
1. A network's fair share is one of `SHARES`: nobody in it is put out within `PATIENCE` as long as it has no more.
2. Nobody is put out for one who would then be in the same place: the difference must be two. Who is not late is not
   counted there: else some who always come anew would stand before all the others.
3. Who has come since that moment is put out by nobody: his descriptor is not known here.
4. However many networks and addresses there are, a newcomer is answered in the same time (`broker.door.most`).
5. No I/O, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from broker.door.most import Most
from broker.door.strangers import Network, Source

SHARES: Final = 32
PATIENCE: Final = 1.0
"""Seconds in which a handshake is over, on all but the slowest links."""


class Crowd:
    """All places of one moment: where those who have them are from, the oldest first."""

    __slots__ = ("_addresses", "_fair", "_heavy", "_late", "_most_late", "_most_of", "_sizes", "_waited")

    def __init__(self, places: Mapping[int, tuple[Source, float]], now: float) -> None:
        """Take of each descriptor where it is from and since when it has its place."""
        self._fair = len(places) // SHARES
        self._sizes: dict[Network, int] = {}
        self._addresses: dict[Network, dict[Source, deque[int]]] = {}
        self._most_of: dict[Network, Most[Source]] = {}
        """Which of its addresses has most, of the networks that were asked about."""
        self._late: dict[Network, deque[tuple[int, Source]]] = {}
        self._waited: set[int] = set()
        """The descriptors of those who are late, and still here."""
        before = now - PATIENCE
        for descriptor, (source, since) in places.items():
            network = source.network
            self._sizes[network] = self._sizes.get(network, 0) + 1
            self._addresses.setdefault(network, {}).setdefault(source, deque()).append(descriptor)
            if since <= before:
                self._late.setdefault(network, deque()).append((descriptor, source))
                self._waited.add(descriptor)
        self._heavy = [each for each, size in self._sizes.items() if size > self._fair]
        self._most_late = Most({network: len(late) for network, late in self._late.items()})

    @property
    def may_make_room(self) -> bool:
        """Whether there is anybody whose place a newcomer could have, from wherever he comes."""
        late = self._most_late.first()
        return self._heaviest() is not None or (late is not None and self._most_late.of(late) > 1)

    def may_make_room_for(self, ours: Network) -> bool:
        """Whether there may be anybody whose place an address of *ours* could have; if not, `makes_room` finds none."""
        theirs, has = self._heaviest(), self._sizes.get(ours, 0)
        if theirs is not None:
            return self._sizes[theirs] >= has + 2 or has > self._fair
        late = self._most_late.first()
        return late is not None and self._most_late.of(late) >= has + 2

    def makes_room(self, source: Source) -> int | None:
        """Return the descriptor of who is to go for a newcomer from *source*, who then has that place, or None."""
        ours, theirs = source.network, self._heaviest()
        if not self.may_make_room_for(ours):
            return None
        if theirs is None:
            return self._latest_of_most(ours)
        if self._sizes[theirs] < self._sizes.get(ours, 0) + 2:
            theirs = ours  # Which has more than is fair.
        most = self._most(theirs)
        first = most.first()
        if first is None or (theirs is ours and most.of(first) < most.of(source) + 2):
            return None
        return self._takes(ours, theirs, first)

    def _latest_of_most(self, ours: Network) -> int | None:
        """Take out who is late for longest in the network with most of those, if there is any."""
        theirs = self._most_late.first()
        if theirs is None:
            return None
        late = self._late[theirs]
        while late[0][0] not in self._waited:
            late.popleft()
        return self._takes(ours, theirs, late[0][1])

    def _takes(self, ours: Network, theirs: Network, source: Source) -> int:
        """Give the oldest place of *source*, in *theirs*, to *ours*; return its descriptor."""
        self._sizes[theirs] -= 1
        self._sizes[ours] = self._sizes.get(ours, 0) + 1
        self._most(theirs).take(source)
        descriptor = self._addresses[theirs][source].popleft()
        if descriptor in self._waited:
            self._waited.remove(descriptor)
            self._most_late.take(theirs)
        return descriptor

    def _most(self, network: Network) -> Most[Source]:
        most = self._most_of.get(network)
        if most is None:
            addresses = self._addresses.get(network, {})
            most = self._most_of[network] = Most({each: len(waiting) for each, waiting in addresses.items()})
        return most

    def _heaviest(self) -> Network | None:
        """Return the network with most places, of those that have more than is fair: there are fewer than `SHARES`."""
        heavy = [each for each in self._heavy if self._sizes[each] > self._fair]
        return max(heavy, key=lambda each: self._sizes[each], default=None)
