"""Clients that are not admitted yet, by address: which are refused before TLS begins.

Theory
------
Before TLS nothing is known of a newcomer but its address, and a whole fleet may share one (NAT, a gateway). So an
address is not charged for connections but for connections that led to *nothing*: each newcomer takes one from its
address' allowance, and returns it when admitted. Ten thousand good devices that reconnect at once from one address use
none of it; a client without a certificate uses it up, and then costs an accept and a close.

The allowance is a leaky bucket: an attempt is forgotten after a while (`failed_attempt_recovery`). A network has one
too, of `ADDRESSES_OF_NETWORK` addresses: an IPv6 site has 65,536 addresses, and a rack has a /24.

Rules
-----
1. An IPv6 address counts as its /64, which is what one subscriber gets. An IPv4-mapped IPv6 address is an IPv4 one. The
   network is the /48 in IPv6, the /24 in IPv4.
2. Bounded: an address is forgotten once it has no failures and no newcomers, in places or waiting; beyond `_MOST`
   addresses, all others share one allowance. A network is known as long as one of its addresses is, or it has
   failures.
3. What can be forgotten is looked for every `_SWEEP_SECONDS`, in portions, one for each newcomer: whoever has very many
   addresses decides how many there are, and looking at all of them at once would make every client wait.
4. No I/O, no clock.
"""

from __future__ import annotations

from typing import Final, TypeVar

from broker.settings.limits import Limits
from provisioning.pki.address_key import address_key, network_of

Key = TypeVar("Key")

ADDRESSES_OF_NETWORK: Final = 4
"""All addresses of a network together may fail as often as this many single addresses."""

_MOST = 50_000
_SWEEP_SECONDS: Final = 10.0
_PORTION: Final = 16
"""Addresses, and networks, that are looked at for one newcomer: some microseconds."""


class _Tally:
    """How many have come from one source, and how many of them led to nothing."""

    __slots__ = ("_addresses", "_failures", "_since", "under_way")

    def __init__(self, addresses: int, now: float) -> None:
        """Recover at the rate of *addresses* addresses."""
        self._addresses = addresses
        self.under_way = 0
        """How many have a place and are not admitted yet."""
        self._failures = 0.0
        self._since = now

    def failures(self, limits: Limits, now: float) -> float:
        """Return how many attempts have led to nothing, less those forgotten; those under way are included."""
        left = self._failures - (now - self._since) * limits.failed_attempt_recovery * self._addresses
        self._failures = max(left, float(self.under_way))
        self._since = now
        return self._failures

    def arrive(self, limits: Limits, now: float) -> None:
        """Take one from the allowance."""
        self._failures = self.failures(limits, now) + 1.0
        self.under_way += 1

    def leave(self, *, admitted: bool) -> None:
        """Take note that one is no longer under way; an *admitted* one returns what it took."""
        self.under_way -= 1
        if admitted:
            self._failures -= 1.0


class Network(_Tally):
    """All addresses of one network together."""

    __slots__ = ("known", "name")

    def __init__(self, name: str, now: float) -> None:
        super().__init__(ADDRESSES_OF_NETWORK, now)
        self.name = name
        self.known = 0
        """How many of its addresses are known."""


class Source(_Tally):
    """One address, or what counts as one, within its network."""

    __slots__ = ("left_told_at", "network", "told_at", "waiting")

    def __init__(self, network: Network, now: float) -> None:
        super().__init__(1, now)
        self.network = network
        self.waiting = 0
        """How many wait for a place."""
        self.told_at = -1e9
        """When the log last reported that its connections are closed."""
        self.left_told_at = -1e9
        """When the log last reported that its clients leave before TLS begins."""

    def refuses(self, limits: Limits, now: float) -> str | None:
        """Return why connections from here are refused now, or None."""
        failures = self.failures(limits, now)
        if failures > limits.max_failed_attempts - 1:  # A whole attempt must be left.
            return f"{failures:.0f} connections from this address were not admitted"
        failures = self.network.failures(limits, now)
        if failures > limits.max_failed_attempts * ADDRESSES_OF_NETWORK - 1:
            return f"{failures:.0f} connections from {self.network.name} were not admitted"
        return None

    def arrive(self, limits: Limits, now: float) -> None:
        """Take one from this allowance, and one from the network's."""
        super().arrive(limits, now)
        self.network.arrive(limits, now)

    def leave(self, *, admitted: bool) -> None:
        """Take note that one is no longer under way; an *admitted* one returns what it took."""
        super().leave(admitted=admitted)
        self.network.leave(admitted=admitted)


class Strangers:
    """All addresses with recent newcomers."""

    __slots__ = ("_networks", "_others", "_sources", "_swept_at", "_unseen", "_unseen_networks")

    def __init__(self, now: float) -> None:
        self._sources: dict[bytes, Source] = {}
        self._networks: dict[str, Network] = {}
        self._unseen: list[bytes] = []
        """The addresses that the present sweep has not looked at yet; behind them come the networks."""
        self._unseen_networks: list[str] = []
        self._others = Source(Network("addresses beyond those that are counted", now), now)
        self._swept_at = now

    def __len__(self) -> int:
        return len(self._sources)

    def source(self, host: str, limits: Limits, now: float) -> Source:
        """Return what is known of the address *host*."""
        self._sweep(limits, now)
        key = address_key(host)
        found = self._sources.get(key)
        if found is None:
            if len(self._sources) >= _MOST:
                return self._others
            name = network_of(host)
            network = self._networks.get(name)
            if network is None:
                network = self._networks[name] = Network(name, now)
            found = self._sources[key] = Source(network, now)
            network.known += 1
        return found

    def _sweep(self, limits: Limits, now: float) -> None:
        """Forget who has been idle, of a portion of all; begin again when it is time to."""
        if not self._unseen_networks:
            if now - self._swept_at <= _SWEEP_SECONDS:
                return
            self._swept_at = now
            self._unseen, self._unseen_networks = list(self._sources), list(self._networks)
        for key in _taken(self._unseen):
            source = self._sources[key]
            if not source.under_way and not source.waiting and source.failures(limits, now) <= 0:
                source.network.known -= 1
                del self._sources[key]
        if self._unseen:
            return
        for name in _taken(self._unseen_networks):
            network = self._networks[name]
            if not network.known and network.failures(limits, now) <= 0:
                del self._networks[name]


def _taken(unseen: list[Key]) -> list[Key]:
    """Take the next portion out of *unseen*, and return it."""
    portion = unseen[-_PORTION:]
    del unseen[-_PORTION:]
    return portion
