"""The operator's commands about one-time tokens: make, list, show, void, over the service's REST API.

A token is printed once, alone on its line, so that a shell can capture it, and cannot be shown again
(`provisioning.commands.printed_token`). Or it is written to a file (`provisioning.commands.token_file`).
"""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from provisioning.commands.choice_option import choice_option
from provisioning.commands.in_steps import check_none_refused, in_steps
from provisioning.commands.known_names import OfGroup, device_names, group_names
from provisioning.commands.meant_devices import confirm
from provisioning.commands.named_lines import before_the_loop, read_lines
from provisioning.commands.printed_rows import print_each, print_list, printed
from provisioning.commands.printed_token import print_token
from provisioning.commands.readmitted import say_who_is_here
from provisioning.commands.service_command import (
    Connection,
    connected,
    duration,
    print_answer,
    print_facts,
    progress,
    say,
    span,
)
from provisioning.commands.shut_group import say_which_are_full
from provisioning.commands.token_file import keep, private_file
from provisioning.errors import Code, ConfigurationError
from provisioning.operator_role import OperatorRole
from provisioning.pki.role import Role
from provisioning.program.command_group import command_group
from provisioning.program.counted import counted
from provisioning.program.json_output import Json, print_document
from provisioning.program.moments import rfc3339, shown_time

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.operator import OperatorClient
    from provisioning.client.operator_answers import IssuedToken, KnownToken

_BATCH: Final = 500
_COLUMNS: Final = ("number", "device", "group", "role", "state", "expires", "made by")

STATES: Final = ("open", "used", "void", "expired")
"""Of tokens."""

token_app = command_group(help="Make, list and void one-time enrolment tokens.")

Ttl = Annotated[
    int | None,
    typer.Option(
        metavar="TIME",
        parser=span,
        help="Until the token expires: 15m, 12h, 7d, or seconds (default: 1h).",
        show_default=False,
    ),
]
Lifetime = Annotated[
    int | None,
    typer.Option(
        metavar="TIME",
        parser=span,
        help="How long the certificate and each renewal of it live, if shorter than the service's setting: 8h, 30d, or "
        "seconds.",
        show_default=False,
    ),
]
Number = Annotated[int, typer.Argument(min=1, help="The token's number, as token list shows it.")]


