"""What all devices of a fleet share: the broker's address, the trust anchors, and the counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from device_sim.credentials.credential import HeldCredential
from device_sim.link.driver import Driver
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import ORDINARY, Terms
from device_sim.link.shared_context import SharedContext
from device_sim.link.tls_dial import Endpoint
from device_sim.scenario.metrics import Duration


@dataclass(slots=True)
class Counters:
    """What a whole fleet did; all devices add to the same object."""

    published: int = 0
    acknowledged: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Messages that the broker refused, by the reason code of its PUBACK."""
    held_back: int = 0
    missed: int = 0
    """Readings that were due while their device was out: it was to be connected, and was not."""
    altered: int = 0
    """Commands that have not arrived as the backend has sent them."""
    repeated: int = 0
    reconnections: int = 0
    sessions_resumed: int = 0
    sessions_lost: int = 0
    takeovers: int = 0
    copies_admitted: int = 0
    copies_refused: int = 0
    stalls: int = 0
    sleeps: int = 0
    renewed: int = 0
    failed_renewals: int = 0


Record = Callable[[Duration, float, float], None]
"""Called with a measured duration: which one, its seconds, and by how many seconds it began late."""


def unrecorded(_metric: Duration, _seconds: float, _late: float) -> None:
    """Record nothing."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all devices of a fleet share: the broker's address, the trust anchors, and keep-alive handling.

    *context* holds the trust anchors and no credential; each device adds its own when it connects.
    """

    endpoint: Endpoint
    context: SharedContext
    keep_alive: KeepAlive
    counters: Counters
    seed: int
    mark: int = 0
    """From what the seals of the run's messages start (`telemetry.seal`)."""
    terms: Terms = ORDINARY
    record: Record = unrecorded
    sources: tuple[str, ...] = ()
    """Local addresses that the devices share: each provides 28,232 ports."""
    driver: Driver = Driver.PAHO
    renew: Callable[[HeldCredential], Awaitable[HeldCredential]] | None = None
    """Renews and stores a certificate; raises as `credential.renew`. None where there is no service."""
