"""The operator's commands about claim certificates, each shared by a production batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provisioning.commands.new_file import expect_new
from provisioning.commands.printed_rows import print_list
from provisioning.commands.service_command import Connection, connected, print_json, span
from provisioning.commands.shut_group import say_if_shut
from provisioning.errors import ConfigurationError
from provisioning.program.command_group import command_group
from provisioning.program.counted import counted
from provisioning.program.json_output import Json, print_document
from provisioning.program.moments import shown_time

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.enrolment_answers import ClaimCertificate

claim_app = command_group(help="Make claim certificates for production batches.")

_SECONDS_A_DAY = 24 * 60 * 60


@claim_app.command("create")
@connected
def create_claim(
    connection: Connection,
    name: Annotated[str, typer.Argument(help="The claim's name, for lists and logs.")],
    group: Annotated[str, typer.Option(help="The group that the devices enter; it must allow the way claim.")],
    devices: Annotated[int, typer.Option(min=1, help="How many devices it may admit.")],
    output: Annotated[Path, typer.Option(help="PEM file to create with key and certificate, mode 0600.")],
    days: Annotated[int, typer.Option(min=1, help="Days until it ends.")] = 30,
    activation: Annotated[
        int | None,
        typer.Option(
            metavar="TIME",
            parser=span,
            help="How long a device has to activate its certificate: 15m, 12h, or seconds (default: 1h).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a claim certificate with its key. The key is written to the file and kept nowhere else.

    \b
    Example:
      fleet-provisioning group create line-7 --way claim
      fleet-provisioning claim create batch-2026-11 --group line-7 --devices 5000 --output claim.pem
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        from provisioning.pki.keys import KeyFileError, write_private  # Late: `service_command`, rule 3.

        expect_new(output)
        issued = await client.create_claim(
            name,
            group=group,
            maximum_devices=devices,
            life_seconds=days * _SECONDS_A_DAY,
            activation_seconds=activation,
        )
        try:
            write_private(output, (issued.private_key + issued.certificate).encode())
        except KeyFileError as error:
            await client.end_claim(name)
            raise ConfigurationError(f"{error}; the claim was ended again") from error
        if as_json:
            print_document(issued.model_dump(mode="json", exclude={"private_key"}) | {"file": str(output)})
        else:
            until = shown_time(issued.expires_at)
            sys.stdout.write(f"Claim {name} in {output}: {counted(devices, 'device')} until {until}\n")
        await say_if_shut(client, group, "claim")

    connection.run(command)


@claim_app.command("list")
@connected
def list_claims(
    connection: Connection,
    as_json: Json = False,
) -> None:
    """List claims, and how many of their places are taken.

    \b
    Example:
      fleet-provisioning claim list
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        found = [each async for each in client.claims()]
        print_list(found, ("name", "group", "used", "of", "until", "ended"), _row, as_json=as_json)

    connection.run(command)


@claim_app.command("end")
@connected
def end_claim(
    connection: Connection,
    name: Annotated[str, typer.Argument(help="The claim's name.")],
    as_json: Json = False,
) -> None:
    """End a claim now: it admits nobody any more. Devices that enrolled with it stay.

    If it was copied, see whom it let in (device list --claim), and revoke those (revoke --claim).

    \b
    Example:
      fleet-provisioning claim end batch-2026-11
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        ended = await client.end_claim(name)
        if as_json:
            print_json(ended)
            return
        sys.stdout.write(
            f"Claim {name} has ended; it let in {ended.used} of {counted(ended.maximum_devices, 'device')}.\n"
        )

    connection.run(command)


def _row(claim: ClaimCertificate) -> tuple[str, ...]:
    return (
        claim.name,
        claim.group,
        str(claim.used),
        str(claim.maximum_devices),
        shown_time(claim.expires_at),
        "-" if claim.ended_at is None else shown_time(claim.ended_at),
    )
