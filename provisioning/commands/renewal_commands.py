"""The operator's commands about renewals."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from provisioning.commands.known_names import group_names
from provisioning.commands.service_command import Connection, connected, print_json, span
from provisioning.program.command_group import command_group
from provisioning.program.counted import counted
from provisioning.program.durations import shown
from provisioning.program.json_output import Json

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient

renewal_app = command_group(help="Have certificates renewed early.")


@renewal_app.command("hasten")
@connected
def hasten(
    connection: Connection,
    group: Annotated[
        str | None, typer.Option(help="The devices of this group.", autocompletion=group_names, show_default=False)
    ] = None,
    every_group: Annotated[bool, typer.Option("--every-group", help="All devices and services of the fleet.")] = False,
    spread: Annotated[
        int, typer.Option(metavar="TIME", parser=span, help="Time over which the renewals are spread: 6h, or seconds.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Tell devices to renew, when they next ask for renewal information.

    Their certificates stay valid until they are replaced: nobody is disconnected. Brokers and operators do not ask, and
    are not counted.

    \b
    Example:
      fleet-provisioning renewal hasten --group north --spread 6h
    """
    if (group is None) != every_group:
        raise typer.BadParameter("give either --group or --every-group")

    async def command(client: EnrolmentOperatorClient) -> None:
        outcome = await client.hasten_renewal(group=group, every_group=every_group, spread_seconds=spread)
        if as_json:
            print_json(outcome)
            return
        whom = "every group" if outcome.group is None else f"group {outcome.group}"
        sys.stdout.write(
            f"{counted(outcome.certificates, 'certificate')} of {whom}, to be renewed within {shown(spread)}.\n"
        )

    connection.run(command)
