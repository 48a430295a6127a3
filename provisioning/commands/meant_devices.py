"""Which devices or certificates a command acts on: named one by one, in a file, or all that have something in common.

That is their group, or the claim or the manufacturer that let them in.

Rules
-----
1. Before an action on all of those, the command lists them and asks for confirmation.
2. That nothing is left to do is no failure: a repeated command finds it done. A group without any device is one: its
   name may be misspelled, and the operator relies on the action. A similar name is suggested. Claims and manufacturers
   are known to the service by their names, also those that have let nobody in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from provisioning.commands.asking import ask
from provisioning.commands.certificate_file import read_certificate
from provisioning.commands.known_names import device_names, group_names
from provisioning.commands.named_lines import before_the_loop, read_lines
from provisioning.commands.service_command import Connection, say
from provisioning.errors import ConfigurationError
from provisioning.pki.serial_number import normal_serial
from provisioning.program.counted import counted
from provisioning.program.near_names import NearNames, did_you_mean

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.operator_answers import EnrolledDevice

_LOOKED_AT: Final = 500
"""Devices whose groups are looked at for a similar name; a group that is not configured is known by its devices."""

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before changing many.")]


@dataclass(frozen=True, slots=True)
class Doing:
    """An action on devices that have something in common."""

    verb: str
    """``suspend``"""
    is_left: Callable[[EnrolledDevice], bool]
    """Whether the action would change a device."""
    for_ever: bool = False


@dataclass(frozen=True, slots=True)
class Meant:
    """What a command acts on."""

    kind: str
    """``device``, ``serial`` or ``certificate``"""
    which: Sequence[str]
    """Names of devices, serial numbers as the service writes them, or certificates in PEM; each once."""
    single: bool
    """Whether the command line named a single one, as opposed to a list with one entry."""


@dataclass(frozen=True, slots=True)
class Named:
    """The command line's choices: exactly one must be given, or `check` raises `typer.BadParameter`."""

    # Lists, though one is usual: for an option with one value, a second would silently replace the first.
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="All certificates of this device; repeatable.",
            autocompletion=device_names,
            show_default=False,
        ),
    ] = None
    serial: Annotated[
        list[str] | None,
        typer.Option("--serial", help="This certificate (hexadecimal); repeatable.", show_default=False),
    ] = None
    devices_file: Annotated[
        Path | None,
        typer.Option(help="The devices in this file, one name per line; - is standard input.", show_default=False),
    ] = None
    serials_file: Annotated[
        Path | None,
        typer.Option(
            help="The certificates in this file, one serial number per line; - is standard input.", show_default=False
        ),
    ] = None
    certificate: Annotated[
        list[Path] | None,
        typer.Option(
            "--certificate",
            help="The certificate in this file (PEM, DER), even one that the service has lost; repeatable.",
            show_default=False,
        ),
    ] = None
    group: Annotated[
        str | None,
        typer.Option(help="All devices of this group; asks first.", autocompletion=group_names, show_default=False),
    ] = None
    claim: Annotated[
        str | None, typer.Option(help="All devices that this claim let in; asks first.", show_default=False)
    ] = None
    manufacturer: Annotated[
        str | None,
        typer.Option(
            help="All devices that last enrolled with this manufacturer's certificate; asks first.", show_default=False
        ),
    ] = None

    def check(self, *options: str) -> None:
        """Raise unless exactly one was given; *options* are those that the command has."""
        if sum(each is not None and each != [] for each in astuple(self)) != 1:
            *first, last = (f"--{each.replace('_', '-')}" for each in options)
            raise typer.BadParameter(f"give exactly one of {', '.join(first)} and {last}")

    def together(self, connection: Connection, doing: Doing, *, yes: bool) -> list[str]:
        """Return those that have in common what was given and that the action would change; asks for confirmation."""
        if (whose := self._whose()) is None:
            return []
        names: list[str] = []

        async def command(client: EnrolmentOperatorClient) -> None:
            search = client.devices(group=self.group, claim=self.claim, manufacturer=self.manufacturer)
            found = [each async for each in search]
            if not found and self.group is not None:
                raise await _no_device_in(self.group, client)
            names.extend(each.name for each in found if doing.is_left(each))

        connection.run(command)
        if not names:
            say(f"fleet-provisioning: no device of {whose} is left to {doing.verb}")
            return []
        whom = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        ever = ", for ever" if doing.for_ever else ""
        question = f"{doing.verb.capitalize()} {counted(len(names), 'device')} of {whose}, {whom}{ever}?"
        confirm(question, yes=yes)
        return names

    def _whose(self) -> str | None:
        """Return what the devices have in common: ``group north``; None: each is named."""
        common = {"group": self.group, "claim": self.claim, "manufacturer": self.manufacturer}
        return next((f"{what} {name}" for what, name in common.items() if name is not None), None)

    def meant(self, together: Sequence[str]) -> Meant:
        """Return what is named, or those *together*; raise what ends the command for a file that names nothing."""
        with before_the_loop():
            names = self.device or together if self.devices_file is None else read_lines(self.devices_file, "device")
            shown = [read_certificate(each) for each in self.certificate or ()]
            serials = self.serial or () if self.serials_file is None else read_lines(self.serials_file, "certificate")
        kind, which = ("serial", (normal_serial(text) or text for text in serials)) if serials else ("device", names)
        if shown:
            kind, which = "certificate", shown
        each = list(dict.fromkeys(which))
        return Meant(kind, each, single=len(each) == 1 and bool(self.device or self.serial))


def confirm(question: str, *, yes: bool) -> None:
    """Ask on stderr, unless *yes*: stdout is for the result only. Raise what ends the command if the answer is no.

    Not while a command's event loop runs: then an interrupt does not end the wait for an answer.
    """
    if not yes:
        ask(question)


async def _no_device_in(group: str, client: EnrolmentOperatorClient) -> ConfigurationError:
    """Return the refusal for *group*, which has no device, with the question whether a similar one is meant."""
    near, seen = NearNames(group), 0
    async for configured in client.groups():
        near.see(configured.name)
    async for device in client.devices():
        near.see(device.group or "")
        seen += 1
        if seen == _LOOKED_AT:
            break
    meant = did_you_mean(near.found) if near.found else "device list shows the group of each"
    return ConfigurationError(f"group {group!r} has no device; {meant}")
