"""Which target the options of `fleet-sim attack` and `revocation` name: one that is started, or one that runs already.

A broker that runs is attacked with its CA's key, with an operator's credential for its provisioning service, or both:
the key signs what no service would, the operator revokes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import typer

from device_sim.attack import capabilities as claims
from device_sim.attack.against import Against, Opened
from device_sim.attack.issuer import Issuer
from device_sim.attack.target import SigningRegistrar, Target
from device_sim.broker_words import HOST as LOCALHOST
from device_sim.link.endpoint import endpoint_of


@dataclass(frozen=True, slots=True)
class Given:
    """What the options say of a broker that runs already; each field is named after its option."""

    server_name: str | None
    cafile: Path | None
    ca_cert: Path | None
    ca_key: Path | None
    provisioning: str | None
    cert: Path | None
    key: Path | None
    capabilities: Path | None


def chosen(against: Against | None, where: tuple[str, int] | None, given: Given, *, tls12: bool) -> Opened:
    """Return the target that the options name: the broker at *where*, or one that is started. `typer.BadParameter`."""
    if where is None:
        if any(astuple(given)):
            raise typer.BadParameter(
                "--server-name, --cafile, --ca-cert, --ca-key, --provisioning, --cert, --key, --capabilities: "
                "for a broker given by --broker"
            )
        return (against or Against.FLEETGATE).opened(tls12=tls12)
    if against is not None:
        raise typer.BadParameter("--against starts a broker, --broker names one that runs: leave one of them out")
    if (given.ca_cert is None) != (given.ca_key is None):
        raise typer.BadParameter("--ca-cert and --ca-key go together: name both")
    host, port = where
    name = given.server_name or (LOCALHOST if _is_address(host) else host)
    if given.provisioning is not None or given.cert is not None or given.key is not None:
        return _with_operator(given, host, port, name)
    if given.cafile is None or given.ca_cert is None or given.ca_key is None:
        raise typer.BadParameter(
            "--broker: give --cafile, and --ca-cert and --ca-key, or --provisioning, --cert and --key, or all of them"
        )
    anchors, certificate, key = given.cafile, given.ca_cert, given.ca_key

    @asynccontextmanager
    async def opened(_directory: Path) -> AsyncIterator[Target]:
        claimed = claims.load(given.capabilities) if given.capabilities is not None else claims.EVERYTHING
        issuer = Issuer.load(certificate, key)
        registrar = SigningRegistrar(issuer, claimed.revocation)
        yield Target(claimed, await endpoint_of(host, port, name), anchors, issuer, registrar)

    return opened


def _with_operator(given: Given, host: str, port: int, name: str) -> Opened:
    if given.provisioning is None or given.cafile is None or given.cert is None or given.key is None:
        raise typer.BadParameter("--provisioning, --cafile, --cert and --key go together: name all four")
    # Late: the other ways need nothing of it.
    from device_sim.attack.running_fleetgate import AS_SHIPPED, Service, running_fleetgate
    from provisioning.pki.tls import CredentialFiles

    service = Service(given.provisioning, given.cafile, CredentialFiles(given.cert, given.key))

    @asynccontextmanager
    async def opened(_directory: Path) -> AsyncIterator[Target]:
        claimed = claims.load(given.capabilities) if given.capabilities is not None else AS_SHIPPED
        issuer = None if given.ca_cert is None or given.ca_key is None else Issuer.load(given.ca_cert, given.ca_key)
        async with running_fleetgate(service, await endpoint_of(host, port, name), issuer, claimed) as target:
            yield target

    return opened


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
