"""Devices that burden the broker: one that does not read what it is sent, and one whose key has been copied."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from device_sim.behaviour.behaviour import Acting, Behaviour, Host
from device_sim.link.link import Link
from device_sim.link.tls_dial import NotAdmitted
from device_sim.randomness import randomness_of
from device_sim.scenario.groups import Clone, SlowReader
from provisioning.program.shielded import shielded


@dataclass(frozen=True, slots=True)
class Stalling(Behaviour):
    """Now and then it stops reading; see `device_sim.scenario.groups.SlowReader`."""

    slow_reader: SlowReader
    accompanies = True

    async def accompany(self, device: Acting, link: Link, host: Host) -> None:
        """Stall again and again."""
        source = randomness_of(host.seed, device.name, f"stall {device.machine.dialled}")
        while not link.closed.done():
            await asyncio.wait([link.closed], timeout=source.expovariate(1.0 / self.slow_reader.every))
            if link.closed.done():
                return
            link.read_on(False)
            host.stalled()
            try:
                await asyncio.wait([link.closed], timeout=self.slow_reader.stall)
            finally:
                link.read_on(True)


@dataclass(frozen=True, slots=True)
class Cloned(Behaviour):
    """A copy of it connects under its name; see `device_sim.scenario.groups.Clone`.

    The broker lets the newer connection take over, so the two disconnect each other for as long as both live.
    """

    clone: Clone
    accompanies = True

    async def accompany(self, device: Acting, link: Link, host: Host) -> None:
        """Connect the copy once during this link; it stays until the device has taken its place back."""
        source = randomness_of(host.seed, device.name, f"clone {device.machine.dialled}")
        await asyncio.wait([link.closed], timeout=source.expovariate(1.0 / self.clone.every))
        if link.closed.done():
            return
        started = time.monotonic()
        try:
            copy = await device.open_copy()
        except NotAdmitted as error:
            if error.closure.was_let_in:
                host.copy_admitted(device, started)
            else:
                host.copy_refused(device)
            return
        host.copy_admitted(device, started)
        try:
            await shielded(copy.closed)
        finally:
            await copy.close()
