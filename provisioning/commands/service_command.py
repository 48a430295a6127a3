"""Shared by all commands that call the service: its address, the operator's credential, and how answers are printed.

Rules
-----
1. Every error is one line on stderr and exit code 1.
2. Results go to stdout, as text for people or, with ``--json``, as JSON for programs.
3. The client's libraries (asyncio, httpx, pydantic, the TLS library) are imported when a command calls the service:
   that takes most of a second, for which neither ``--help`` nor shell completion should wait.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from provisioning.errors import ConfigurationError, InvalidSettings
from provisioning.program.durations import seconds_in
from provisioning.program.durations import shown as shown_duration
from provisioning.program.gathered_options import with_options
from provisioning.program.given_moment import moment
from provisioning.program.hung_line import hung
from provisioning.program.journal import failure
from provisioning.program.json_output import print_document
from provisioning.program.moments import shown_time
from provisioning.program.printable import LAID_OUT, printable
from provisioning.program.printed_table import print_pairs
from provisioning.program.starting import importing

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.progress import Progress

    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.config import Settings
    from provisioning.pki.tls import CredentialFiles

_TELL_SECONDS: Final = 5.0
_LONGEST: Final = 36_500 * 86_400.0
"""In seconds; no certificate lives so long."""


Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir", help="The service's directory, for port and credentials (default: fleet).", show_default=False
    ),
]


def say(line: str) -> None:
    """Print a line for people: to stderr, with control characters escaped."""
    sys.stderr.write(f"{hung(printable(line, also=LAID_OUT), sys.stderr)}\n")
    sys.stderr.flush()


def fail(why: str | Exception) -> typer.Exit:
    """Print the one line that explains a failure, and return the exit to raise: 2 for settings that are invalid."""
    say(failure(f"fleet-provisioning: {why}", sys.stderr))
    return typer.Exit(2 if isinstance(why, InvalidSettings) else 1)


def warn_of_open(*secrets: Path | None) -> None:
    """Warn of private files in use that everybody may read."""
    from provisioning.pki import open_to_all

    for path in secrets:
        if path is not None and (warning := open_to_all.told_of(path)) is not None:
            say(f"fleet-provisioning: warning: {warning}")


def warn_of_credential(credential: CredentialFiles) -> None:
    """Warn of an operator's key that everybody may read, and of a certificate that expires soon."""
    from provisioning.commands.ending_credential import told_of_end

    warn_of_open(credential.key)
    if (warning := told_of_end(credential.certificate, datetime.now(UTC))) is not None:
        say(f"fleet-provisioning: warning: {warning}")


def warn_of_doubts(settings: Settings) -> None:
    """Warn of settings that are probably mistakes."""
    from provisioning.directory.doubts import doubts

    for doubt in doubts(settings):
        say(f"fleet-provisioning: warning: {doubt}")


@dataclass(frozen=True, slots=True)
class Connection:
    """The service's address and the caller's credential, from the command line."""

    directory: Directory = None
    url: Annotated[
        str | None,
        typer.Option(
            help="URL of the service (default: the running service of DIR, or its configured port).", show_default=False
        ),
    ] = None
    cafile: Annotated[
        Path | None, typer.Option("--cafile", help="Trust anchors (default: DIR/ca-bundle.crt).", show_default=False)
    ] = None
    cert: Annotated[
        Path | None, typer.Option(help="Operator certificate (default: DIR/operator.crt).", show_default=False)
    ] = None
    key: Annotated[
        Path | None, typer.Option(help="Its private key (default: DIR/operator.key).", show_default=False)
    ] = None

    def client(self, warn: Callable[[CredentialFiles], None] = lambda _: None) -> EnrolmentOperatorClient:
        """Return a client of the service, after *warn* about the credential that it uses.

        Raises `ConfigurationError`, `TlsConfigurationError`.
        """
        with importing():  # Late: rule 3.
            from provisioning.client.enrolment import EnrolmentOperatorClient
            from provisioning.config import load_settings
            from provisioning.directory.whereabouts import found
            from provisioning.pki.tls import CredentialFiles

        settings = load_settings(self.directory)
        where = settings.directory
        credential = CredentialFiles(self.cert or where / "operator.crt", self.key or where / "operator.key")
        url = self.url  # An empty one, as of a variable that is not set, is not that of the service here.
        if url is None:
            url = found(where) or f"https://localhost:{settings.port}"
        warn(credential)
        return EnrolmentOperatorClient(url, self.cafile or where / "ca-bundle.crt", credential)

    def run(self, command: Callable[[EnrolmentOperatorClient], Awaitable[None]]) -> None:
        """Run *command* with a client of the service; turn errors into one line and exit code 1."""
        with importing():
            import asyncio

            from provisioning.client.operator import RequestRefused, ServiceFails, ServiceUnavailable
            from provisioning.pki.tls import TlsConfigurationError
            from provisioning.program import interruption, termination

        async def run(client: EnrolmentOperatorClient) -> None:
            with termination.cancelled_by_sigterm():
                async with client:
                    await command(client)

        try:
            asyncio.run(run(self.client(warn_of_credential)))
        except (ConfigurationError, RequestRefused) as error:
            raise fail(error) from error
        except TlsConfigurationError as error:
            told, cause = str(error), error.__cause__
            if isinstance(cause, OSError):  # With this remedy alone: most often the directory is another.
                told = f"{cause.filename} cannot be read: {cause.strerror}"
            raise fail(f"{told}; give --dir, or --cafile, --cert and --key") from error
        except ServiceFails as error:
            said = "log says why" in str(error)
            raise fail(str(error) if said else f"{error}; its log says why") from error
        except ServiceUnavailable as error:
            advised = "; " in str(error)
            raise fail(str(error) if advised else f"{error}; is the service running, and is --url right?") from error
        except BrokenPipeError:
            raise  # The reader has closed the output early, as head does: `provisioning.program.command_line`.
        except OSError as error:
            raise fail(f"{error.filename or 'the output cannot be written'}: {error.strerror}") from error
        except (KeyboardInterrupt, asyncio.CancelledError) as error:
            say("fleet-provisioning: stopped")
            ended_by = interruption if isinstance(error, KeyboardInterrupt) else termination
            raise typer.Exit(ended_by.EXIT_CODE) from error


