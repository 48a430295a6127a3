"""The operator's commands that end or interrupt what a device may do: revoke, suspend, resume, decommission."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from provisioning.asking import ask
from provisioning.errors import ConfigurationError
from provisioning.named_lines import read_lines
from provisioning.one_by_one import one_by_one
from provisioning.pki.revocation import RevocationReason
from provisioning.printed_rows import printed
from provisioning.revocation.reasons import OPERATOR_REASONS
from provisioning.service_command import (
    Connection,
    InvalidityDate,
    Json,
    connected,
    counted,
    progress,
    say,
    shown_time,
)

if TYPE_CHECKING:
    from provisioning.client.operator import OperatorClient
    from provisioning.client.operator_answers import ReleasedCertificate, RevokedCertificate

# Lists, though one is usual: of an option that takes one, a second takes the first's place without a word.
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="All certificates of this device; repeat it.", show_default=False)
]
Serials = Annotated[
    list[str] | None, typer.Option("--serial", help="This certificate (hexadecimal); repeat it.", show_default=False)
]
DevicesFile = Annotated[Path | None, typer.Option(help="The devices in this file, a name a line.", show_default=False)]

_STEP: Final = 500
_COLUMNS: Final = ("serial", "device", "reason", "revoked", "sequence")
_RELEASED_COLUMNS: Final = ("serial", "device", "released", "sequence")
_REASONS: Final = ", ".join(reason for reason in RevocationReason if reason in OPERATOR_REASONS)


def _reason(text: str) -> RevocationReason:
    if text not in OPERATOR_REASONS:
        hint = ": a hold is made by suspend" if text == RevocationReason.CERTIFICATE_HOLD else ""
        raise typer.BadParameter(f"{text!r} is not one of {_REASONS}{hint}")
    return RevocationReason(text)


@connected
def revoke(
    connection: Connection,
    device: Devices = None,
    serial: Serials = None,
    devices_file: Annotated[
        Path | None, typer.Option(help="Revoke the devices in this file, a name a line.", show_default=False)
    ] = None,
    serials_file: Annotated[
        Path | None,
        typer.Option(help="Revoke the certificates in this file, a serial a line.", show_default=False),
    ] = None,
    group: Annotated[str | None, typer.Option(help="Revoke all devices of this group.", show_default=False)] = None,
    reason: Annotated[
        RevocationReason, typer.Option(metavar="REASON", parser=_reason, help=f"Why: {_REASONS}.")
    ] = RevocationReason.UNSPECIFIED,
    invalidity_date: InvalidityDate = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a group is revoked.")] = False,
    as_json: Json = False,
) -> None:
    """Revoke devices or certificates, finally. Live sessions are closed at once, the CRL follows.

    A file or a group is revoked in steps of five hundred, each of them whole or, if it names somebody unknown, not at
    all; what is revoked is printed after each. Running it again does no harm: who is revoked stays so, with the first
    date and reason; only keyCompromise takes another reason's place, the date stays. A group that still lets devices in
    is closed first: group set, with the ways that are to be left.

    \b
    Example:
      fleet-provisioning revoke --device meter-17 --device meter-18 --reason keyCompromise
      fleet-provisioning revoke --device meter-17 --reason keyCompromise --invalidity-date 2027-01-05T08:00:00
      fleet-provisioning revoke --devices-file stolen.txt --reason keyCompromise
      fleet-provisioning revoke --group west --reason cessationOfOperation
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"
    if sum(map(bool, (device, serial, devices_file, serials_file, group is not None))) != 1:
        raise typer.BadParameter("give exactly one of --device, --serial, --devices-file, --serials-file and --group")

    since = invalidity_date
    in_group = [] if group is None else _confirmed(connection, group, reason, yes=yes, on_stderr=as_json)

    async def revoke_some(client: OperatorClient, **what: Any) -> list[RevokedCertificate]:
        return await client.revoke(**what, reason=reason, invalidity_date=since)

    total = kept = 0

    async def command(client: OperatorClient) -> None:
        with printed(_COLUMNS, _row, as_json=as_json) as show:

            def report(found: Sequence[RevokedCertificate]) -> None:
                nonlocal total, kept
                show(found)
                total += len(found)
                kept += sum(each.reason != reason or bool(since and each.invalidity_date != since) for each in found)

            names = device or in_group if devices_file is None else read_lines(devices_file, "device")
            serials = serial or [] if serials_file is None else read_lines(serials_file, "certificate")
            if len(device or serial or ()) == 1:
                (one,) = _each(device, serial, None)
                report(await revoke_some(client, **one))
            elif names:
                await _in_steps(names, lambda step: revoke_some(client, devices=step), report)
            else:
                await _in_steps(serials, lambda step: revoke_some(client, serials=step), report)
        if kept:
            say(f"fleet-provisioning: revoked before, with the reason and date shown: {kept} of {total}")

    connection.run(command)


