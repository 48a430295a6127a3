"""Debian's mosquitto, open to everybody, without TLS or a policy: behind a proxy with one fault.

It is the proxy that devices have to show a certificate to (`tests.support.one_fault`).
"""

from __future__ import annotations

import os
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from device_sim.attack.foreign_server import DOMAIN, Papers
from device_sim.attack.mosquitto_target import CAPABILITIES, LIMITS
from device_sim.attack.target import SigningRegistrar, Target
from device_sim.credentials.credential import HeldCredential
from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from device_sim.link.tls_dial import Endpoint
from device_sim.stage.foreign_process import LOOPBACK, free_port, program, serving
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.one_fault import OneFault, proxied, with_fault

_CONFIG = """\
allow_anonymous true
listener {port} 127.0.0.1
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
    papers = Papers(directory)
    async with (
        _running(directory) as (endpoint, _),
        proxied(endpoint, papers.issuer, papers.ca, fault, plain=True) as at_proxy,
    ):
        yield Behind(at_proxy, papers)


@asynccontextmanager
async def target_with_fault(directory: Path, fault: OneFault) -> AsyncIterator[Target]:
    """Yield it as a target of `fleet-sim delivery`, with this *fault*."""
    papers = Papers(directory)
    async with _running(directory, LIMITS) as (endpoint, process):
        registrar = SigningRegistrar(papers.issuer, None)
        target = papers.target(CAPABILITIES, endpoint.port, registrar, process, "", tls12=False)
        async with with_fault(target, fault, plain=True) as faulty:
            yield faulty


@asynccontextmanager
async def _running(directory: Path, limits: str = "") -> AsyncIterator[tuple[Endpoint, Process]]:
    port, config = free_port(), directory / "mosquitto.conf"
    config.write_text(_CONFIG.format(port=port) + limits + "user root\n" * (os.geteuid() == 0))
    command = [program("mosquitto", "mosquitto"), "-c", str(config)]
    async with serving("mosquitto", command, log=directory / "mosquitto.log", ready="running") as process:
        yield Endpoint(LOOPBACK, port, "localhost"), process
