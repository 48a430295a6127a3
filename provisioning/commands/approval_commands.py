"""The operator's commands about requests that wait for a decision."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from provisioning.commands.known_names import OfGroup
from provisioning.commands.printed_rows import print_each
from provisioning.commands.service_command import Connection, connected, print_json, say
from provisioning.commands.shut_group import say_if_shut
from provisioning.program.command_group import command_group
from provisioning.program.json_output import Json
from provisioning.program.moments import shown_time

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.enrolment_answers import Approval

State = Literal["pending", "approved", "denied", "used", "lapsed"]
"""The service's names for them. Not imported, so that these commands start without the database library."""

approval_app = command_group(help="Approve or deny waiting certificate requests.")

Number = Annotated[int, typer.Argument(min=1, help="The request's number, as the list shows it.")]


@approval_app.command("list")
@connected
def list_approvals(
    connection: Connection,
    group: OfGroup = None,
    state: Annotated[State, typer.Option(help="Which requests.")] = "pending",
    as_json: Json = False,
) -> None:
    """List requests, oldest first; by default the waiting ones.

    \b
    Example:
      fleet-provisioning approval list --group lab
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        found = client.approvals(group=group, state=state)
        await print_each(
            found,
            ("number", "device", "group", "shown", "key SHA-256", "since", "state", "decided by"),
            _row,
            as_json=as_json,
        )

    connection.run(command)


@approval_app.command("approve")
@connected
def approve(
    connection: Connection,
    number: Number,
    despite_denial: Annotated[
        bool, typer.Option("--despite-denial", help="Approve it although an operator has denied it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Approve a request. The device gets its certificate when it asks again with the same key.

    \b
    Example:
      fleet-provisioning approval approve 17
    """
    _decide(connection, number, allowed=True, despite_denial=despite_denial, as_json=as_json)


@approval_app.command("deny")
@connected
def deny(
    connection: Connection,
    number: Number,
    as_json: Json = False,
) -> None:
    """Deny a request. A denied request may be approved later, with --despite-denial.

    \b
    Example:
      fleet-provisioning approval deny 17
    """
    _decide(connection, number, allowed=False, as_json=as_json)


def _decide(
    connection: Connection,
    number: int,
    *,
    allowed: bool,
    as_json: bool,
    despite_denial: bool = False,
) -> None:
    async def command(client: EnrolmentOperatorClient) -> None:
        decided = await client.decide(number, approve=allowed, despite_denial=despite_denial)
        if as_json:
            print_json(decided)
        else:
            sys.stdout.write(f"Request {number}, for {decided.name} in group {decided.group}, is {decided.state}.\n")
        if allowed:  # The group may have changed while the request waited.
            await say_if_shut(client, decided.group, "approval")
            await say_if_in_vain(client, decided)

    connection.run(command)


async def say_if_in_vain(client: EnrolmentOperatorClient, approved: Approval) -> None:
    """Warn if the request is refused all the same: an approval alone gives a device that is here no other key.

    With a token that is bound to the device it may do so; whether that was shown is the service's to know.
    """
    from provisioning.client.operator import RequestRefused, ServiceUnavailable  # Late: `service_command`, rule 3.

    shown = approved.evidence.split("+")
    if "enrolled already" not in approved.evidence or any(each.startswith("token") for each in shown):
        return
    is_identified = any(each.startswith(("manufacturer", "listed key")) for each in shown)
    try:
        state = (await client.device(approved.name)).state
        new_key = (await client.group(approved.group)).new_key
    except (RequestRefused, ServiceUnavailable):  # What was decided is decided.
        return
    name, vain = approved.name, f"fleet-provisioning: {approved.name} is {state}, and refused all the same:"
    if state == "suspended":
        say(f"{vain} fleet-provisioning resume --device {name}")
    elif state == "revoked":
        say(f"{vain} only a token made for it lets it in again: fleet-provisioning token create --device {name}")
    elif state == "decommissioned":
        say(f"{vain} enrol the device under another name")
    elif new_key == "refuse" or (new_key == "replace" and not is_identified):
        allow = f"fleet-provisioning group set {approved.group} --new-key approve"
        say(f"fleet-provisioning: {name} is enrolled already, and refused unless this is the key that it has: {allow}")


def _row(approval: Approval) -> tuple[str, ...]:
    return (
        str(approval.id),
        approval.name,
        approval.group,
        approval.evidence,
        approval.key_sha256,
        shown_time(approval.requested_at),
        approval.state,
        approval.decided_by or "-",
    )
