"""The audit log's commands. They read the store itself, with the key beside the CA keys; the service need not run.

The store is imported by the command that needs it: `--help` and the API commands start without it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from provisioning.commands.service_command import Directory, fail, say
from provisioning.errors import ConfigurationError, Refused
from provisioning.program.command_group import command_group
from provisioning.program.counted import counted
from provisioning.program.given_moment import Since, Until
from provisioning.program.json_output import Json, print_document
from provisioning.program.moments import rfc3339_milliseconds, shown_time
from provisioning.program.printed_table import print_table

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from provisioning.directory.audit_chain import AuditHead
    from provisioning.store.audit import AuditEntry

audit_app = command_group(help="Read and verify the audit log.")

ResultT = TypeVar("ResultT")

_FEW: Final = 8
"""How many members of a longer list in an entry's details are shown."""


@audit_app.command("verify")
def verify(
    head: Annotated[
        str | None,
        typer.Option(help="A head that an earlier run printed: detects a restored, older log.", show_default=False),
    ] = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Check that no entry was changed, removed or truncated. Prints the head to record; exit code 1 if the check fails.

    \b
    Example:
      fleet-provisioning audit verify --dir /var/lib/fleet
    """
    from provisioning.store import audit_findings

    noted = None if head is None else _parse_head(head)

    def read(connection: Connection) -> tuple[list[str], AuditHead | None]:
        return list(audit_findings.findings(connection, noted)), audit_findings.readable_head(connection)

    findings, end = _read(directory, read)
    if as_json:
        facts = (None, None) if end is None else (end.number, str(end))
        print_document({"entries": facts[0], "head": facts[1], "findings": findings})
    else:
        for finding in findings:
            sys.stdout.write(f"{finding}\n")
    if findings:
        raise fail(f"the audit log has {counted(len(findings), 'finding')}")
    if end is not None and not as_json:
        sys.stdout.write(f"{counted(end.number, 'entry', 'entries')}, all as they were written\nhead {end}\n")


@audit_app.command("show")
def show(
    about: Annotated[
        str, typer.Argument(help="Only entries with this text: a name, serial, action …", show_default=False)
    ] = "",
    after: Annotated[
        int | None,
        typer.Option(
            min=0, max=2**63 - 1, help="From after this number on, instead of the last ones.", show_default=False
        ),
    ] = None,
    since: Since = None,
    until: Until = None,
    by: Annotated[
        str | None, typer.Option(help="Only what this operator, device or service has done.", show_default=False)
    ] = None,
    signatures: Annotated[
        bool, typer.Option("--signatures/--no-signatures", help="Also each certificate and CRL that was signed.")
    ] = True,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 100,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Show the last entries of the audit log, the oldest first. The table shortens long lists; JSON does not.

    \b
    Example:
      fleet-provisioning audit show meter-17
      fleet-provisioning audit show --since 2027-01-05 --until 2027-01-06 --no-signatures
      fleet-provisioning audit show --after 1000 --json
    """
    from provisioning.store import audit

    try:
        wanted = audit.AuditFilter(since, until, by, signatures)
        most = limit + 1  # To know whether there are more.
        found = _read(directory, lambda connection: audit.about(connection, about, most, after=after, wanted=wanted))
        are_all = len(found) <= limit
        if not are_all:
            found = found[-limit:] if after is None else found[:limit]
        items = [_item(entry) for entry in found]
    except (ValueError, TypeError) as error:
        raise fail(f"the audit log holds what no service writes ({error}): audit verify says in which entry") from error
    if as_json:
        print_document(items)
    elif found:
        _print_table(found, about)
    if not found and not as_json:
        narrowed = wanted != audit.EVERY_ENTRY or after is not None
        say("fleet-provisioning: no entry" + (" of these" if narrowed else "") + (" with that text" if about else ""))
    if not are_all:
        shown = " is" if limit == 1 else f" {limit} are"
        more = "--limit shows more" if after is None else f"--after {found[-1].number} shows the next"
        say(f"fleet-provisioning: only the {'last' if after is None else 'first'}{shown} shown: {more}")


def _print_table(found: Sequence[AuditEntry], about: str) -> None:
    print_table(
        ("number", "time", "actor", "action", "subject", "details"),
        (
            (
                str(each.number),
                shown_time(each.at),
                each.actor,
                each.action,
                each.subject,
                _details(each.details, about),
            )
            for each in found
        ),
    )


def _read(directory: Path | None, work: Callable[[Connection], ResultT]) -> ResultT:
    import asyncio

    from provisioning.config import load_settings
    from provisioning.directory.audit_key import read_audit_key
    from provisioning.directory.files import AuthorityFiles
    from provisioning.program.interruption import ended_by_ctrl_c
    from provisioning.program.logs import configure_logging
    from provisioning.store import schema
    from provisioning.store.database import Database
    from provisioning.store.usable import usable

    configure_logging(least="error")  # Not to stdout, which is for the result; errors are reported.

    async def run() -> ResultT:
        settings = load_settings(directory)
        files = AuthorityFiles(settings.directory)
        files.check_there()
        database = Database(settings.resolved_database_url, read_audit_key(files))
        if database.doubt is not None:
            say(f"fleet-provisioning: {database.doubt}")
        try:
            schema.check_there(database)
            with usable(database):
                await database.read(lambda connection: schema.check_has_audit_log(connection, database))
                return await database.read(work)
        finally:
            await database.close()

    try:
        with ended_by_ctrl_c():
            return asyncio.run(run())
    except (ConfigurationError, Refused) as error:
        raise fail(error) from error


def _parse_head(text: str) -> AuditHead:
    from provisioning.directory.audit_chain import AuditHead

    try:
        return AuditHead.parse(text)
    except ValueError:
        raise typer.BadParameter("write NUMBER:HEXADECIMAL, as audit verify prints it", param_hint="'--head'") from None


def _details(document: str, about: str) -> str:
    """Return an entry's other details: of a long list only the members that match *about*, or the first.

    An entry about a batch names five hundred devices, which would fill the table.
    """
    details = json.loads(document)
    for name, value in details.items():
        if isinstance(value, list) and len(value) > _FEW:
            shown = [each for each in value if about and about in str(each)][:_FEW] or value[:_FEW]
            details[name] = [*shown, f"… {len(value) - len(shown)} more"]
    return json.dumps(details, ensure_ascii=False)


def _item(entry: AuditEntry) -> dict[str, object]:
    return {
        "number": entry.number,
        "at": rfc3339_milliseconds(entry.at),
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "details": json.loads(entry.details),
    }
