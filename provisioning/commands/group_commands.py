"""The operator's commands about enrolment groups: how devices are admitted, and what they get."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from provisioning.commands.known_names import group_names
from provisioning.commands.printed_rows import print_list
from provisioning.commands.service_command import Connection, connected, print_facts, print_json, say, span
from provisioning.program.command_group import command_group
from provisioning.program.durations import shown
from provisioning.program.gathered_options import with_options
from provisioning.program.json_output import Json

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.enrolment_answers import EnrolmentGroup

WAYS: Final = ("token", "claim", "manufacturer", "listed", "approval", "webhook")
NewKey = Literal["refuse", "approve", "replace"]
"""The service's names for them. Not imported, so that these commands start without the database library."""

group_app = command_group(help="Configure enrolment groups: how devices may enrol.")

Name = Annotated[str, typer.Argument(help="The group's name, which is also its EST label.", autocompletion=group_names)]


@dataclass(frozen=True, slots=True)
class GivenRules:
    """Rules on the command line, named as in the API; None if not given."""

    ways: Annotated[
        list[str] | None,
        typer.Option(
            "--way",
            help=f"A way to enrol ({', '.join(WAYS)}), or several that are all needed (a+b); repeatable.",
            show_default=False,
        ),
    ] = None
    closed: Annotated[
        bool, typer.Option("--closed", help="No way: no new device is admitted, nor a trial activated.")
    ] = False
    profile: Annotated[
        str | None, typer.Option("--profile", help="Certificate profile (at first device).", show_default=False)
    ] = None
    lifetime_seconds: Annotated[
        int | None,
        typer.Option(
            "--lifetime",
            metavar="TIME",
            parser=span,
            help="How long its certificates live, if shorter than the profile's: 8h, 30d, or seconds.",
            show_default=False,
        ),
    ] = None
    maximum_devices: Annotated[
        int | None, typer.Option(min=0, help="How many devices it may have; 0 for no limit.", show_default=False)
    ] = None
    same_key_seconds: Annotated[
        int | None,
        typer.Option(
            "--same-key",
            metavar="TIME",
            parser=span,
            help="How long the same request gets the same certificate again: 2h, or seconds (at first 1h).",
            show_default=False,
        ),
    ] = None
    new_key: Annotated[
        NewKey | None,
        typer.Option(
            "--new-key", help="When a device enrols again with another key (at first refuse).", show_default=False
        ),
    ] = None
    server_keys: Annotated[
        bool | None,
        typer.Option(help="Make keys for devices that ask for it (/serverkeygen).", show_default=False),
    ] = None
    tls_unique: Annotated[
        bool | None,
        typer.Option(help="Requests must be linked to their TLS connection; TLS 1.2 only.", show_default=False),
    ] = None
    renewal_grace_seconds: Annotated[
        int | None,
        typer.Option(
            "--renewal-grace",
            metavar="TIME",
            parser=span,
            help="How long after its expiry a certificate may still be renewed: 7d, or seconds (at first 0).",
            show_default=False,
        ),
    ] = None
    webhook_url: Annotated[
        str | None,
        typer.Option(help="URL that the way webhook asks: https://…, or http:// on this machine.", show_default=False),
    ] = None
    webhook_timeout_seconds: Annotated[
        int | None,
        typer.Option(
            "--webhook-timeout", min=1, help="Seconds until it must have answered (at first 5).", show_default=False
        ),
    ] = None
    certificates_per_minute: Annotated[
        int | None,
        typer.Option(
            min=0, help="How many certificates its devices get per minute; 0 for no limit.", show_default=False
        ),
    ] = None
    issuing_line: Annotated[
        str | None,
        typer.Option(help="The line of issuing CAs that certifies its devices (at first default).", show_default=False),
    ] = None

    def asked(self) -> dict[str, Any]:
        """Return the given rules, as the API takes them; raise `typer.BadParameter`."""
        if self.ways and self.closed:
            raise typer.BadParameter("give --way or --closed, not both")
        given = {**asdict(self), "ways": [] if self.closed else (self.ways or None)}
        return {name: value for name, value in given.items() if name != "closed" and value is not None}


@group_app.command("create")
@connected
@with_options(GivenRules)
def create_group(given: GivenRules, connection: Connection, name: Name, as_json: Json = False) -> None:
    """Create an enrolment group. A group that was not created admits devices by token.

    \b
    Example:
      fleet-provisioning group create north --way token --maximum-devices 500
    """
    rules = given.asked()
    if "ways" not in rules:
        raise typer.BadParameter("give --way, or --closed for a group that admits nobody")

    async def command(client: EnrolmentOperatorClient) -> None:
        _print(await client.create_group(name, rules), as_json=as_json)

    connection.run(command)


@group_app.command("set")
@connected
@with_options(GivenRules)
def change_group(given: GivenRules, connection: Connection, name: Name, as_json: Json = False) -> None:
    """Change a group's rules for future decisions. Rules that are not given stay as they are.

    \b
    Example:
      fleet-provisioning group set north --closed
    """
    rules = given.asked()
    if not rules:
        raise typer.BadParameter("give at least one rule to change, for example --way token or --closed")

    async def command(client: EnrolmentOperatorClient) -> None:
        _print(await client.change_group(name, rules), as_json=as_json)

    connection.run(command)


@group_app.command("list")
@connected
def list_groups(
    connection: Connection,
    as_json: Json = False,
) -> None:
    """List the groups that were created, by name.

    \b
    Example:
      fleet-provisioning group list
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        found = [each async for each in client.groups()]
        print_list(found, ("name", "ways", "profile", "lifetime", "devices at most", "new key"), _row, as_json=as_json)

    connection.run(command)


@group_app.command("show")
@connected
def show_group(
    connection: Connection,
    name: Name,
    as_json: Json = False,
) -> None:
    """Show one group.

    \b
    Example:
      fleet-provisioning group show north
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        _print(await client.group(name), as_json=as_json)

    connection.run(command)


def _print(group: EnrolmentGroup, *, as_json: bool) -> None:
    if as_json:
        print_json(group)
        return
    print_facts(group, without={"profile_known"})
    if not group.profile_known:
        say(
            f"fleet-provisioning: the service's settings have no profile {group.profile!r} for devices: none of the "
            f"group is certified or renewed; write [profiles.{group.profile}] there again (SIGHUP has them read), or: "
            f"fleet-provisioning group set {group.name} --profile device"
        )
    if not group.ways:
        sys.stdout.write(f"Group {group.name} is closed: no new device is admitted.\n")
    elif group.webhook_url is not None and not any("webhook" in way.split("+") for way in group.ways):
        sys.stdout.write(f"Its webhook is not asked: no way of the group names it, such as {group.ways[0]}+webhook.\n")


def _row(group: EnrolmentGroup) -> tuple[str, ...]:
    return (
        group.name,
        ", ".join(group.ways) or "closed",
        group.profile if group.profile_known else f"{group.profile} (not configured)",
        shown(group.lifetime_seconds) if group.lifetime_seconds else "-",
        str(group.maximum_devices or "-"),
        group.new_key,
    )
