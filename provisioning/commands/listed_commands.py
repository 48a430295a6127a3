"""The operator's commands about lists of expected devices.

An import is sent in batches and continues after an invalid entry: each is reported with its line, and the exit code
tells that there were some. It continues too if nobody reads the reports; that is an error when all is done.
"""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from provisioning.commands.in_steps import Telling
from provisioning.commands.known_names import group_names
from provisioning.commands.named_lines import before_the_loop
from provisioning.commands.printed_rows import print_list
from provisioning.commands.service_command import Connection, connected, print_json, progress, say
from provisioning.commands.shut_group import say_if_shut
from provisioning.errors import Code, ConfigurationError
from provisioning.program.command_group import command_group
from provisioning.program.counted import counted
from provisioning.program.given_file import LIST_BYTES, contents_of, lines_of
from provisioning.program.json_output import Json, print_document
from provisioning.program.moments import shown_time

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.enrolment_answers import ExpectedDevice

listed_app = command_group(help="Register the devices that a group expects.")

_BATCH: Final = 1000
_COLUMNS: Final = {"name", "key_sha256"}

Group = Annotated[str, typer.Argument(help="The group.", autocompletion=group_names)]


@listed_app.command("import")
@connected
def import_devices(
    connection: Connection,
    group: Group,
    file: Annotated[Path, typer.Option(help="CSV file with the columns name and, if keys are known, key_sha256.")],
    as_json: Json = False,
) -> None:
    """Add the devices of a CSV file to a group's list. Invalid lines are reported, the others are imported.

    Repeating it is harmless: a device on the list gets the key of its newest line.

    \b
    Example:
      fleet-provisioning group create west --way listed+token --way listed
      fleet-provisioning listed import west --file meters.csv
    """
    with before_the_loop():
        content = contents_of(file, LIST_BYTES)
    wrong = 0
    telling = Telling()

    def complain(line: int, detail: str) -> None:
        nonlocal wrong
        wrong += 1
        with telling:
            say(f"{file}:{line}: {detail}")

    async def command(client: EnrolmentOperatorClient) -> None:
        new = replaced = 0
        with progress("lines", len(content.splitlines())) as advance, _HowFar(file, telling) as far:
            for batch in _batches(file, content, complain):
                far.under_way, *_ = batch[-1]
                outcome = await client.list_devices(group, [(name, key) for _, name, key in batch])
                new, replaced = new + outcome.new, replaced + outcome.replaced
                for error in outcome.errors:
                    complain(batch[error.index][0], error.detail)
                with telling:
                    advance(far.under_way - far.reached)
                far.reached = far.under_way
        if far.reached:
            with telling:
                await say_if_shut(client, group, "listed")
        if as_json:
            print_document({"new": new, "replaced": replaced, "wrong": wrong})
        else:
            added, bad = counted(new, "device"), counted(wrong, "line")
            sys.stdout.write(f"{added} added to the list of {group}, {replaced} replaced, {bad} wrong\n")
        if telling.failed is not None:
            sys.stdout.flush()
            raise telling.failed

    connection.run(command)
    if wrong:
        raise typer.Exit(1)


