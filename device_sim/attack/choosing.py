"""Which target the options of `fleet-sim attack` and `revocation` name: one to start, or one already running.

A running broker is attacked with its CA's key, with an operator's credential for its provisioning service, or both: the
key signs what no service would sign, the operator revokes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import typer

from device_sim.attack import capabilities as claims
from device_sim.attack.against import Against, Opened
from device_sim.attack.crl_in_use import CrlInUse
from device_sim.attack.given import Given
from device_sim.attack.issuer import Issuer
from device_sim.attack.target import SigningRegistrar, Target
from device_sim.broker_words import HOST as LOCALHOST
from device_sim.broker_words import named
from device_sim.link.endpoint import carried, endpoint_of, path_asked
from device_sim.view import View


def chosen(given: Given, *, tls12: bool) -> Opened:
    """Return the target that the options name: a running broker, or one to start. Raises `typer.BadParameter`."""
    try:
        path = path_asked(given.websocket, given.path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    where = named(given.broker, given.host, given.port)
    if where is None:
        if given.of_a_running_one:
            options = ", ".join(given.of_a_running_one)
            raise typer.BadParameter(f"{options}: for a broker given by --broker")
        return (given.against or Against.FLEETGATE).opened(tls12=tls12, websocket=given.websocket)
    if given.against is not None:
        raise typer.BadParameter("--against starts a broker, --broker names one that runs: leave one of them out")
    if (given.ca_cert is None) != (given.ca_key is None):
        raise typer.BadParameter("--ca-cert and --ca-key go together: name both")
    host, port = where
    name = given.server_name or (LOCALHOST if _is_address(host) else host)
    if given.provisioning is not None or given.cert is not None or given.key is not None:
        return _with_operator(given, host, port, name, path)
    if given.cafile is None or given.ca_cert is None or given.ca_key is None:
        raise typer.BadParameter(
            "--broker: give --cafile, and --ca-cert and --ca-key, or --provisioning, --cert and --key, or all of them"
        )
    anchors, certificate, key = given.cafile, given.ca_cert, given.ca_key

    @asynccontextmanager
    async def opened(_directory: Path) -> AsyncIterator[Target]:
        claimed = claims.load(given.capabilities) if given.capabilities is not None else claims.EVERYTHING
        issuer = Issuer.load(certificate, key)
        before = None if claimed.revocation is None else CrlInUse(claimed.revocation, issuer)
        registrar = SigningRegistrar(issuer, claimed.revocation, before=before)
        endpoint = carried(await endpoint_of(host, port, name), path)
        target = Target(claimed, endpoint, anchors, issuer, registrar)
        try:
            yield target
        finally:
            target.not_put_back = await registrar.put_back()
            if target.not_put_back:
                View().said(target.not_put_back)

    return opened


def _with_operator(given: Given, host: str, port: int, name: str, path: str | None) -> Opened:
    if given.provisioning is None or given.cafile is None or given.cert is None or given.key is None:
        raise typer.BadParameter("--provisioning, --cafile, --cert and --key go together: name all four")
    # Late: the other ways do not need it.
    from device_sim.attack.running_fleetgate import AS_SHIPPED, Service, running_fleetgate
    from provisioning.pki.tls import CredentialFiles

    service = Service(given.provisioning, given.cafile, CredentialFiles(given.cert, given.key))

    @asynccontextmanager
    async def opened(_directory: Path) -> AsyncIterator[Target]:
        claimed = claims.load(given.capabilities) if given.capabilities is not None else AS_SHIPPED
        issuer = None if given.ca_cert is None or given.ca_key is None else Issuer.load(given.ca_cert, given.ca_key)
        endpoint = carried(await endpoint_of(host, port, name), path)
        async with running_fleetgate(service, endpoint, issuer, claimed) as target:
            yield target

    return opened


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
