"""How a run is carried out, beyond what its scenario says: with which client, in how many processes, from where."""

from __future__ import annotations

import ipaddress
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from device_sim.link.driver import Driver

# Linux gives each pair of addresses 28,232 ports; those of just-closed connections are not free at once.
_DEVICES_A_SOURCE = 14_000
_MARK_BITS = 32


@dataclass(frozen=True, slots=True)
class Manner:
    """How a run is carried out, beyond what its scenario says."""

    driver: Driver = Driver.PAHO
    workers: int = 1
    sources: tuple[str, ...] = ()
    hybrid_key_exchange: bool = False
    mark: int = field(default_factory=lambda: secrets.randbits(_MARK_BITS))
    """From what the seals of its messages start (`telemetry.seal`): those of another run do not fit."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the fleet: every *of*-th device, starting from *number* (0, 1, …)."""

    number: int = 0
    of: int = 1

    def names(self, all_names: Sequence[str]) -> list[str]:
        """Return those of *all_names* that belong to it."""
        return list(all_names[self.number :: self.of])

    def quota(self, share: float, there: int) -> int:
        """Return how many of this part's *there* devices make up its portion of a *share* of the fleet.

        Parts round at different places, so that together they have what one part would have; a minimum of one goes to
        the first part.
        """
        count = math.floor(share * there + (self.of - self.number - 0.5) / self.of)
        return min(there, max(count, 1 if self.number == 0 else 0))


WHOLE = Share()
"""The only part of a fleet that is in one process."""

ONE_PROCESS = Manner()
"""paho, in this process."""


def commander_of(service: str, share: Share) -> str:
    """Return the client identifier of the backend that sends commands to the devices of *share*."""
    return service if share.of == 1 else f"{service}-w{share.number + 1}"


def receivers_of(service: str, count: int) -> list[str]:
    """Return the client identifiers of the *count* receivers of a run, the first of which is the fleet's service."""
    return [service, *(f"{service}-{number}" for number in range(2, count + 1))]


def sources_for(devices: int) -> int:
    """Return the number of local addresses over which *devices* connections to one broker should be spread."""
    return -(-devices // _DEVICES_A_SOURCE)


def has_many_sources(host: str) -> bool:
    """Whether connections to the address *host* can come from several here: IPv6 has one loopback address."""
    address = ipaddress.ip_address(host)
    return isinstance(address, ipaddress.IPv4Address) and address.is_loopback


def loopback_addresses(count: int) -> tuple[str, ...]:
    """Return *count* addresses of this machine; none for one, since the kernel then chooses it."""
    return tuple(f"127.0.0.{number}" for number in range(2, count + 2)) if count > 1 else ()