def _confirmed(
    connection: Connection, group: str, reason: RevocationReason, *, yes: bool, on_stderr: bool
) -> list[str]:
    """Return who of the group may be revoked still; raises what ends the command if that is not wanted."""
    compromised = reason is RevocationReason.KEY_COMPROMISE  # Of who was revoked for another reason, that is news.
    ended = set() if compromised else {"revoked", "decommissioned"}
    names: list[str] = []

    async def command(client: OperatorClient) -> None:
        names.extend([each.name async for each in client.devices(group=group) if each.state not in ended])
        if not names:
            raise ConfigurationError(f"group {group!r} has no device{'' if compromised else ' that is not revoked'}")

    connection.run(command)
    if not yes:  # Not in the command: while its loop runs, an interrupt does not reach who waits for an answer.
        whom = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        question = f"Revoke {counted(len(names), 'device')} of group {group}, {whom}, for ever?"
        ask(question, aside=on_stderr)
    return names


async def _in_steps(
    lines: Sequence[str],
    revoke_some: Callable[[Sequence[str]], Awaitable[list[RevokedCertificate]]],
    report: Callable[[Sequence[RevokedCertificate]], None],
) -> None:
    done = 0
    with progress("revoked", len(lines)) as advance:
        try:
            while done < len(lines):
                step = lines[done : done + _STEP]
                found = await revoke_some(step)
                done += len(step)
                report(found)
                advance(len(step))
        finally:
            if 0 < done < len(lines):
                say(f"fleet-provisioning: the first {done} of {len(lines)} are revoked")


@connected
def suspend(
    connection: Connection,
    device: Devices = None,
    serial: Serials = None,
    devices_file: DevicesFile = None,
    as_json: Json = False,
) -> None:
    """Suspend devices or one certificate until they are resumed. Live sessions are closed at once.

    Of a file, each device by itself: who cannot be suspended is named, and the others are. Again does no harm.

    \b
    Example:
      fleet-provisioning suspend --device meter-17
      fleet-provisioning suspend --devices-file doubtful.txt
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"
    _check_target(device, serial, devices_file)

    async def command(client: OperatorClient) -> None:
        with printed(_COLUMNS, _row, as_json=as_json) as show:
            await one_by_one(_each(device, serial, devices_file), lambda one: client.suspend(**one), show, "suspended")

    connection.run(command)


@connected
def resume(
    connection: Connection,
    device: Devices = None,
    serial: Serials = None,
    devices_file: DevicesFile = None,
    as_json: Json = False,
) -> None:
    """End a suspension, or those of many devices: the certificates are good again.

    \b
    Example:
      fleet-provisioning resume --device meter-17
      fleet-provisioning resume --devices-file doubtful.txt
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"
    _check_target(device, serial, devices_file)

    async def command(client: OperatorClient) -> None:
        total = 0
        with printed(_RELEASED_COLUMNS, _released_row, as_json=as_json) as show:

            def show_some(found: Sequence[ReleasedCertificate]) -> None:
                nonlocal total
                total += len(found)
                if found:
                    show(found)

            await one_by_one(
                _each(device, serial, devices_file), lambda one: client.resume(**one), show_some, "resumed"
            )
        if not total and not as_json:
            say("fleet-provisioning: nothing was suspended")

    connection.run(command)


@connected
def decommission(
    connection: Connection,
    device: Annotated[list[str] | None, typer.Option(help="The device; repeat it.", show_default=False)] = None,
    devices_file: DevicesFile = None,
    as_json: Json = False,
) -> None:
    """Revoke devices for ever: their names never get a certificate again.

    \b
    Example:
      fleet-provisioning decommission --device meter-17
      fleet-provisioning decommission --devices-file scrapped.txt
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"
    if bool(device) == (devices_file is not None):
        raise typer.BadParameter("give exactly one of --device and --devices-file")

    async def command(client: OperatorClient) -> None:
        with printed(_COLUMNS, _row, as_json=as_json) as show:
            names = device or [] if devices_file is None else read_lines(devices_file, "device")
            await one_by_one(names, client.decommission, show, "decommissioned")

    connection.run(command)


def _check_target(devices: Sequence[str] | None, serials: Sequence[str] | None, devices_file: Path | None) -> None:
    if sum(map(bool, (devices, serials, devices_file))) != 1:
        raise typer.BadParameter("give exactly one of --device, --serial and --devices-file")


def _each(
    devices: Sequence[str] | None, serials: Sequence[str] | None, devices_file: Path | None
) -> list[dict[str, str]]:
    """Return what is asked for each of those that are named, in order."""
    names = devices or () if devices_file is None else read_lines(devices_file, "device")
    return [{"device": each} for each in names] + [{"serial": each} for each in serials or ()]


def _row(revoked: RevokedCertificate) -> Sequence[str]:
    return (
        revoked.serial,
        revoked.device,
        revoked.reason,
        shown_time(revoked.revoked_at),
        str(revoked.sequence),
    )


def _released_row(released: ReleasedCertificate) -> Sequence[str]:
    return released.serial, released.device, shown_time(released.released_at), str(released.sequence)
