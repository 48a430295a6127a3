"""The options of `fleet-sim attack`, `revocation` and `delivery`: which broker, which cases, where outcomes go.

No import that ``--help`` does not need (`device_sim.cli`, rule 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from device_sim.attack.against import Against
from device_sim.broker_words import BrokerOption, HostOption, PathOption, PortOption, WebsocketOption


@dataclass(frozen=True, slots=True)
class Given:
    """The options; each field is named after its option."""

    against: Annotated[
        Against | None,
        typer.Option("--against", help="Start this one and attack it (default: fleetgate).", show_default=False),
    ] = None
    broker: BrokerOption = None
    host: HostOption = None
    port: PortOption = None
    server_name: Annotated[
        str | None,
        typer.Option(
            "--server-name",
            help="The name in the broker's certificate (default: that of --broker; for an address, localhost).",
            show_default=False,
        ),
    ] = None
    websocket: WebsocketOption = False
    path: PathOption = None
    cafile: Annotated[Path | None, typer.Option("--cafile", help="Trust anchors for its certificate, PEM.")] = None
    ca_cert: Annotated[Path | None, typer.Option("--ca-cert", help="The CA whose devices it admits, PEM.")] = None
    ca_key: Annotated[Path | None, typer.Option("--ca-key", help="That CA's key, PEM, unencrypted.")] = None
    provisioning: Annotated[
        str | None,
        typer.Option(
            "--provisioning",
            help="Its provisioning service, https://…: the attack enrols its own devices there, and revokes them.",
            show_default=False,
        ),
    ] = None
    cert: Annotated[
        Path | None, typer.Option("--cert", help="With --provisioning: operator certificate.", show_default=False)
    ] = None
    key: Annotated[Path | None, typer.Option("--key", help="Its private key.", show_default=False)] = None
    capabilities: Annotated[
        Path | None,
        typer.Option(
            "--capabilities",
            help="What the broker supports, TOML (default: everything, or with --provisioning what a Fleetgate does).",
        ),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Only these cases: numbers, names, patterns; repeatable, or comma-separated."),
    ] = None
    show_list: Annotated[bool, typer.Option("--list", help="Show the cases and try none.")] = False
    json: Annotated[Path | None, typer.Option("--json", help="Write the outcomes to this JSON file.")] = None
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the outcomes to this JUnit XML file.")] = None

    @property
    def of_a_running_one(self) -> tuple[str, ...]:
        """The given options that only concern an already running broker."""
        options = {
            "--server-name": self.server_name, "--cafile": self.cafile, "--ca-cert": self.ca_cert,
            "--ca-key": self.ca_key, "--provisioning": self.provisioning, "--cert": self.cert, "--key": self.key,
            "--capabilities": self.capabilities,
        }  # fmt: skip
        return tuple(option for option, value in options.items() if value)
