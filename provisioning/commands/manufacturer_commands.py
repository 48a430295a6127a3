"""The operator's commands about manufacturers, whose device certificates (IDevIDs) admit devices to a group."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from provisioning.commands.printed_rows import print_list
from provisioning.commands.service_command import Connection, connected, print_facts, print_json
from provisioning.commands.shut_group import say_if_shut
from provisioning.errors import ConfigurationError
from provisioning.program.command_group import command_group
from provisioning.program.counted import counted
from provisioning.program.given_file import PEM_BYTES, contents_of
from provisioning.program.json_output import Json
from provisioning.program.moments import shown_time
from provisioning.program.printed_table import print_table

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.enrolment_answers import Manufacturer

Name = Annotated[str, typer.Argument(help="The manufacturer's name.")]
LapsedLists = Literal["refuse", "accept"]
RevokedDevices = Literal["report", "suspend", "revoke"]
"""The service's names for them."""
_SHOWN_DIGITS: Final = 16
"""Digits of a list's SHA-256 that are shown to distinguish lists."""

manufacturer_app = command_group(help="Register manufacturers of devices.")


@manufacturer_app.command("add")
@connected
def add_manufacturer(
    connection: Connection,
    name: Annotated[str, typer.Argument(help="The manufacturer's name, for lists and logs.")],
    group: Annotated[str, typer.Option(help="The group that its devices enter; it must allow the way manufacturer.")],
    certificate: Annotated[
        Path, typer.Option(help="PEM file with the CA that directly issues the device certificates.")
    ],
    name_prefix: Annotated[
        str, typer.Option(help="A device's name is this followed by its serialNumber; it distinguishes manufacturers.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Register the CA that issues a manufacturer's device certificates. No chain above it is followed.

    A registered name accepts another certificate of the same CA; one that was ended is reactivated.

    \b
    Example:
      fleet-provisioning group create acme --way manufacturer
      fleet-provisioning manufacturer add acme --group acme --certificate acme-ca.pem --name-prefix acme-
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        pem = contents_of(certificate, PEM_BYTES).decode(errors="replace")
        added = await client.add_manufacturer(name, group=group, certificate=pem, name_prefix=name_prefix)
        _show(added, as_json=as_json)
        await say_if_shut(client, group, "manufacturer")

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
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        found = [each async for each in client.manufacturers()]
        print_list(
            found,
            ("name", "group", "name prefix", "CA SHA-256", "list until", "ended"),
            lambda each: (
                each.name,
                each.group,
                each.name_prefix or "-",
                each.fingerprint_sha256,
                _until([listed.next_update for listed in each.lists]),
                "-" if each.ended_at is None else shown_time(each.ended_at),
            ),
            as_json=as_json,
        )

    connection.run(command)


@manufacturer_app.command("show")
@connected
def show_manufacturer(
    connection: Connection,
    name: Name,
    as_json: Json = False,
) -> None:
    """Show one manufacturer, with its CRLs.

    \b
    Example:
      fleet-provisioning manufacturer show acme
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        _show(await client.manufacturer(name), as_json=as_json)

    connection.run(command)


@manufacturer_app.command("crl")
@connected
def give_list(
    connection: Connection,
    name: Name,
    file: Annotated[Path, typer.Argument(help="The CRL: DER or PEM, signed by the registered CA, complete.")],
    renumbered: Annotated[
        bool, typer.Option("--renumbered", help="The manufacturer restarts its CRL numbers: the number may be lower.")
    ] = False,
    fewer: Annotated[
        bool, typer.Option("--fewer", help="It may name however few of those that the one before named.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Import a manufacturer's newest CRL: devices with a listed certificate cannot enrol.

    Once a manufacturer has a CRL, import the next one before it lapses, since its devices must wait for that, or have
    it fetched: see `set`.

    \b
    Example:
      curl -O http://pki.acme.example/devices.crl
      fleet-provisioning manufacturer crl acme devices.crl
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        taken = await client.take_list(name, contents_of(file, PEM_BYTES), renumbered=renumbered, fewer=fewer)
        if as_json:
            print_json(taken)
            return
        entries = counted(taken.entries, "certificate")
        sys.stdout.write(
            f"List {taken.number} of {name} is in use until {shown_time(taken.next_update)}: {entries} revoked, "
            f"{taken.revoked} of them by this list, {taken.released} released.\n"
        )

    connection.run(command)


@manufacturer_app.command("remove-crl")
@connected
def remove_list(
    connection: Connection,
    name: Name,
    sha256: Annotated[
        str, typer.Argument(help="The list's SHA-256, or as much of its beginning as `show` prints of it.")
    ],
    as_json: Json = False,
) -> None:
    """Remove a CRL that a manufacturer no longer publishes.

    Devices that no other CRL lists may enrol again. Without any CRL all its devices may.

    \b
    Example:
      fleet-provisioning manufacturer show acme
      fleet-provisioning manufacturer remove-crl acme 3b5d5c3712955042
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        wanted = sha256.lower()
        found = [each.sha256 for each in (await client.manufacturer(name)).lists if each.sha256.startswith(wanted)]
        if len(found) != 1 or not wanted:
            raise ConfigurationError(
                f"{len(found)} lists of {name} have a SHA-256 that begins with {wanted[:80]!r}: "
                f"fleet-provisioning manufacturer show {name}"
            )
        removed = await client.remove_list(name, found[0])
        if as_json:
            print_json(removed)
            return
        released = counted(removed.released, "certificate")
        sys.stdout.write(f"List {removed.number} of {name} is forgotten: {released} released.\n")

    connection.run(command)


@manufacturer_app.command("set")
@connected
def change_manufacturer(
    connection: Connection,
    name: Name,
    lapsed_lists: Annotated[
        LapsedLists | None,
        typer.Option(help="What its devices get when it has CRLs, but none that covers them is valid any more."),
    ] = None,
    revoked_devices: Annotated[
        RevokedDevices | None,
        typer.Option(help="What happens to enrolled devices whose certificate the manufacturer has revoked."),
    ] = None,
    list_url: Annotated[
        list[str] | None,
        typer.Option(
            help="http URL from which the service fetches its CRL from now on; repeatable, for a CRL in parts."
        ),
    ] = None,
    no_list_urls: Annotated[bool, typer.Option("--no-list-urls", help="Stop fetching its CRLs.")] = False,
    as_json: Json = False,
) -> None:
    """Change a manufacturer's settings: URLs of its CRLs, what lapsed ones mean, what happens to revoked devices.

    The given URLs replace all earlier ones. A fetched CRL is checked like an imported one.

    A device on a CRL is always refused, however old that is.

    \b
    Example:
      fleet-provisioning manufacturer set acme --lapsed-lists accept
      fleet-provisioning manufacturer set acme --revoked-devices suspend
      fleet-provisioning manufacturer set acme --list-url http://pki.acme.example/devices.crl
    """
    terms = {"lapsed_lists": lapsed_lists, "revoked_devices": revoked_devices}
    changed: dict[str, Any] = {name: value for name, value in terms.items() if value is not None}
    if list_url or no_list_urls:
        if list_url and no_list_urls:
            raise typer.BadParameter("give --list-url or --no-list-urls, not both")
        changed["list_urls"] = list_url or []
    if not changed:
        raise typer.BadParameter(
            "give at least one of --lapsed-lists, --revoked-devices, --list-url and --no-list-urls"
        )

    async def command(client: EnrolmentOperatorClient) -> None:
        _show(await client.change_manufacturer(name, changed), as_json=as_json)

    connection.run(command)


@manufacturer_app.command("revoked")
@connected
def list_revoked(
    connection: Connection,
    name: Name,
    as_json: Json = False,
) -> None:
    """List devices whose manufacturer has revoked the certificate (IDevID) they enrolled with.

    Active ones are still admitted: revoke or suspend them, or see `set --revoked-devices`. Devices enrolled before
    the service recorded that certificate are not found.

    \b
    Example:
      fleet-provisioning manufacturer revoked acme
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        found = [each async for each in client.revoked_devices(name)]
        print_list(
            found,
            ("device", "group", "state", "IDevID", "reason", "revoked", "found"),
            lambda each: (
                each.device,
                each.group or "-",
                each.state,
                each.idevid,
                each.reason,
                shown_time(each.revoked_at),
                shown_time(each.found_at),
            ),
            as_json=as_json,
        )

    connection.run(command)


@manufacturer_app.command("end")
@connected
def end_manufacturer(
    connection: Connection,
    name: Name,
    as_json: Json = False,
) -> None:
    """End the trust in a manufacturer: its certificates admit nobody any more. Enrolled devices stay.

    \b
    Example:
      fleet-provisioning manufacturer end acme
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        ended = await client.end_manufacturer(name)
        if as_json:
            print_json(ended)
            return
        sys.stdout.write(f"Certificates of {name} let nobody in any more.\n")

    connection.run(command)


def _show(manufacturer: Manufacturer, *, as_json: bool) -> None:
    if as_json:
        print_json(manufacturer)
    else:
        _print(manufacturer)


def _print(manufacturer: Manufacturer) -> None:
    """Print it for people: of its certificate the fingerprint."""
    print_facts(manufacturer.model_copy(update={"certificate": None, "lists": None, "list_urls": None}))
    if manufacturer.list_urls:
        print_table(
            ("fetched from", "last", "next", "problem"),
            (
                (
                    each.url,
                    "-" if each.fetched_at is None else shown_time(each.fetched_at),
                    shown_time(each.due_at),
                    each.problem or "-",
                )
                for each in manufacturer.list_urls
            ),
        )
    if manufacturer.lists:
        print_table(
            ("list", "SHA-256", "until", "revoked", "made", "taken", "by", "about"),
            (
                (
                    str(each.number),
                    each.sha256[:_SHOWN_DIGITS],
                    _until([each.next_update]),
                    str(each.entries),
                    shown_time(each.this_update),
                    shown_time(each.taken_at),
                    each.taken_by,
                    " ".join(each.about) or "all",
                )
                for each in manufacturer.lists
            ),
        )


def _until(ends: list[datetime]) -> str:
    """Return the earliest of the lists' *ends*."""
    if not ends:
        return "-"
    end = min(ends)
    return shown_time(end) + (" (lapsed)" if end < datetime.now(UTC) else "")
