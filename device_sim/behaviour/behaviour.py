"""A behaviour: it changes the terms on which a device connects, and accompanies each of its connections.

Theory
------
By itself a device connects, publishes, answers commands and reconnects with backoff (`device_sim.fleet.live_device`). A
behaviour is anything beyond that. A group has any number of them, each one object shared by all its devices. A
behaviour draws its random numbers from the device's own generator, so the same seed gives the same life.

Rules
-----
1. A behaviour keeps no per-device state; what must be remembered is stored on the device (`Acting`).
2. `Behaviour.accompany` runs from admission to the end of the link, or until it returns; when the fleet ends, it is
   cancelled.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import NamedTuple, Protocol

from device_sim.credentials.credential import HeldCredential
from device_sim.device import Device
from device_sim.link.link import Link, Terms


class Outcome(Enum):
    """How a device responds to a command."""

    DONE = "done"
    REFUSED = "refused"
    IGNORED = "ignored"


class Answering(NamedTuple):
    """How a device answers one command."""

    delay: float = 0.0
    outcome: Outcome = Outcome.DONE


class Acting(Protocol):
    """A device as its behaviours see it."""

    machine: Device
    credential: HeldCredential | None
    away: float | None
    """How many seconds it stays away by its own choice once its connection has ended."""

    @property
    def name(self) -> str:
        """Its name."""

    async def close(self) -> None:
        """Disconnect cleanly."""

    async def open_copy(self) -> Link:
        """Open a second connection with the same key under the same name. Raises `NotAdmitted`."""


class Host(Protocol):
    """The fleet as behaviours see it."""

    @property
    def seed(self) -> int:
        """The scenario's seed."""

    async def renew(self, device: Acting, due: float) -> None:
        """Let *device* renew its certificate, which was due at *due* (`time.monotonic`), and reconnect with it."""

    def copy_admitted(self, device: Acting, started: float) -> None:
        """Record that a copy of *device*, which dialled at *started*, was admitted."""

    def copy_refused(self, device: Acting) -> None:
        """Record that a copy was refused."""

    def stalled(self) -> None:
        """Record that a device stopped reading."""

    def now(self) -> datetime:
        """Return the true time."""


class Behaviour:
    """A behaviour that does nothing; each subclass overrides what it needs."""

    accompanies = False
    """Whether `accompany` has anything to do."""

    def terms(self, device: Acting, terms: Terms) -> Terms:
        """Return the terms on which *device* connects, given those from the earlier behaviours."""
        del device
        return terms

    def admitted(self, device: Acting, link: Link) -> None:
        """Do what must be done as soon as *link* is open."""

    def leaving(self, device: Acting, link: Link) -> None:
        """Do what must be done before *device* sends DISCONNECT on *link*."""

    def answering(self, device: Acting, seed: int, number: int) -> Answering | None:
        """Return how *device* answers its *number*-th command; None leaves that to another behaviour."""
        del device, seed, number
        return None

    async def accompany(self, device: Acting, link: Link, host: Host) -> None:
        """Act on *link* until it ends."""
