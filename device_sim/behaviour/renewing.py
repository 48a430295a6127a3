"""A device that renews its certificate after two thirds of its lifetime, by the device's own clock.

The lifetime counts from when the device gets the certificate. notBefore lies minutes earlier, which would be most of
the lifetime of a certificate valid for minutes: its holder would renew without end.

The time is drawn once per certificate, so that a fleet enrolled in one night does not renew in one night. A wrong clock
makes renewal too early or too late; too late means an expired certificate and a correct refusal.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import timedelta

from device_sim.behaviour.behaviour import Acting, Behaviour, Host
from device_sim.link.link import Link, Terms
from device_sim.randomness import randomness_of
from device_sim.scenario.groups import Clock, Renewal


@dataclass(frozen=True, slots=True)
class Renewing(Behaviour):
    """See `device_sim.scenario.groups.Renewal`."""

    renewal: Renewal
    clock: Clock | None
    accompanies = True

    async def accompany(self, device: Acting, link: Link, host: Host) -> None:
        """Renew when due, if the connection lasts that long; otherwise the next connection keeps waiting."""
        held = device.credential
        if held is None:
            raise RuntimeError(f"{device.name} is connected without a certificate")
        source = randomness_of(host.seed, device.name, f"renewal {held.serial}")
        share = self.renewal.after + source.uniform(-self.renewal.jitter, self.renewal.jitter)
        due = held.held_since + share * (held.not_after - held.held_since)
        offset = timedelta(seconds=self.clock.offset) if self.clock is not None else timedelta()
        seconds = max(0.0, (due - (host.now() + offset)).total_seconds())
        due_at = time.monotonic() + seconds
        await asyncio.wait([link.closed], timeout=seconds)
        if not link.closed.done():
            await host.renew(device, due_at)


@dataclass(frozen=True, slots=True)
class WrongClock(Behaviour):
    """See `device_sim.scenario.groups.Clock`."""

    clock: Clock

    def terms(self, device: Acting, terms: Terms) -> Terms:
        """Check the broker's certificate against the wrong time."""
        del device
        return replace(terms, clock_offset=self.clock.offset)
