"""The operator's commands about operators and their roles."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from provisioning.commands.departed_operators import EndListed, claims_going_on, say_what_ended, say_what_is_unlisted
from provisioning.commands.printed_rows import print_list
from provisioning.commands.service_command import Connection, connected, print_answer, print_facts, print_json, say
from provisioning.operator_role import OperatorRole
from provisioning.program.command_group import command_group
from provisioning.program.counted import counted
from provisioning.program.given_moment import Since
from provisioning.program.json_output import Json
from provisioning.program.moments import shown_time
from provisioning.program.printed_table import print_table

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.operator import OperatorClient
    from provisioning.client.operator_answers import ListCut, RuleChange

operator_app = command_group(help="List operators and grant roles.")


@operator_app.command("list")
@connected
def list_operators(
    connection: Connection,
    as_json: Json = False,
) -> None:
    """List operators with role, state, and the expiry of their certificate.

    \b
    Example:
      fleet-provisioning operator list
    """

    async def command(client: OperatorClient) -> None:
        found = await client.operators()
        print_list(
            found,
            ("name", "role", "state", "until", "granted", "by"),
            lambda each: (
                each.name,
                each.role,
                each.state or "not enrolled",
                "-" if each.good_until is None else shown_time(each.good_until),
                "-" if each.granted_at is None else shown_time(each.granted_at),
                each.granted_by or "-",
            ),
            as_json=as_json,
        )

    connection.run(command)


@operator_app.command("me")
@connected
def show_me(
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Say as whom the service knows the operator certificate in use.

    \b
    Example:
      fleet-provisioning operator me --cert anna.crt --key anna.key
    """

    async def command(client: OperatorClient) -> None:
        me = await client.me()
        print_answer(me, as_json=as_json)

    connection.run(command)


@operator_app.command("left")
@connected
def show_left(
    connection: Connection,
    name: Annotated[str, typer.Argument(help="The operator's name.")],
    since: Since = None,
    as_json: Json = False,
) -> None:
    """Show what an operator leaves behind, or would: what lets others in, and what he has changed of groups' rules.

    And what he has taken off lists of expected devices, and keys there that he has replaced. After a theft of the
    operator's key, look through it, and put right what is not as it should be: group set, manufacturer set, suspend,
    listed end, listed import. --since narrows the changes. audit show --by says all that he has done.

    \b
    Example:
      fleet-provisioning operator left anna
      fleet-provisioning operator left anna --since 2027-01-05
    """

    async def command(client: OperatorClient) -> None:
        left = await client.left_by(name, since=since)
        if as_json:
            print_json(left)
            return
        print_facts(left, without={"changes", "list_cuts"})
        if left.changes:
            rows = [row for each in left.changes for row in _changed(each)]
            sys.stdout.write("\n")
            print_table(("entry", "time", "group", "rule", "before", "after"), rows)
        if left.list_cuts:
            sys.stdout.write("\n")
            print_table(("entry", "time", "group", "gone from its list"), map(_cut, left.list_cuts))

    connection.run(command)


def _changed(change: RuleChange) -> list[tuple[str, ...]]:
    """Return a row for each rule that *change* has changed; of all that are known, where it is unknown which."""
    before = change.before
    return [
        (
            str(change.entry),
            shown_time(change.at),
            change.group,
            rule.replace("_", " "),
            "?" if before is None else before.get(rule) or "-",
            value or "-",
        )
        for rule, value in change.after.items()
        if value or before is not None
    ]


def _cut(cut: ListCut) -> tuple[str, ...]:
    more = cut.count - len(cut.names)
    named = [*cut.names, f"{counted(more, 'more entry', 'more entries')}"] if more and cut.names else cut.names
    gone = ", ".join(named) or counted(cut.count, "entry", "entries")
    return str(cut.entry), shown_time(cut.at), cut.group, gone


@operator_app.command("grant")
@connected
def grant(
    connection: Connection,
    name: Annotated[str, typer.Argument(help="The operator's name.")],
    role: Annotated[OperatorRole, typer.Option(help="auditor reads, enroller lets devices in, too, admin may do all.")],
    keep_tokens: Annotated[
        bool, typer.Option("--keep-tokens", help="Keep an auditor's unused tokens, and the requests they approved.")
    ] = False,
    end_claims: Annotated[bool, typer.Option("--end-claims", help="End the claims that an auditor has made.")] = False,
    end_listed: EndListed = False,
    as_json: Json = False,
) -> None:
    """Set an operator's role. The last admin with a valid certificate stays one.

    Whoever becomes an auditor lets nobody in any more: tokens that they made and nobody has used are void, and requests
    that they approved wait for another decision, unless --keep-tokens is given. Claims that they made go on, as devices
    on their way have their keys, too, unless --end-claims is given; what they put on lists, unless --end-listed is.

    \b
    Example:
      fleet-provisioning operator grant anna --role enroller
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        granted = await client.grant(name, role, keep_tokens=keep_tokens)
        print_answer(granted, as_json=as_json)
        if role.permits(OperatorRole.ENROLLER):
            return
        going_on = (await claims_going_on(client, {name})).get(name, [])
        for each in going_on if end_claims else ():
            await client.end_claim(each)
        if end_listed:
            ended = await client.end_listed_by(name)
            say_what_is_unlisted(name, ended.listed_ended, ended.lists_ended)
        if end_claims:
            say_what_ended(name, len(going_on))
        elif going_on:
            say(
                f"fleet-provisioning: {name} leaves behind what lets others in: {counted(len(going_on), 'claim')}; if "
                f"that is not to stay: claim end, or this again with --end-claims (operator left {name})"
            )

    connection.run(command)
