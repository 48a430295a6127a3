"""The operator's commands about tokens that exist: list, show, void. What a token is, nobody can see any more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from provisioning.service_command import (
    Connection,
    Json,
    connected,
    duration,
    print_answer,
    print_list,
    shown_time,
)

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient

Number = Annotated[int, typer.Argument(min=1, help="The token's number, as token list shows it.")]


@connected
def list_tokens(
    connection: Connection,
    state: Annotated[str | None, typer.Option(help="open, used, void or expired.", show_default=False)] = None,
    group: Annotated[str | None, typer.Option(help="Of this group only.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="For this device only.", show_default=False)] = None,
    expiring_within: Annotated[
        str | None, typer.Option(help="Open ones that end so soon: 90m, 12h, 14d, 4w.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List tokens, oldest first: what each is worth, not what it is.

    \b
    Example:
      fleet-provisioning token list --state open --group north
      fleet-provisioning token list --expiring-within 12h --json
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"
    until = None
    if expiring_within is not None:
        if state not in {None, "open"}:
            raise typer.BadParameter("only open tokens expire: leave --state out")
        state, until = "open", datetime.now(UTC) + duration(expiring_within)

    async def command(client: EnrolmentOperatorClient) -> None:
        search = client.tokens(state=state, group=group, device=device, expires_before=until)
        found = [each async for each in search]
        print_list(
            found,
            ("number", "device", "group", "role", "state", "expires", "made by"),
            lambda each: (
                str(each.id),
                each.device or "any new",
                each.group or "-",
                each.role,
                each.state,
                shown_time(each.expires_at),
                each.created_by,
            ),
            as_json=as_json,
        )

    connection.run(command)


@connected
def show_token(connection: Connection, number: Number, as_json: Json = False) -> None:
    """Show what became of one token.

    \b
    Example:
      fleet-provisioning token show 17
    """  # noqa: D301

    async def command(client: EnrolmentOperatorClient) -> None:
        found = await client.token(number)
        print_answer(found, as_json=as_json)

    connection.run(command)


@connected
def void_token(connection: Connection, number: Number, as_json: Json = False) -> None:
    """Make one token worthless, say because it was sent to the wrong person. Again does no harm.

    \b
    Example:
      fleet-provisioning token void 17
    """  # noqa: D301

    async def command(client: EnrolmentOperatorClient) -> None:
        found = await client.void_token(number)
        print_answer(found, as_json=as_json)

    connection.run(command)