@listed_app.command("list")
@connected
def list_listed(
    connection: Connection,
    group: Group,
    as_json: Json = False,
) -> None:
    """List the devices that a group expects: who has put each there, and since when it lets nobody in, if it has ended.

    \b
    Example:
      fleet-provisioning listed list west
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        found = [each async for each in client.listed_devices(group)]
        if not found:
            await say_if_shut(client, group, "listed")
        print_list(found, ("name", "key SHA-256", "by", "ended"), _row, as_json=as_json)

    connection.run(command)


@listed_app.command("end")
@connected
def end_listed(
    connection: Connection,
    by: Annotated[str, typer.Option(help="The operator who has put them there.", show_default=False)],
    as_json: Json = False,
) -> None:
    """End what an operator has put on lists, and nobody else has: it lets nobody in until another lists it again.

    Devices that have enrolled stay. The operator's revocation for keyCompromise does the same.

    \b
    Example:
      fleet-provisioning listed end --by anna
    """

    async def command(client: EnrolmentOperatorClient) -> None:
        ended = await client.end_listed_by(by)
        if as_json:
            print_json(ended)
            return
        of = f", on the lists of {', '.join(ended.lists_ended)}" if ended.lists_ended else ""
        sys.stdout.write(f"{counted(ended.listed_ended, 'entry', 'entries')} of {by} ended{of}.\n")

    connection.run(command)


def _row(entry: ExpectedDevice) -> tuple[str, ...]:
    by = entry.added_by or "-"
    return (
        entry.name,
        entry.key_sha256 or "-",
        by if entry.also_by is None else f"{by}, {entry.also_by}",
        "-" if entry.ended_at is None else shown_time(entry.ended_at),
    )


@listed_app.command("remove")
@connected
def remove_listed(
    connection: Connection,
    group: Group,
    name: Annotated[list[str], typer.Argument(help="The devices' names.")],
    as_json: Json = False,
) -> None:
    """Take devices off a group's list, one after the other. Those that have enrolled stay.

    A name that is not on the list is reported, the others are taken off.

    \b
    Example:
      fleet-provisioning listed remove west meter-17
      fleet-provisioning listed remove west meter-18 meter-19
    """
    missing: list[str] = []
    removed: list[str] = []

    async def command(client: EnrolmentOperatorClient) -> None:
        from provisioning.client.operator import RequestRefused  # Late: `service_command`, rule 3.

        for each in dict.fromkeys(name):
            try:
                await client.unlist_device(group, each)
            except RequestRefused as refusal:
                if len(name) == 1 or refusal.code != Code.DEVICE_UNKNOWN:
                    raise
                missing.append(each)
                say(f"fleet-provisioning: {refusal}")
                continue
            removed.append(each)
            if not as_json:
                sys.stdout.write(f"{each} is off the list of {group}.\n")

    try:
        connection.run(command)
    finally:  # What was removed before a later name failed is removed.
        if as_json and (removed or missing):
            print_document({"group": group, "removed": removed})
    if missing:
        raise typer.Exit(1)


class _HowFar(contextlib.AbstractContextManager["_HowFar"]):
    """A block that sends the lines of a file; if it ends early, it is said how far it has come."""

    reached = under_way = 0
    """The last line that is imported, and the last that was sent."""

    def __init__(self, path: Path, telling: Telling) -> None:
        self._path, self._telling = path, telling

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from provisioning.client.operator import RequestRefused  # Late: `service_command`, rule 3.

        told = f"imported as far as line {self.reached}" if self.reached else ""
        if self.under_way > self.reached and not isinstance(error, RequestRefused):  # A batch is refused as a whole.
            told += f"{', and ' if told else ''}perhaps {'' if told else 'imported '}as far as line {self.under_way}"
            told += ": to run it again does no harm"
        if error is not None and told:
            with self._telling:
                say(f"fleet-provisioning: {self._path} is {told}")


def _batches(
    path: Path, content: bytes, complain: Callable[[int, str], None]
) -> Iterator[list[tuple[int, str, str | None]]]:
    """Yield batches of (line, name, key) of *content*, that of *path*; the service validates names.

    *complain* gets lines with more cells than columns: it is unknown which are meant. And those with fewer, as when
    the file is truncated: the name may be the beginning of another, and a missing key would replace the known one.
    And those with the key of another line's device: the service certifies a key for one device only.
    """
    whose: dict[str, str] = {}
    cut_off = "" if content.endswith((b"\n", b"\r")) else "the file ends without the end of its last line: "
    last_line = content.count(b"\n") + 1
    with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="") as file:
        # Strict: an unclosed quote would swallow the rest.
        reader = csv.DictReader(lines_of(file, str(path)), strict=True)
        batch: list[tuple[int, str, str | None]] = []
        try:
            written = reader.fieldnames or ()
            header = reader.fieldnames = [column.strip().lower() for column in written]
            _check_header(path, header, ",".join(written))
            for row in reader:
                name, key = _cell(row, "name"), _cell(row, "key_sha256")
                wrong = _wrong_cells(row, header, cut_off if reader.line_num == last_line else "")
                if wrong is not None:
                    complain(reader.line_num, wrong)
                    continue
                if key and (other := whose.setdefault(key.lower().replace(":", ""), name)) != name:
                    complain(reader.line_num, f"the key of {name[:200]!r} is that of {other[:200]!r} in this file")
                    continue
                batch.append((reader.line_num, name[:200], key[:200] or None))
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path}, after line {reader.line_num}: {error}: save it as UTF-8") from error
        except csv.Error as error:
            remedy = "close each quotation mark, and put one device on each line"
            raise ConfigurationError(f"{path}, after line {reader.line_num}: {error}: {remedy}") from error
        if batch:
            yield batch


def _check_header(path: Path, header: Sequence[str], written: str) -> None:
    columns = set(header)
    if "name" not in columns or columns - _COLUMNS or len(header) > len(columns):
        other = next((each for each in (";", "\t", "|") if each in written), None)
        more = [each for each in header if each not in _COLUMNS]
        remedy = ""
        if other is not None:  # As spreadsheets may write it.
            remedy = f"; separate them by commas, not by {other!r}"
        elif "name" in columns and more:
            remedy = f"; take out {', '.join(map(repr, more))[:200]}"
        raise ConfigurationError(
            f"{path} must have the columns name and, if keys are known, key_sha256, and no others; its first line is "
            f"{written[:200]!r}{remedy}"
        )


def _wrong_cells(row: Mapping[str | None, Any], header: Sequence[str], cut_off: str) -> str | None:
    """Return why it is unknown what a line means, None if it is known.

    *cut_off* is what to say of a line that may have been truncated, empty for any other.
    """
    if None in row:  # The library's key for the cells behind the last column.
        return (
            f"has {len(header) + len(row[None])} cells for {len(header)} columns: take out what is too much, or put "
            "quotation marks around a cell that holds a comma"
        )
    if len(header) > 1 and (None in row.values() or (cut_off and not _cell(row, "key_sha256"))):
        return (
            f"{cut_off}it has no cell for one of the columns; end it with a comma and a line end if it is whole and no "
            "key is known"
        )
    return None


def _cell(row: Mapping[str | None, Any], column: str) -> str:
    return (row.get(column) or "").strip()
