"""The arguments of `fleet-sim enrol`; `device_sim.commands.fleet_enrolment` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_sim.late_imports import late_imports

_MOST_PARALLEL = 256


def enrol(
    directory: Annotated[Path, typer.Argument(help="The fleet's directory: new, or one to continue.")],
    devices: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of devices of the fleet.")] = 100,
    group: Annotated[
        str | None,
        typer.Option(
            help="Their group (default: meters, or the existing group of a continued fleet).", show_default=False
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="What their names begin with.")] = "meter",
    provisioning: Annotated[
        str | None, typer.Option(help="URL of the provisioning service, https://…", show_default=False)
    ] = None,
    cafile: Annotated[
        Path | None, typer.Option(help="Trust anchors (ca-bundle.crt of the service).", show_default=False)
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="Operator certificate.", show_default=False)] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key.", show_default=False)] = None,
    way: Annotated[
        str,
        typer.Option(
            help="How the devices enrol: token, claim, manufacturer, listed, approval, or several as claim+approval."
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
        Path | None, typer.Option(help="Instead of a service: the certificate of your own CA.", show_default=False)
    ] = None,
    ca_key: Annotated[Path | None, typer.Option(help="The CA's private key.", show_default=False)] = None,
    trust_domain: Annotated[
        str | None,
        typer.Option(
            help="With --ca-cert: the identities' trust domain, fleet.internal by default.", show_default=False
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=_MOST_PARALLEL, help="How many enrol at a time.")] = 16,
    cleanup: Annotated[
        bool, typer.Option("--cleanup", help="Revoke the whole fleet and remove it; asks first, except with --yes.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --cleanup: do not ask.")] = False,
) -> None:
    """Enrol a fleet: each device generates its key and gets a certificate. Run it again to continue after Ctrl-C.

    \b
    Example:
      fleet-sim enrol ./meters --devices 1000 --provisioning https://localhost:8443 --cafile fleet/ca-bundle.crt \\
        --cert fleet/operator.crt --key fleet/operator.key
      fleet-sim enrol ./meters --devices 1000 --ca-cert ca.crt --ca-key ca.key    # for any other broker
    """
    with late_imports():
        from device_sim.commands.fleet_enrolment import Way, enrol_or_end

    enrol_or_end(
        directory, devices, group, prefix, Way(way, claim, manufacturer_cert, manufacturer_key, approve),
        provisioning, cafile, cert, key, ca_cert, ca_key, trust_domain, parallel, cleanup, yes,
    )  # fmt: skip
