"""The operator's commands about manufacturers, whose device certificates (IDevIDs) open a group."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provisioning.service_command import (
    Connection,
    Json,
    connected,
    print_facts,
    print_json,
    print_table,
    shown_time,
)

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient

manufacturer_app = typer.Typer(help="Register manufacturers of devices.", no_args_is_help=True)


@manufacturer_app.command("add")
@connected
def add_manufacturer(
    connection: Connection,
    name: Annotated[str, typer.Argument(help="The manufacturer's name, for lists and logs.")],
    group: Annotated[str, typer.Option(help="The group that its devices enter; it must allow the way manufacturer.")],
    certificate: Annotated[Path, typer.Option(help="PEM file with the CA that issues the device certificates itself.")],
    name_prefix: Annotated[
        str, typer.Option(help="A device is called this and its serialNumber; keeps manufacturers apart.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Register the CA that issues a manufacturer's device certificates. No chain above it is followed.

    A name that is registered takes another certificate of the same CA, and one that was ended is in force again.

    \b
    Example:
      fleet-provisioning group create acme --way manufacturer
      fleet-provisioning manufacturer add acme --group acme --certificate acme-ca.pem --name-prefix acme-
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"

    async def command(client: EnrolmentOperatorClient) -> None:
        pem = certificate.read_text(encoding="utf-8", errors="replace")
        added = await client.add_manufacturer(name, group=group, certificate=pem, name_prefix=name_prefix)
        if as_json:
            print_json(added)
            return
        print_facts(added.model_copy(update={"certificate": str(certificate)}))

    connection.run(command)


@manufacturer_app.command("list")
@connected
def list_manufacturers(
    connection: Connection,
    as_json: Json = False,
) -> None:
    """List manufacturers.

    \b
    Example:
      fleet-provisioning manufacturer list
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"

    async def command(client: EnrolmentOperatorClient) -> None:
        found = [each async for each in client.manufacturers()]
        if as_json:
            print_json(found)
            return
        print_table(
            ("name", "group", "name prefix", "CA SHA-256", "ended"),
            (
                (
                    each.name,
                    each.group,
                    each.name_prefix or "-",
                    each.fingerprint_sha256,
                    "-" if each.ended_at is None else shown_time(each.ended_at),
                )
                for each in found
            ),
        )

    connection.run(command)


@manufacturer_app.command("end")
@connected
def end_manufacturer(
    connection: Connection,
    name: Annotated[str, typer.Argument(help="The manufacturer's name.")],
    as_json: Json = False,
) -> None:
    """End the trust in a manufacturer: its certificates let nobody in any more. Devices that came in stay.

    \b
    Example:
      fleet-provisioning manufacturer end acme
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"

    async def command(client: EnrolmentOperatorClient) -> None:
        ended = await client.end_manufacturer(name)
        if as_json:
            print_json(ended)
            return
        sys.stdout.write(f"Certificates of {name} let nobody in any more.\n")

    connection.run(command)
