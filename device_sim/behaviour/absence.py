"""Devices that are not always connected: on a bad network, or battery-powered and asleep between readings.

A network drops a connection without warning, and the device comes back when the network does. A sleeping device
disconnects cleanly; with a kept session it receives, on waking, what was sent to it meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

from device_sim.behaviour.behaviour import Acting, Behaviour, Host
from device_sim.link.link import Link, Terms
from device_sim.randomness import randomness_of
from device_sim.scenario.groups import Flap, Sleep

_SESSION_FACTOR = 4.0
"""The session is kept for this many ordinary sleeps: a device that oversleeps a little loses nothing."""


@dataclass(frozen=True, slots=True)
class Flapping(Behaviour):
    """Its network fails; see `device_sim.scenario.groups.Flap`."""

    flap: Flap
    accompanies = True

    async def accompany(self, device: Acting, link: Link, host: Host) -> None:
        """Break the connection after a while."""
        source = randomness_of(host.seed, device.name, f"flap {device.machine.dialled}")
        up, down = source.expovariate(1.0 / self.flap.up), source.expovariate(1.0 / self.flap.down)
        await asyncio.wait([link.closed], timeout=up)
        if not link.closed.done():
            device.away = down
            link.abort()


@dataclass(frozen=True, slots=True)
class Sleeping(Behaviour):
    """It sleeps and wakes; see `device_sim.scenario.groups.Sleep`."""

    sleep: Sleep
    accompanies = True

    def terms(self, device: Acting, terms: Terms) -> Terms:
        """Ask for a session that outlives the connection; first for a new one, without what an earlier run has left."""
        if not self.sleep.keep_session:
            return terms
        seconds = max(60, round(self.sleep.asleep * _SESSION_FACTOR))
        return replace(terms, clean_start=not device.machine.admitted, session_seconds=seconds)

    async def accompany(self, device: Acting, link: Link, host: Host) -> None:
        """Go to sleep after a while."""
        source = randomness_of(host.seed, device.name, f"sleep {device.machine.dialled}")
        awake, asleep = (self._around(seconds, source) for seconds in (self.sleep.awake, self.sleep.asleep))
        await asyncio.wait([link.closed], timeout=awake)
        if not link.closed.done():
            device.away = asleep
            await device.close()

    def _around(self, seconds: float, source: random.Random) -> float:
        return seconds * source.uniform(1.0 - self.sleep.jitter, 1.0 + self.sleep.jitter)
