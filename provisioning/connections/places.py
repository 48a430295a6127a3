"""Places for connections: a bounded number, and which connection is closed when a new one comes and none is free.

Theory
------
A connection costs a descriptor, and 60 KB before its handshake is over; without a limit a stranger who only
connects takes every descriptor of the service, and so the feed from the brokers. Before TLS a new connection is known
only by its address, which a whole fleet may share. So while there is room nobody is refused because of an address,
and when there is none, a new connection takes the place of the one that has been silent longest: a client sends a
request within milliseconds, and one that only holds places does not.

An address is known where somebody was answered for whom others should make room, such as an operator. Strangers may
come faster than a handshake ends; they crowd out each other first.

Rules
-----
1. One address has at most half of the places, one network three quarters. An IPv6 address counts as its /64, which is
   what one subscriber gets; its network is its /48, and in IPv4 the /24: one owner usually has all its addresses.
2. A new connection whose address has its half replaces that address's longest silent connection, one whose network
   has its three quarters that network's; when all places are taken, the longest silent one of all.
3. Of the silent ones, those of known addresses make room when there are no others. What is known is bounded: the
   address that has shown nothing for longest is forgotten. One party makes `MOST_OF_ONE` known at most, its latest:
   or else whoever has stolen its key would come before strangers from all his addresses, and still when it is revoked.
4. A connection that is being answered keeps its place; one whose client does not read its answers counts as silent
   until it does. If no connection is silent, the new one is refused.
5. No clock, and no I/O but `hang_up`.
"""

from __future__ import annotations

import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from provisioning.pki.address_key import address_key, network_of

_MOST_KNOWN: Final = 10_000
MOST_OF_ONE: Final = 16
"""Known addresses of one party."""

Keys = tuple[bytes, bytes]
"""An address's counting key, and its network."""


class KnownAddresses:
    """Counting keys of addresses where somebody was answered for whom others should make room."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, str], None] = OrderedDict()
        """An address, and who was answered there; the one that has shown nothing for longest first."""
        self._of_party: dict[str, OrderedDict[bytes, None]] = {}
        """The same by party."""
        self._parties: dict[bytes, int] = {}
        """How many were answered at an address."""

    def __contains__(self, key: bytes) -> bool:
        return key in self._parties

    def add(self, key: bytes, who: str) -> None:
        """Note that the party *who*, such a one, was answered at *key* just now."""
        theirs = self._of_party.setdefault(who, OrderedDict())
        if key not in theirs:
            self._parties[key] = self._parties.get(key, 0) + 1
        theirs[key] = self._known[key, who] = None
        theirs.move_to_end(key)
        self._known.move_to_end((key, who))
        if len(theirs) > MOST_OF_ONE:
            self._forget(next(iter(theirs)), who)
        if len(self._known) > _MOST_KNOWN:
            self._forget(*next(iter(self._known)))

    def _forget(self, key: bytes, who: str) -> None:
        del self._known[key, who], self._of_party[who][key]
        if not self._of_party[who]:
            del self._of_party[who]
        self._parties[key] -= 1
        if not self._parties[key]:
            del self._parties[key]


class _Silent:
    """Silent connections, in the order in which they make room."""

    __slots__ = ("_known", "_others")

    def __init__(self) -> None:
        self._others: OrderedDict[Place, None] = OrderedDict()
        self._known: OrderedDict[Place, None] = OrderedDict()

    def order(self, *, is_known: bool) -> OrderedDict[Place, None]:
        """Return that of the connections from known addresses, or of the others."""
        return self._known if is_known else self._others

    def first(self) -> Place | None:
        """Return which one makes room; None: there is none."""
        return next(iter(self._others or self._known), None)


class _Source:
    """One address, or /64; or one network."""

    __slots__ = ("silent", "taken")

    def __init__(self) -> None:
        self.taken = 0
        self.silent = _Silent()


class Place:
    """One connection's place: silent from the start, until a complete request has arrived."""

    __slots__ = ("_cut", "_keys", "_orders", "_places")

    def __init__(
        self, places: Places, keys: Keys, cut: Callable[[], None], orders: Sequence[OrderedDict[Place, None]]
    ) -> None:
        """*orders* are those that it is in while it is silent: of all, of its address, of its network."""
        self._places = places
        self._keys = keys
        self._cut = cut
        self._orders = orders

    @property
    def address(self) -> bytes:
        """The counting key of its address."""
        return self._keys[0]

    def silent(self) -> None:
        """Note that from now on no complete request is pending."""
        if self._places.holds(self):
            for order in self._orders:
                order[self] = None
                order.move_to_end(self)

    def asks(self) -> None:
        """Note that a complete request has arrived."""
        for order in self._orders:
            order.pop(self, None)

    def vouch(self, who: str) -> None:
        """Note that others should make room for *who* is answered here; also at his next connection."""
        self._places.known.add(self._keys[0], who)

    def leave(self) -> None:
        """Give it back; no effect if that was done."""
        for order in self._orders:
            order.pop(self, None)
        self._places._left(self, self._keys)  # noqa: SLF001 - two halves of one thing

    def lose(self) -> None:
        """Give it up to a new connection: this one ends."""
        self.leave()
        self._cut()


class Places:
    """All of them."""

    def __init__(self, most: int, known: KnownAddresses | None = None) -> None:
        """There are *most*, two at least; *known* are the known addresses, if other places have the same."""
        self.most: Final = most
        self.known: Final = KnownAddresses() if known is None else known
        self._most_of = (most // 2, most - most // 4)
        self._sources: dict[bytes, _Source] = {}
        self._silent = _Silent()
        self._held: set[Place] = set()
        self.lost = 0
        """How many connections have lost their place to a new one."""
        self.turned_away = 0
        """How many new connections were refused."""

    def __len__(self) -> int:
        return len(self._held)

    def take(self, host: str, cut: Callable[[], None]) -> Place | None:
        """Return a place for a new connection from *host*, None if there is none; *cut* closes that connection."""
        keys = address_key(host), network_of(host).encode()
        for key, most in zip(keys, self._most_of, strict=True):
            source = self._sources.get(key)
            if source is not None and source.taken >= most:
                room = self._make_room(source.silent)
                break
        else:
            room = len(self._held) < self.most or self._make_room(self._silent)
        if not room:
            self.turned_away += 1
            return None
        sources = [self._sources.setdefault(key, _Source()) for key in keys]
        silent = (self._silent, *(source.silent for source in sources))
        is_known = keys[0] in self.known
        place = Place(self, keys, cut, [each.order(is_known=is_known) for each in silent])
        for source in sources:
            source.taken += 1
        self._held.add(place)
        place.silent()
        return place

    def _make_room(self, silent: _Silent) -> bool:
        place = silent.first()
        if place is None:
            return False
        self.lost += 1
        place.lose()
        return True

    def holds(self, place: Place) -> bool:
        """Whether *place* was not given back."""
        return place in self._held

    def _left(self, place: Place, keys: Keys) -> None:
        if place not in self._held:
            return
        self._held.remove(place)
        for key in keys:
            source = self._sources[key]
            source.taken -= 1
            if not source.taken:
                del self._sources[key]


def hang_up(accepted: socket.socket) -> None:
    """End a connection as if its peer had: its current owner, a handshake or a protocol, is notified. For `take`."""
    with contextlib.suppress(OSError):  # It is over.
        accepted.shutdown(socket.SHUT_RDWR)
