"""`fleet-sim enrol`: make a fleet with real identities, continue one that was interrupted, or end it."""

from __future__ import annotations

import secrets
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer

from device_sim.certification import CertificateAuthority
from device_sim.enrolling import certify_fleet, end_fleet, enrol_fleet, names_of
from device_sim.evidence import Given, presenting, ways_of
from device_sim.explanation import explained
from device_sim.fleet_directory import FleetDirectory, FleetUnusable, Origin
from device_sim.interruption import Interruption, run
from device_sim.view import Progress, View
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.est import EstClient
from provisioning.pki.identity import check_name
from provisioning.pki.tls import CredentialFiles

_MOST_PARALLEL = 256


def enrol(
    directory: Annotated[Path, typer.Argument(help="The fleet's directory: new, or one to continue.")],
    devices: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many devices the fleet shall have.")] = 100,
    group: Annotated[str, typer.Option(help="Their group.")] = "meters",
    prefix: Annotated[str, typer.Option(help="What their names begin with.")] = "meter",
    provisioning: Annotated[
        str | None, typer.Option(help="Where the provisioning service is, https://…", show_default=False)
    ] = None,
    cafile: Annotated[
        Path | None, typer.Option(help="Trust anchors (ca-bundle.crt of the service).", show_default=False)
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="Operator certificate.", show_default=False)] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key.", show_default=False)] = None,
    way: Annotated[
        str,
        typer.Option(
            help="How the devices get in: token, claim, manufacturer, listed, approval, or several as claim+approval."
        ),
    ] = "token",
    claim: Annotated[
        Path | None, typer.Option(help="--way claim: the claim's certificate and key, PEM.", show_default=False)
    ] = None,
    manufacturer_cert: Annotated[
        Path | None,
        typer.Option(help="--way manufacturer: the CA that signs the devices' IDevIDs.", show_default=False),
    ] = None,
    manufacturer_key: Annotated[Path | None, typer.Option(help="Its private key.", show_default=False)] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="--way approval: approve the fleet's own requests, as an operator.")
    ] = False,
    ca_cert: Annotated[
        Path | None, typer.Option(help="Instead of a service: the certificate of a CA of yours.", show_default=False)
    ] = None,
    ca_key: Annotated[Path | None, typer.Option(help="The CA's private key.", show_default=False)] = None,
    trust_domain: Annotated[str, typer.Option(help="With --ca-cert: the identities' trust domain.")] = "fleet.internal",
    parallel: Annotated[int, typer.Option(min=1, max=_MOST_PARALLEL, help="How many enrol at a time.")] = 16,
    cleanup: Annotated[bool, typer.Option("--cleanup", help="Revoke the whole fleet and remove it.")] = False,
) -> None:
    """Enrol a fleet: each device makes its own key, and has it certified. Run it again to continue after Ctrl-C.

    fleet-sim enrol ./meters --devices 1000 --provisioning https://localhost:8443 --cafile fleet/ca-bundle.crt
      --cert fleet/operator.crt --key fleet/operator.key
    """
    view = View()
    with explained(view, f"What is enrolled is kept: run the same command again to continue in {directory}"):
        if cleanup:
            _end(view, directory, parallel)
            return
        check_name("group", group)
        names = names_of(check_name("prefix", prefix), devices)
        authority = _authority("--ca-cert", ca_cert, "--ca-key", ca_key)
        manufacturer = _authority("--manufacturer-cert", manufacturer_cert, "--manufacturer-key", manufacturer_key)
        try:
            given = Given(ways_of(way), _pair(claim), manufacturer, approve)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        fleet = _fleet(directory, authority, provisioning, cafile, _operator(cert, key))
        before = sum(name in fleet.entries for name in names)
        if before:
            view.said(f"{before} of {devices} are in {directory} already")

        async def story(_: Interruption) -> None:
            started = time.monotonic()
            done = 0

            def enrolled() -> None:
                nonlocal done
                done += 1

            def state() -> Progress:
                return Progress("enrolled", before + done, devices, time.monotonic() - started, counted_from=before)

            async with AsyncExitStack() as stack:
                await stack.enter_async_context(view.watching(state))
                if authority is not None:
                    await certify_fleet(fleet, names, group, trust_domain, authority, enrolled)
                    return
                operator = await stack.enter_async_context(_client(fleet))
                url = fleet.origin.provisioning_url or ""
                est = await stack.enter_async_context(EstClient(url, fleet.anchors, connections=1))
                evidence = await stack.enter_async_context(
                    presenting(given, group, url, fleet.anchors, operator, parallel)
                )
                await enrol_fleet(fleet, names, operator, est, evidence, parallel, enrolled)

        run(story)
        view.result(f"{len(fleet.devices)} devices in {directory}; next: fleet-sim run smoke --fleet {directory} …")


def _end(view: View, directory: Path, parallel: int) -> None:
    fleet = FleetDirectory.read(directory)
    total = sum(not entry.revoked for entry in fleet.entries.values())
    done = 0

    def revoked() -> None:
        nonlocal done
        done += 1

    async def story(_: Interruption) -> None:
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            operator = None
            if fleet.origin.provisioning_url is not None:
                operator = await stack.enter_async_context(_client(fleet))
                await stack.enter_async_context(
                    view.watching(lambda: Progress("revoked", done, total, time.monotonic() - started))
                )
            await end_fleet(fleet, operator, parallel, revoked)

    run(story)
    view.result(f"{done} revoked, {directory} removed" if done else f"{directory} removed")


def _authority(
    certificate_option: str, certificate: Path | None, key_option: str, key: Path | None
) -> CertificateAuthority | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise typer.BadParameter(f"{certificate_option} and {key_option} go together: name both")
    return CertificateAuthority.load(certificate, key)


def _pair(both: Path | None) -> CredentialFiles | None:
    return None if both is None else CredentialFiles(both, both)


def _operator(certificate: Path | None, key: Path | None) -> CredentialFiles | None:
    if certificate is None or key is None:
        return None
    # A later run is started elsewhere, perhaps.
    return CredentialFiles(certificate.absolute(), key.absolute())


def _fleet(
    directory: Path,
    authority: CertificateAuthority | None,
    url: str | None,
    cafile: Path | None,
    operator: CredentialFiles | None,
) -> FleetDirectory:
    if FleetDirectory.exists(directory):
        fleet = FleetDirectory.read(directory)
        if (authority is None) != (fleet.origin.provisioning_url is not None):
            raise FleetUnusable(f"{directory} was enrolled the other way: continue with the options it was made with")
        return fleet
    service = f"backend-{secrets.token_hex(3)}"
    if authority is not None:
        return FleetDirectory.create(directory, Origin(), authority.pem, service)
    if url is None or cafile is None or operator is None:
        raise typer.BadParameter(
            "a new fleet needs --provisioning, --cafile, --cert and --key, or --ca-cert and --ca-key"
        )
    return FleetDirectory.create(directory, Origin(url, operator), cafile.read_text(), service)


def _client(fleet: FleetDirectory) -> EnrolmentOperatorClient:
    origin = fleet.origin
    if origin.provisioning_url is None or origin.operator is None:
        raise FleetUnusable(f"{fleet.path} was made from a CA: there is no service to ask")
    return EnrolmentOperatorClient(origin.provisioning_url, fleet.anchors, origin.operator)
