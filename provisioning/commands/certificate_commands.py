"""The operator's commands about certificates: search, what expires soon, export."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from provisioning.commands.certificate_state import shown_state
from provisioning.commands.choice_option import choice_option
from provisioning.commands.known_names import device_names, group_names
from provisioning.commands.last_ends import last_ends
from provisioning.commands.printed_rows import print_each, print_list
from provisioning.commands.service_command import (
    Connection,
    connected,
    duration,
    print_facts,
    print_json,
    progress,
    say,
)
from provisioning.program.command_group import command_group
from provisioning.program.csv_cell import csv_cell
from provisioning.program.gathered_options import with_options
from provisioning.program.given_moment import moment
from provisioning.program.json_output import Json, print_document
from provisioning.program.moments import shown_time
from provisioning.program.printed_table import print_table

if TYPE_CHECKING:
    from provisioning.client.operator import OperatorClient
    from provisioning.client.operator_answers import IssuedCertificate

certificate_app = command_group(help="List, count and export certificates.")


class ExportFormat(StrEnum):
    """How an export is written."""

    CSV = "csv"
    JSON = "json"


STATES: Final = ("active", "suspended", "revoked", "expired")
"""Of certificates."""
Group = Annotated[
    str | None, typer.Option(help="Of devices of this group only.", autocompletion=group_names, show_default=False)
]


@dataclass(frozen=True, slots=True)
class Search:
    """Which certificates the command line selects: all by default."""

    device: Annotated[
        str | None, typer.Option(help="Of this device only.", autocompletion=device_names, show_default=False)
    ] = None
    group: Group = None
    serial: Annotated[str | None, typer.Option(help="With this serial number (hexadecimal).", show_default=False)] = (
        None
    )
    fingerprint: Annotated[str | None, typer.Option(help="With this SHA-256 fingerprint.", show_default=False)] = None
    issuer: Annotated[
        str | None,
        typer.Option(
            "--issuer", help="Of the CA with this name, as `ca list` shows it, or key identifier.", show_default=False
        ),
    ] = None
    state: Annotated[str | None, choice_option(STATES)] = None
    expires_from: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=moment,
            help="Expiring at this time or later, in UTC: 2027-01-05, or 2027-01-05T08:00:00.",
            show_default=False,
        ),
    ] = None
    expires_before: Annotated[
        datetime | None,
        typer.Option(metavar="TIME", parser=moment, help="Expiring before this time, in UTC.", show_default=False),
    ] = None


@certificate_app.command("list")
@connected
@with_options(Search)
def list_certificates(
    search: Search,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """List certificates in order of issuance.

    \b
    Example:
      fleet-provisioning certificate list --state active --group north --json
    """

    async def command(client: OperatorClient) -> None:
        await print_each(client.certificates(**asdict(search)), _COLUMNS, _row, as_json=as_json)

    connection.run(command)


@certificate_app.command("expiring")
@connected
def expiring(
    connection: Connection,
    within: Annotated[str, typer.Option(help="How soon: 90m, 12h, 14d, 4w.")] = "14d",
    group: Group = None,
    as_json: Json = False,
) -> None:
    """List valid certificates that expire soon, the next to expire first, where no later one has followed.

    The service's own are left out: it renews them itself.

    \b
    Example:
      fleet-provisioning certificate expiring --within 14d
    """
    from provisioning.authorities.own_credentials import (
        SERVER_NAME,  # Imports the issuance core: other commands start without it.
    )

    until = datetime.now(UTC) + duration(within, "--within")

    async def command(client: OperatorClient) -> None:
        ending = client.certificates(group=group, state="active", expires_before=until)
        found = [each async for each in ending if each.device != SERVER_NAME]
        last = await last_ends(client, {each.device for each in found}, group)
        newest = {each.device: each for each in found if each.not_after >= (last.get(each.device) or each.not_after)}
        print_list(sorted(newest.values(), key=lambda each: each.not_after), _COLUMNS, _row, as_json=as_json)

    connection.run(command)


@certificate_app.command("count")
@connected
@with_options(Search, without={"serial", "fingerprint", "state"})
def count(
    search: Search,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Count certificates by state.

    \b
    Example:
      fleet-provisioning certificate count --group north
    """

    async def command(client: OperatorClient) -> None:
        counts = await client.count_certificates(**asdict(search))
        if as_json:
            print_document(counts)
        else:
            print_table(("state", "certificates"), ((state, str(number)) for state, number in counts.items()))

    connection.run(command)


