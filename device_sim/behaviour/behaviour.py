"""What a behaviour is: it changes on which terms a device connects, and accompanies each of its connections.

Theory
------
A device by itself connects, publishes, answers commands and comes back with backoff (`device_sim.fleet.live_device`). A
behaviour is anything beyond that. A group has any number of them, each an object that all its devices share: what a
behaviour draws, it draws from the device's own randomness, so that the same seed makes the same life.

Rules
-----
1. A behaviour keeps no state of a device; what has to be remembered is on the device (`Acting`).
2. `Behaviour.accompany` runs from admission to the end of the link, or until it returns; the end of the fleet cancels
   it.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import NamedTuple, Protocol

from device_sim.credentials.credential import HeldCredential
from device_sim.device import Device
from device_sim.link.link import Link, Terms


class Outcome(Enum):
    """What a device makes of a command."""

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
    """For how many seconds it stays away, of its own accord, once its connection has ended."""

    @property
    def name(self) -> str:
        """Its name."""

    async def close(self) -> None:
        """Leave the broker politely."""

    async def open_copy(self) -> Link:
        """Open a second connection with the same key under the same name. Raises `NotAdmitted`."""


class Host(Protocol):
    """The fleet as behaviours see it."""

    @property
    def seed(self) -> int:
        """The scenario's seed."""

    async def renew(self, device: Acting, due: float) -> None:
        """Let *device* renew its certificate, which was due at *due* (`time.monotonic`), and come back with it."""

    def copy_admitted(self, device: Acting, started: float) -> None:
        """Take note that a copy of *device*, which dialled at *started*, was let in."""

    def copy_refused(self, device: Acting) -> None:
        """Take note that it was not."""

    def stalled(self) -> None:
        """Take note that a device stopped reading."""

    def now(self) -> datetime:
        """Return the true time."""


class Behaviour:
    """One that does nothing; each of the others overrides what it needs."""

    accompanies = False
    """Whether `accompany` has anything to do."""

    def terms(self, device: Acting, terms: Terms) -> Terms:
        """Return on which terms *device* connects, given those of the behaviours before."""
        del device
        return terms

    def admitted(self, device: Acting, link: Link) -> None:
        """Do what is to be done at once when *link* is open."""

    def leaving(self, device: Acting, link: Link) -> None:
        """Do what is to be done before *device* says goodbye on *link*."""

    def answering(self, device: Acting, seed: int, number: int) -> Answering | None:
        """Return how *device* answers its *number*-th command; None if that is another behaviour's business."""
        del device, seed, number
        return None

    async def accompany(self, device: Acting, link: Link, host: Host) -> None:
        """Live with *link* until it ends."""