connected = with_options(Connection, behind=True)
"""Gives a command the options of all commands that call the service; it takes a `Connection` first."""


def span(text: object) -> int:
    """Return the seconds of a duration on the command line; for `typer.Option(parser=…)`."""
    given = str(text).strip()
    seconds = seconds_in(f"{given}s" if given.isdecimal() else given)
    if seconds is None:
        raise typer.BadParameter(f"{given[:40]!r} is not a duration: write 90s, 15m, 12h, 7d, or a number of seconds")
    return round(seconds)


def duration(text: str, option: str) -> timedelta:
    """Parse a duration with its unit, such as 14d; raise `typer.BadParameter` naming the *option*."""
    seconds = seconds_in(text.strip())
    if seconds is None:
        raise typer.BadParameter(
            f"{text[:40]!r} is not a duration: write 90m, 12h, 14d or 4w", param_hint=f"'{option}'"
        )
    if seconds > _LONGEST:
        raise typer.BadParameter(f"{text!r} is longer than a certificate can live", param_hint=f"'{option}'")
    return timedelta(seconds=seconds)


InvalidityDate = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME",
        parser=moment,
        help="Since when the key is known or suspected to be compromised, in UTC: 2027-01-05T08:00:00.",
        show_default=False,
    ),
]


def print_json(answer: BaseModel) -> None:
    """Print an answer for programs."""
    print_document(answer.model_dump(mode="json"))


def print_answer(answer: BaseModel, *, as_json: bool) -> None:
    """Print an answer: for programs, or a line for each of its facts."""
    if as_json:
        print_json(answer)
    else:
        print_facts(answer)


def print_facts(answer: BaseModel, *, without: Collection[str] = ()) -> None:
    """Print an answer, a line for each of its facts except those in the fields *without*."""
    shown = [(name, value) for name, value in answer if value is not None and name not in without]
    print_pairs([_named(name, value) for name, value in shown])


def _named(field: str, value: object) -> tuple[str, str]:
    """Return the name and the value of a *field* for people, a duration as the options take it: ``7d``."""
    name = field.removesuffix("_seconds")
    shown = shown_duration(value) if name != field and isinstance(value, int) else _shown(value)
    return name.replace("_", " "), shown


def _shown(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case datetime():
            return shown_time(value)
        case list() | tuple():
            return ", ".join(map(str, value)) or "none"
        case _:
            return str(value)


def progress_bar(*, drawn: bool = True) -> Progress:
    """Return a bar that is shown only at a terminal, if it is to be *drawn*; output to stderr appears above it."""
    from rich.console import Console  # Only for the few commands that show one: rule 3.
    from rich.progress import Progress

    console = Console(stderr=True)
    # With the redirection, stdout's text appears above the bar; it must not if stdout is a file.
    above = sys.stdout.isatty()
    return Progress(console=console, transient=True, disable=not (drawn and console.is_terminal), redirect_stdout=above)


@contextlib.contextmanager
def progress(what: str, total: int | None = None, *, drawn: bool = True) -> Iterator[Callable[[int], None]]:
    """Show the progress, of *total* if known: *drawn* on a terminal, a line every few seconds elsewhere.

    That all is done is no line: the command says next what has become of it.
    """
    done, told_at = 0, time.monotonic()
    with progress_bar(drawn=drawn) as bar:
        task = bar.add_task(what, total=total)

        def advance(number: int) -> None:
            nonlocal done, told_at
            done += number
            bar.advance(task, number)
            if bar.disable and done != total and time.monotonic() - told_at > _TELL_SECONDS:
                told_at = time.monotonic()
                say(f"{done} {what}" if total is None else f"{done} of {total} {what}")

        yield advance