@token_app.command("create")
@connected
def create_token(
    connection: Connection,
    device: Annotated[str | None, typer.Option(help="The device that may use it.", show_default=False)] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="The device's group (default: its current one, for a new device `default`); without --device: any new "
            "device of that group.",
            autocompletion=group_names,
            show_default=False,
        ),
    ] = None,
    role: Annotated[Role, typer.Option(help="What the certificate is for.")] = Role.DEVICE,
    ttl: Ttl = None,
    lifetime: Lifetime = None,
    dns_name: Annotated[
        list[str] | None, typer.Option(help="DNS name of a broker; repeatable.", show_default=False)
    ] = None,
    ip_address: Annotated[
        list[str] | None, typer.Option(help="IP address of a broker; repeatable.", show_default=False)
    ] = None,
    operator_role: Annotated[
        OperatorRole | None,
        typer.Option(help="What an operator may do (a new one: auditor); needs --role operator.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to create for the token, with mode 0600.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Make one enrolment token; `token batch` makes many. It is printed once and stored only as a hash.

    \b
    Example:
      fleet-provisioning token create --device meter-17 --group north
      fleet-provisioning token create --device broker-1 --role broker --dns-name mqtt.example.org --output broker.token
      fleet-provisioning token create --device anna --role operator --operator-role enroller
    """
    if device is None and group is None:
        raise typer.BadParameter("give --device, or --group for any new device of that group")

    async def command(client: EnrolmentOperatorClient) -> None:
        with contextlib.nullcontext() if output is None else private_file(output) as file:
            (token,) = await client.create_tokens(
                device=device,
                group=group,
                role=role,
                ttl_seconds=ttl,
                lifetime_seconds=lifetime,
                dns_names=dns_name,
                ip_addresses=ip_address,
                operator_role=operator_role,
            )
            if file is not None:
                await keep(client, file, f"{token.token}\n", [token])
        whom = token.device or f"any new device of group {token.group}"
        numbered = "" if token.id is None else f" {token.id}"
        said = f"One-time token{numbered} for {whom}, until {shown_time(token.expires_at)}:"
        if output is not None:
            say(f"{said} {output}")
            if as_json:  # The token is only in the file.
                print_document(token.model_dump(mode="json", exclude={"token"}) | {"file": str(output)})
        else:
            await print_token(client, token, said, as_json=as_json)
        say_who_is_here([token])
        await _say_if_new(client, group)
        await say_which_are_full(client, [token])
        if role is Role.BROKER and not (dns_name or ip_address):
            say(f"{whom} will be found under no name, and refused by clients that check it: give --dns-name")

    connection.run(command)


@token_app.command("batch")
@connected
def create_batch(
    connection: Connection,
    output: Annotated[Path, typer.Option(help="CSV file to create, with mode 0600.")],
    devices_file: Annotated[
        Path | None,
        typer.Option(help="File with a device's name on each line; - is standard input.", show_default=False),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="How many tokens for any new device of --group.", show_default=False)
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="The devices' group (default: each device's current one, for new ones `default`).", show_default=False
        ),
    ] = None,
    role: Annotated[Role, typer.Option(help="What the certificates are for.")] = Role.DEVICE,
    ttl: Ttl = None,
    lifetime: Lifetime = None,
    as_json: Json = False,
) -> None:
    """Make many enrolment tokens and write them to a CSV file: device, group, role, token, expires_at.

    \b
    Example:
      fleet-provisioning token batch --devices-file meters.txt --group north --output tokens.csv
      fleet-provisioning token batch --group north --count 1000 --output tokens.csv
    """
    if (devices_file is None) == (count is None):
        raise typer.BadParameter("give exactly one of --devices-file and --count")
    if count is not None and group is None:
        raise typer.BadParameter("--count needs --group")
    with before_the_loop():
        names = None if devices_file is None else read_lines(devices_file, "device")
    total = (count or 0) if names is None else len(names)

    async def command(client: EnrolmentOperatorClient) -> None:
        common: dict[str, Any] = {"group": group, "role": role, "ttl_seconds": ttl, "lifetime_seconds": lifetime}
        made = await _write_batch(client, names, total, common, output)
        if as_json:
            print_document({"tokens": len(made), "file": str(output)})
        else:
            sys.stdout.write(f"{counted(len(made), 'token')} in {output}\n")
        say_who_is_here(made)
        await _say_if_new(client, group)
        await say_which_are_full(client, made)

    connection.run(command)


async def _write_batch(
    client: EnrolmentOperatorClient,
    names: Sequence[str] | None,
    total: int,
    common: dict[str, Any],
    output: Path,
) -> list[IssuedToken]:
    """Have *total* tokens made, for *names* if given, and write them to the new file *output*; return them."""
    import asyncio  # Loaded by now: `service_command`, rule 3.

    unseen = 0
    made: list[IssuedToken] = []
    with private_file(output) as file, progress("tokens", total) as advance:
        try:
            async for tokens in _batches(client, names, total, common):
                rows = io.StringIO(newline="")
                writer = csv.writer(rows)
                if not made:
                    writer.writerow(("device", "group", "role", "token", "expires_at"))
                writer.writerows(_row(token) for token in tokens)
                await keep(client, file, rows.getvalue(), tokens)
                made += tokens
                advance(len(tokens))
        except asyncio.CancelledError:  # Ctrl-C, while the service may be making them.
            unseen = min(_BATCH, total - len(made))
            raise
        finally:
            _say_how_far(len(made), unseen, total, output)
    return made


def _say_how_far(written: int, unseen: int, total: int, output: Path) -> None:
    """Report a batch that ended early: *unseen* tokens, which were under way, are in no file, and may be valid."""
    told = f"the first {written} of {total} tokens are in {output}" if 0 < written < total else ""
    if unseen:
        perhaps = f"perhaps the {unseen} that follow" if told else f"perhaps the first {unseen} of {total} tokens"
        told += f"{', and ' if told else ''}{perhaps} were made, and nobody has seen them: token list --state open"
    if told:
        say(f"fleet-provisioning: {told}")


async def _say_if_new(client: EnrolmentOperatorClient, group: str | None) -> None:
    """Warn if *group* is unknown: it may be misspelled, and a device stays in the group in which it enrols."""
    from provisioning.client.operator import RequestRefused, ServiceUnavailable

    try:
        is_new = group is not None and not await _is_known(client, group)
    except (RequestRefused, ServiceUnavailable):  # The tokens exist: repeating the command would make more.
        return
    if is_new:
        say(
            f"fleet-provisioning: group {group} is new: it has no device and is not configured. A device stays in "
            "its group: if the name is wrong, void what was made (token void)"
        )


async def _is_known(client: EnrolmentOperatorClient, group: str) -> bool:
    from provisioning.client.operator import RequestRefused  # Late: `service_command`, rule 3.

    try:
        await client.group(group)  # First: devices are listed page by page.
    except RequestRefused as refusal:
        if refusal.code != Code.GROUP_UNKNOWN:
            raise
    else:
        return True
    async for _device in client.devices(group=group):
        return True
    return False


async def _batches(
    client: OperatorClient, names: Sequence[str] | None, total: int, common: dict[str, Any]
) -> AsyncIterator[list[IssuedToken]]:
    for start in range(0, total, _BATCH):
        size = min(_BATCH, total - start)
        if names is None:
            yield await client.create_tokens(count=size, **common)
        else:
            yield await client.create_tokens(devices=names[start : start + size], **common)


@token_app.command("list")
@connected
def list_tokens(
    connection: Connection,
    state: Annotated[str | None, choice_option(STATES)] = None,
    group: OfGroup = None,
    device: Annotated[
        str | None, typer.Option(help="For this device only.", autocompletion=device_names, show_default=False)
    ] = None,
    expiring_within: Annotated[
        str | None, typer.Option(help="Open ones that expire within: 90m, 12h, 14d, 4w.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List tokens, oldest first, with their state but not their value.

    \b
    Example:
      fleet-provisioning token list --state open --group north
      fleet-provisioning token list --expiring-within 12h --json
    """
    until = None
    if expiring_within is not None:
        if state not in {None, "open"}:
            raise typer.BadParameter("only open tokens expire: leave --state out")
        state, until = "open", datetime.now(UTC) + duration(expiring_within, "--expiring-within")

    async def command(client: EnrolmentOperatorClient) -> None:
        search = client.tokens(state=state, group=group, device=device, expires_before=until)
        await print_each(search, _COLUMNS, _listed, as_json=as_json)

    connection.run(command)


@token_app.command("show")
@connected
def show_token(connection: Connection, number: Number, as_json: Json = False) -> None:
    """Show what became of one token.

    \b
    Example:
      fleet-provisioning token show 17
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        found = await client.token(number)
        print_answer(found, as_json=as_json)

    connection.run(command)


@token_app.command("void")
@connected
def void_token(
    connection: Connection,
    number: Annotated[
        list[int] | None,
        typer.Argument(min=1, help="The tokens' numbers, as token list shows them.", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="All open ones for this device.", autocompletion=device_names, show_default=False)
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="All open ones of this group; asks first.", autocompletion=group_names, show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a group's tokens are voided.")] = False,
    as_json: Json = False,
) -> None:
    """Void tokens, for example because a file of them was sent to the wrong person. Repeating it is harmless.

    They are voided in steps of five hundred: tokens that are unknown, or have bought a certificate, are reported, the
    others are voided.

    \b
    Example:
      fleet-provisioning token void 17 18
      fleet-provisioning token void --group north
    """
    if (device is not None or group is not None) == bool(number):
        raise typer.BadParameter("give the numbers of tokens, or --device or --group for all that are open")
    numbers = list(dict.fromkeys(number)) if number else _open_tokens(connection, device, group)
    if not numbers:
        whose = f"for {device}" if device is not None else f"of group {group}"
        say(f"fleet-provisioning: no token {whose} was open")
    if group is not None and numbers:
        which = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        question = f"Void {counted(len(numbers), 'open token')} of group {group}, {which}?"
        confirm(question, yes=yes)

    async def command(client: EnrolmentOperatorClient) -> None:
        if number and len(numbers) == 1:
            voided = await client.void_token(numbers[0])
            if as_json:  # A list, like that of several: who gives any number of them reads one form.
                print_list([voided], _COLUMNS, _listed, as_json=True)
            else:
                print_facts(voided)
            return
        spent = 0
        with printed(_COLUMNS, _listed, as_json=as_json) as show:

            def report(found: Sequence[KnownToken]) -> None:
                nonlocal spent
                used = [each for each in found if each.state == "used"]
                for each in used:
                    bought = f"token {each.id} was used for certificate {each.serial}: revoke that instead"
                    say(f"fleet-provisioning: {Code.TOKEN_SPENT}: {bought}")
                spent += len(used)
                if void := [each for each in found if each.state != "used"]:
                    show(void)

            refused = await in_steps(numbers, client.void_tokens, report, "void")
            check_none_refused(refused + spent, len(numbers), "void")

    connection.run(command)


def _open_tokens(connection: Connection, device: str | None, group: str | None) -> list[int]:
    """Return the numbers of open tokens; raises what ends the command if the device or the group is unknown."""
    numbers: list[int] = []

    async def command(client: EnrolmentOperatorClient) -> None:
        numbers.extend([each.id async for each in client.tokens(state="open", device=device, group=group)])
        # Those, too, that would be open again if their maker were an admin again.
        left = client.tokens(state="void", device=device, group=group)
        numbers.extend([each.id async for each in left if each.voided_at is None])
        numbers.sort()
        if numbers or (device is None and group is not None and await _is_known(client, group)):
            return
        async for _token in client.tokens(device=device, group=None if device is not None else group):
            return
        if device is not None:
            await client.device(device)  # A misspelled one's tokens are still open.
            return
        raise ConfigurationError(f"group {group!r} has neither token nor device and is not configured")

    connection.run(command)
    return numbers


def _listed(token: KnownToken) -> Sequence[str]:
    return (
        str(token.id),
        token.device or "any new",
        token.group or "-",
        token.role,
        token.state,
        shown_time(token.expires_at),
        token.created_by,
    )


def _row(token: IssuedToken) -> tuple[str, str, str, str, str]:
    return token.device or "", token.group or "", token.role, token.token, rfc3339(token.expires_at)
