"""Places for connections: how many there are, and whose goes when somebody comes for whom there is none.

Theory
------
A connection costs a descriptor, and 60 KB before its handshake is over; without an end to them a stranger who only
connects takes every descriptor of the service, and with them the feed from the brokers. Before TLS there is nothing to
know a newcomer by but its address, which a whole fleet may share. So nobody is turned away for where he comes from
while there is room, and where there is none, he has the place of whoever has kept silent for longest: a client asks
within milliseconds after it has come, and who only holds places does not.

Rules
-----
1. One address has half of the places at most, one network three quarters. An IPv6 address counts as its /64: that is
   what one subscriber gets; its network is its /48, and in IPv4 the /24: whoever has one has all its addresses.
2. A newcomer whose address has its half takes the place of that address's longest silent connection, one whose network
   has its three quarters of that network's; when all are taken, of the longest silent one of all.
3. Whoever is being answered keeps his place; who lets his answers wait is silent from then on, until he takes them.
   Where nobody is silent the newcomer is turned away.
4. No clock, and no I/O but `hang_up`.
"""

from __future__ import annotations

import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable

from provisioning.pki.address_key import address_key, network_of

Keys = tuple[bytes, bytes]
"""Of an address: what it counts as, and its network."""


class _Source:
    """One address, or what counts as one; or one network."""

    __slots__ = ("silent", "taken")

    def __init__(self) -> None:
        self.taken = 0
        self.silent: OrderedDict[Place, None] = OrderedDict()


class Place:
    """One connection's place: silent from the first, until a whole request is there."""

    __slots__ = ("_cut", "_keys", "_places")

    def __init__(self, places: Places, keys: Keys, cut: Callable[[], None]) -> None:
        self._places = places
        self._keys = keys
        self._cut = cut

    def silent(self) -> None:
        """Take note that nothing is asked any more, as what was is answered; or not as a whole: from now on."""
        self._places._silence(self, self._keys)  # noqa: SLF001 - two halves of one thing

    def asks(self) -> None:
        """Take note that a whole request is there."""
        self._places._asked(self, self._keys)  # noqa: SLF001

    def leave(self) -> None:
        """Give it back; nothing if that was done."""
        self._places._left(self, self._keys)  # noqa: SLF001

    def lose(self) -> None:
        """Give it back to somebody else: the connection ends."""
        self.leave()
        self._cut()


class Places:
    """All of them."""

    def __init__(self, most: int) -> None:
        """There are *most*, two at least."""
        self._most = most
        self._most_of = (most // 2, most - most // 4)
        self._sources: dict[bytes, _Source] = {}
        self._silent: OrderedDict[Place, None] = OrderedDict()
        self._held: set[Place] = set()
        self.lost = 0
        """How many connections have lost theirs to somebody else."""
        self.turned_away = 0
        """How many newcomers there was none for."""

    def __len__(self) -> int:
        return len(self._held)

    def take(self, host: str, cut: Callable[[], None]) -> Place | None:
        """Return a place for a newcomer from *host*, None if there is none; *cut* ends the connection that has it."""
        keys = address_key(host), network_of(host).encode()
        for key, most in zip(keys, self._most_of, strict=True):
            source = self._sources.get(key)
            if source is not None and source.taken >= most:
                room = self._make_room(source.silent)
                break
        else:
            room = len(self._held) < self._most or self._make_room(self._silent)
        if not room:
            self.turned_away += 1
            return None
        place = Place(self, keys, cut)
        for key in keys:
            self._sources.setdefault(key, _Source()).taken += 1
        self._held.add(place)
        self._silence(place, keys)
        return place

    def _make_room(self, silent: OrderedDict[Place, None]) -> bool:
        if not silent:
            return False
        self.lost += 1
        next(iter(silent)).lose()
        return True

    def _silence(self, place: Place, keys: Keys) -> None:
        if place not in self._held:
            return
        for silent in (self._silent, *(self._sources[key].silent for key in keys)):
            silent[place] = None
            silent.move_to_end(place)

    def _asked(self, place: Place, keys: Keys) -> None:
        if place in self._held:
            self._silent.pop(place, None)
            for key in keys:
                self._sources[key].silent.pop(place, None)

    def _left(self, place: Place, keys: Keys) -> None:
        if place not in self._held:
            return
        self._asked(place, keys)
        self._held.remove(place)
        for key in keys:
            source = self._sources[key]
            source.taken -= 1
            if not source.taken:
                del self._sources[key]


def hang_up(accepted: socket.socket) -> None:
    """End a connection as if its peer had: whoever has it now, a handshake or a protocol, hears so. For `take`."""
    with contextlib.suppress(OSError):  # It is over.
        accepted.shutdown(socket.SHUT_RDWR)