@certificate_app.command("export")
@connected
@with_options(Search)
def export(
    search: Search,
    connection: Connection,
    format_: Annotated[ExportFormat, typer.Option("--format", help="csv or json.")] = ExportFormat.CSV,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Write every matching certificate to stdout, page by page, as CSV or as JSON, one object per line.

    \b
    Example:
      fleet-provisioning certificate export --format csv --state active > inventory.csv
    """
    csv_wanted = format_ is ExportFormat.CSV and not as_json

    from provisioning.client.operator_answers import IssuedCertificate  # Late: `service_command`, rule 3.

    async def command(client: OperatorClient) -> None:
        writer = csv.DictWriter(sys.stdout, list(IssuedCertificate.model_fields))
        if csv_wanted:
            writer.writeheader()
        total = sum((await client.count_certificates(**asdict(search))).values())
        with _writing(total) as advance:
            async for each in client.certificates(**asdict(search)):
                item = each.model_dump(mode="json")
                if csv_wanted:
                    writer.writerow({name: csv_cell(value) for name, value in item.items()})
                else:
                    sys.stdout.write(json.dumps(item) + "\n")
                advance()

    connection.run(command)


def _is_pipe(output: TextIO) -> bool:
    """Whether another program reads *output*, and may show it on the terminal."""
    try:
        return stat.S_ISFIFO(os.fstat(output.fileno()).st_mode)
    except (OSError, ValueError):  # It is no file.
        return False


@contextlib.contextmanager
def _writing(total: int) -> Iterator[Callable[[], None]]:
    """Yield what is to be told of each of *total* that is written: it shows the progress, unless a terminal shows each.

    If the block ends early, it is said how far it has come, but to nobody who reads no further.
    """
    written = 0
    # A terminal that shows the rows shows the progress by them; a bar above them would break their lines. So would it
    # where they come there by head, or by less.
    with (
        contextlib.nullcontext(lambda _: None)
        if sys.stdout.isatty()
        else progress("certificates written", total, drawn=not _is_pipe(sys.stdout))
    ) as show:

        def advance() -> None:
            nonlocal written
            written += 1
            show(1)

        try:
            yield advance
        except OSError:  # The output's.
            raise
        except BaseException:
            say(f"fleet-provisioning: {written} of {total} certificates are written")
            raise


@certificate_app.command("show")
@connected
def show_certificate(
    connection: Connection,
    serial: Annotated[str, typer.Argument(help="Serial number in hexadecimal.")],
    as_pem: Annotated[bool, typer.Option("--pem", help="Print the certificate itself, in PEM.")] = False,
    with_chain: Annotated[
        bool, typer.Option("--chain", help="The same, followed by the certificate of its issuing CA.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show one certificate: what is known of it, or the certificate itself.

    \b
    Example:
      fleet-provisioning certificate show 43555deb683f6f04348b9e168ab6561b
      fleet-provisioning certificate show 43555deb683f6f04348b9e168ab6561b --pem | openssl x509 -noout -text
    """
    if as_json and (as_pem or with_chain):
        raise typer.BadParameter("leave out --pem and --chain: the JSON has both", param_hint="'--json'")

    async def command(client: OperatorClient) -> None:
        certificate = await client.certificate(serial)
        if as_pem or with_chain:
            sys.stdout.write(certificate.pem + (certificate.chain if with_chain else ""))
        elif as_json:
            print_json(certificate)
        else:
            print_facts(certificate, without={"pem", "chain"})

    connection.run(command)


_COLUMNS: Final = ("serial", "device", "role", "state", "not after")


def _row(each: IssuedCertificate) -> Sequence[str]:
    return each.serial, each.device, each.role, shown_state(each), shown_time(each.not_after)
