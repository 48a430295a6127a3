"""Whose place a newcomer gets when all are taken: one of the network that has most of them.

Theory
------
A client that is silent on purpose holds a place until `handshake_timeout`, and looks like a good device on a slow link.
So it is not silent clients that are displaced, but those from networks with too many places. A network with more than
its fair share loses its oldest newcomer to one from a network with fewer, until both have the same; within a network
with more than its share, the same applies between addresses. An honest fleet behind one address that fills all places
loses one of them for each device that arrives from elsewhere, and the displaced one reconnects.

An attacker may have so many networks that each keeps within its share. So where none exceeds it, only clients that have
had `PATIENCE` to identify themselves are counted: the network with most of those loses its oldest to one from a network
with fewer. A fleet that reconnects through many networks finishes its handshakes before that, and loses nobody.

The places are searched when a newcomer finds none free, at most once per turn: other turns cost nothing.

Rules
-----
1. A network's fair share is one of `SHARES`: within it, nobody is displaced before `PATIENCE` has passed.
2. Nobody is displaced for a newcomer who would then be in the same position: the difference must be two. Where late
   clients are counted, others are not: otherwise a network with a steady stream of new ones would always come first.
3. A client that arrived after this snapshot cannot be displaced: its descriptor is not known here.
4. A newcomer is answered in constant time, however many networks and addresses there are (`broker.door.ranking`).
5. No I/O, no clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Final

from broker.door.ranking import Ranking
from broker.door.strangers import Network, Source

SHARES: Final = 32
PATIENCE: Final = 1.0
"""Seconds within which a handshake completes, on all but the slowest links."""


class Crowd:
    """A snapshot of all places: where their holders come from, the oldest first."""

    __slots__ = ("_addresses", "_came", "_fair", "_heavy", "_late", "_late_ranking", "_rankings", "_sizes", "_waited")

    def __init__(self, places: Mapping[int, tuple[Source, float]], now: float) -> None:
        """Take each descriptor's source, and the time since which it has its place."""
        self._fair = len(places) // SHARES
        self._sizes: dict[Network, int] = {}
        self._addresses: dict[Network, dict[Source, deque[int]]] = {}
        self._rankings: dict[Network, Ranking[Source]] = {}
        """For each network asked about: which of its addresses has most places."""
        self._late: dict[Network, deque[tuple[int, Source]]] = {}
        self._came: Counter[Source] = Counter()
        """How many from each address have been given a place since: they are in its network's number already."""
        self._waited: set[int] = set()
        """The descriptors of late clients that still have a place."""
        before = now - PATIENCE
        for descriptor, (source, since) in places.items():
            network = source.network
            self._sizes[network] = self._sizes.get(network, 0) + 1
            self._addresses.setdefault(network, {}).setdefault(source, deque()).append(descriptor)
            if since <= before:
                self._late.setdefault(network, deque()).append((descriptor, source))
                self._waited.add(descriptor)
        self._heavy = [each for each, size in self._sizes.items() if size > self._fair]
        self._late_ranking = Ranking({network: len(late) for network, late in self._late.items()})

    @property
    def may_make_room(self) -> bool:
        """Whether a newcomer could get a place at all, wherever it comes from."""
        late = self._late_ranking.first()
        return self._heaviest() is not None or (late is not None and self._late_ranking.of(late) > 1)

    def may_make_room_for(self, ours: Network) -> bool:
        """Whether an address of *ours* may get a place; if False, `makes_room` finds none."""
        theirs, has = self._heaviest(), self._sizes.get(ours, 0)
        if theirs is not None:
            return self._sizes[theirs] >= has + 2 or has > self._fair
        late = self._late_ranking.first()
        return late is not None and self._late_ranking.of(late) >= has + 2

    def makes_room(self, source: Source) -> int | None:
        """Return the descriptor to displace for a newcomer from *source*, who is counted in its place, or None."""
        ours, theirs = source.network, self._heaviest()
        if not self.may_make_room_for(ours):
            return None
        if theirs is None:
            return self._longest_late(source)
        if self._sizes[theirs] < self._sizes.get(ours, 0) + 2:
            theirs = ours  # It has more than its fair share.
        ranking = self._ranking(theirs)
        first = ranking.first()
        if first is None or (theirs is ours and ranking.of(first) < ranking.of(source) + self._came[source] + 2):
            return None
        return self._takes(source, theirs, first)

    def _longest_late(self, newcomer: Source) -> int | None:
        """Take out the longest-late client of the network with most of those, if there is one."""
        theirs = self._late_ranking.first()
        if theirs is None:
            return None
        late = self._late[theirs]
        while late[0][0] not in self._waited:
            late.popleft()
        return self._takes(newcomer, theirs, late[0][1])

    def _takes(self, newcomer: Source, theirs: Network, source: Source) -> int:
        """Transfer the oldest place of *source*, in *theirs*, to *newcomer*; return its descriptor."""
        ours = newcomer.network
        self._came[newcomer] += 1
        self._sizes[theirs] -= 1
        self._sizes[ours] = self._sizes.get(ours, 0) + 1
        self._ranking(theirs).take(source)
        descriptor = self._addresses[theirs][source].popleft()
        if descriptor in self._waited:
            self._waited.remove(descriptor)
            self._late_ranking.take(theirs)
        return descriptor

    def _ranking(self, network: Network) -> Ranking[Source]:
        ranking = self._rankings.get(network)
        if ranking is None:
            addresses = self._addresses.get(network, {})
            ranking = self._rankings[network] = Ranking({each: len(waiting) for each, waiting in addresses.items()})
        return ranking

    def _heaviest(self) -> Network | None:
        """Return the network with most places among those above their fair share: there are fewer than `SHARES`."""
        heavy = [each for each in self._heavy if self._sizes[each] > self._fair]
        return max(heavy, key=lambda each: self._sizes[each], default=None)
