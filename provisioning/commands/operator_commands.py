"""The operator's commands about devices, and the overall status, over the service's REST API.

Rules
-----
1. Everything goes through `provisioning.client.operator`: a command can only do what the API allows.
2. Results go to stdout, as text for people or, with ``--json``, as JSON for programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from provisioning.commands.certificate_state import shown_state
from provisioning.commands.choice_option import choice_option
from provisioning.commands.known_names import OfGroup, device_names
from provisioning.commands.printed_rows import print_each
from provisioning.commands.service_command import Connection, connected, print_facts
from provisioning.program.command_group import command_group
from provisioning.program.counted import counted
from provisioning.program.json_output import Json, print_document
from provisioning.program.moments import shown_time
from provisioning.program.printed_table import print_pairs, print_table

if TYPE_CHECKING:
    from provisioning.client.operator import OperatorClient

device_app = command_group(help="List devices and their certificates.")


STATES: Final = ("active", "suspended", "revoked", "decommissioned")
"""Of devices."""
STANDINGS: Final = ("valid", "trial", "suspended", "revoked", "expired", "none")
"""What a device has to show: `provisioning.store.device_inventory`."""


@device_app.command("list")
@connected
def list_devices(
    connection: Connection,
    name: Annotated[
        str | None, typer.Option(help="With this in their name, in capitals or not.", show_default=False)
    ] = None,
    group: OfGroup = None,
    state: Annotated[str | None, choice_option(STATES)] = None,
    certificate: Annotated[str | None, choice_option(STANDINGS, "Whose certificate is ")] = None,
    claim: Annotated[
        str | None, typer.Option(help="That this claim let in: on trial, or activated.", show_default=False)
    ] = None,
    manufacturer: Annotated[
        str | None, typer.Option(help="That last enrolled with this manufacturer's certificate.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List devices by name: the state of each, and whether it has a valid certificate.

    \b
    Example:
      fleet-provisioning device list --name pump
      fleet-provisioning device list --group north --state revoked
      fleet-provisioning device list --state active --certificate expired
      fleet-provisioning device list --claim batch-2026-11
    """

    async def command(client: OperatorClient) -> None:
        found = client.devices(
            group=group, state=state, certificate=certificate, name_part=name, claim=claim, manufacturer=manufacturer
        )
        await print_each(
            found,
            ("name", "role", "group", "state", "certificate", "until", "enrolled", "certificates"),
            lambda each: (
                each.name,
                each.role,
                each.group or "-",
                each.state,
                each.certificate or "-",
                "-" if each.certificate_not_after is None else shown_time(each.certificate_not_after),
                shown_time(each.created_at),
                str(each.certificates),
            ),
            as_json=as_json,
        )

    connection.run(command)


@device_app.command("show")
@connected
def show_device(
    connection: Connection,
    name: Annotated[str, typer.Argument(help="The device's name.", autocompletion=device_names)],
    as_json: Json = False,
) -> None:
    """Show one device and its certificates. Which token or approval let it in: audit show, where the service is.

    \b
    Example:
      fleet-provisioning device show meter-17
    """

    async def command(client: OperatorClient) -> None:
        device = await client.device(name)
        issued = [each async for each in client.certificates(device=name)]
        if as_json:
            document = device.model_dump(mode="json")
            document["certificates"] = [each.model_dump(mode="json") for each in issued]
            print_document(document)
            return
        print_facts(device, without=() if device.claims else {"claims"})
        print_table(
            ("serial", "state", "not before", "not after", "revoked"),
            (
                (
                    *(each.serial, shown_state(each), shown_time(each.not_before), shown_time(each.not_after)),
                    "-" if each.reason is None or each.trial else each.reason,
                )
                for each in issued
            ),
        )

    connection.run(command)


@connected
def status(
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Show whether the service is ready, count devices, certificates and open tokens, and show the age of the CRLs.

    \b
    Example:
      fleet-provisioning status --json
    """

    async def command(client: OperatorClient) -> None:
        found = await client.status()
        if as_json:
            print_document(found)
        else:
            print_pairs(list(_status_rows(found)))

    connection.run(command)


def _status_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if checks := found.get("checks"):
        bad = ", ".join(f"{name} {is_now}" for name, is_now in checks.items() if is_now != "ok")
        yield "ready", f"no: {bad}; doctor and the log say why" if bad else "yes"
    if version := found.get("version"):  # An older service does not say it.
        yield "version", f"{version} build {found['build']}"
    for what in ("devices", "certificates", "tokens"):
        numbers = found[what].items()
        yield what, ", ".join(f"{number} {state}{_of_these(found, what, state)}" for state, number in numbers)
    yield "feed", f"at {found['feed']['sequence']}, {counted(found['feed']['subscribers'], 'follower')}"
    for each in found.get("unknown_authorities", ()):
        said_at = shown_time(datetime.fromisoformat(each["said_at"]))
        what = f"not believed by {each['broker']}, as of {said_at}: its cafile is of before; docs/ca-life.md"
        yield f"{each['state']} {each['authority']}", what
    for name, crl in found["crls"].items():
        lapses = shown_time(datetime.fromisoformat(crl["next_update"]))
        yield f"CRL {name}", f"number {crl['number']}, {counted(crl['entries'], 'entry', 'entries')}, lapses {lapses}"


def _of_these(found: Mapping[str, Any], what: str, state: str) -> str:
    """Return a remark on the number of *what* in *state*: active devices may have no valid certificate."""
    bare = found.get("active_devices_without_certificate", 0)
    return f" ({bare} of them without a good certificate)" if bare and (what, state) == ("devices", "active") else ""
