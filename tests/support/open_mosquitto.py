"""Debian's mosquitto, open to all clients of the test's CA, without a policy: behind a proxy with one fault."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from device_sim.attack.foreign_server import DOMAIN, Papers
from device_sim.credentials.credential import HeldCredential
from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from device_sim.link.tls_dial import Endpoint
from device_sim.stage.foreign_process import LOOPBACK, free_port, program, serving
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.one_fault import OneFault, proxied

_CONFIG = """\
allow_anonymous true
listener {port} 127.0.0.1
cafile {directory}/anchors.pem
certfile {directory}/broker.crt
keyfile {directory}/broker.key
require_certificate true
"""


@dataclass(frozen=True)
class Behind:
    """The broker's address, and the CA of the allowed clients."""

    endpoint: Endpoint
    papers: Papers

    def credential(self, name: str, role: Role = Role.DEVICE) -> HeldCredential:
        group = "meters" if role is Role.DEVICE else None
        paper = self.papers.issuer.issue(Identity(DOMAIN, role, name, group))
        return HeldCredential.of(paper.certificate, paper.key)

    def fleet(self, directory: Path, devices: int) -> FleetDirectory:
        fleet = FleetDirectory.create(directory, Origin(), self.papers.issuer.pem.decode(), "backend")
        with fleet.changing():
            fleet.keep(self.credential("backend", Role.SERVICE))
            for number in range(1, devices + 1):
                fleet.keep(self.credential(f"meter-{number}"))
        return fleet


@asynccontextmanager
async def open_mosquitto(directory: Path, fault: OneFault) -> AsyncIterator[Behind]:
    """Yield a mosquitto in *directory*, with this *fault* in front of it."""
    papers, port, log = Papers(directory), free_port(), directory / "mosquitto.log"
    config = directory / "mosquitto.conf"
    config.write_text(_CONFIG.format(port=port, directory=directory) + "user root\n" * (os.geteuid() == 0))
    command = [program("mosquitto", "mosquitto"), "-v", "-c", str(config)]
    async with (
        serving("mosquitto", command, log=log, ready="running"),
        proxied(Endpoint(LOOPBACK, port, "localhost"), papers.issuer, papers.ca, fault) as endpoint,
    ):
        yield Behind(endpoint, papers)
