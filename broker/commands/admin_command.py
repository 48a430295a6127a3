"""What all commands that talk to a running broker share: finding the broker, and printing the answer.

Rules
-----
1. An error is one line on standard error; the exit codes are those of docs/reference/codes.md.
2. Data goes to standard output, for people (`provisioning.program.printed_table`) or with ``--json`` for programs.
3. What is needed to talk to a broker (httpx) is imported only when a command runs, and what is needed to talk to one
   elsewhere (the TLS library) only then: neither ``--help`` nor shell completion should wait for it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.admin.unix_socket import OFF, socket_path
from broker.commands.error_line import USAGE, failed, say_wrong
from provisioning.program import printed_table
from provisioning.program.durations import in_two_units
from provisioning.program.gathered_options import with_options
from provisioning.program.json_output import Json
from provisioning.program.starting import importing
from provisioning.program.version_option import version_option

if TYPE_CHECKING:
    from broker.admin.client import AdminClient

_SHOWN = 200
_BEHIND = "The same as behind the command."
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@dataclass(slots=True)
class _Before:
    """A remote broker, if one was given before the command, where these options alone were once."""

    url: str | None = None
    cafile: Path | None = None
    cert: Path | None = None
    key: Path | None = None


_before = _Before()


def remote_options(
    url: Annotated[str | None, typer.Option(hidden=True, help=_BEHIND)] = None,
    cafile: Annotated[Path | None, typer.Option(hidden=True, help=_BEHIND)] = None,
    cert: Annotated[Path | None, typer.Option(hidden=True, help=_BEHIND)] = None,
    key: Annotated[Path | None, typer.Option(hidden=True, help=_BEHIND)] = None,
    version: Annotated[bool, version_option("fleet-broker")] = False,
) -> None:
    """Remember where to ask if that is given before the command: ``fleet-broker --url https://… sessions``."""
    del version  # Handled already, if it was given.
    if url is None and (cafile or cert or key):
        raise typer.BadParameter("--cafile, --cert and --key before a command go with --url")
    _before.url, _before.cafile, _before.cert, _before.key = url, cafile, cert, key


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """The broker that a command asks, here or at a URL, and how its answer is printed."""

    socket: Annotated[
        Path | None,
        typer.Option(
            "--admin-socket",
            envvar="FLEET_BROKER_ADMIN_SOCKET",
            help="The broker's admin socket (default: STATE_DIR/admin.sock).",
            show_default=False,
        ),
    ] = None
    state_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="FLEET_BROKER_STATE_DIR",
            help="The broker's state directory (default: broker-state).",
            show_default=False,
        ),
    ] = None
    config: Annotated[
        Path | None, typer.Option(help="The broker's TOML file, to find its socket.", show_default=False)
    ] = None
    url: Annotated[
        str | None,
        typer.Option(help="Ask the broker at this https:// address, its admin_port, instead.", show_default=False),
    ] = None
    cafile: Annotated[Path | None, typer.Option(help="With --url: trust anchors.", show_default=False)] = None
    cert: Annotated[Path | None, typer.Option(help="With --url: an operator's certificate.", show_default=False)] = None
    key: Annotated[Path | None, typer.Option(help="With --url: its private key.", show_default=False)] = None
    as_json: Json = False

    def connect(self) -> AdminClient:
        """Return a client of the selected broker. Raises `ConfigError`, and `BrokerUnreachable`."""
        with importing():  # Late, like the next ones: rule 3.
            from broker.admin.client import AdminClient
            from broker.settings.config_file import ConfigError

        url, cafile, cert, key = self.elsewhere, self.cafile or _before.cafile, self._cert, self._key
        if url is None:
            if cafile or cert or key:
                raise ConfigError("--cafile, --cert and --key go with --url")
            return AdminClient.at_socket(self._path())
        if cafile is None or cert is None or key is None:
            raise ConfigError("--url needs --cafile, --cert and --key")
        if not url.startswith("https://"):  # Over plain HTTP anybody could answer, and read the requests.
            raise ConfigError(f"--url: {url[:_SHOWN]!r} is no https:// address; give that of the broker's admin_port")
        with importing():
            from provisioning.pki.tls import CredentialFiles, TlsConfigurationError

        try:
            return AdminClient.at_url(url, cafile, CredentialFiles(cert, key))
        except TlsConfigurationError as error:
            raise ConfigError(str(error)) from error

    @contextlib.contextmanager
    def client(self) -> Iterator[AdminClient]:
        """Yield a client of the selected broker; an error is one line and the end of the command."""
        with importing():
            from broker.admin.client import BrokerUnreachable, RequestRefused
            from broker.settings.config_file import ConfigError

        if self._key is not None:
            with importing():
                from provisioning.pki import open_to_all

            if (warning := open_to_all.told_of(self._key)) is not None:
                say_wrong(f"warning: {warning}")
        try:
            with self.connect() as client:
                yield client
        except ConfigError as error:
            raise failed(str(error), USAGE) from None
        except (BrokerUnreachable, RequestRefused) as error:
            raise failed(str(error)) from None

    @property
    def elsewhere(self) -> str | None:
        """The address that was given, behind the command or before it; None: the broker here is asked.

        An empty one, as of a variable that is not set, is none, and not that of the broker here.
        """
        return self.url if self.url is not None else _before.url

    @property
    def _cert(self) -> Path | None:
        return self.cert or _before.cert

    @property
    def _key(self) -> Path | None:
        return self.key or _before.key

    def _path(self) -> Path:
        from broker.settings.config_file import ConfigError, read_texts

        values = read_texts(self.config, "admin_socket", "state_dir")
        setting = str(self.socket) if self.socket is not None else values.get("admin_socket")
        path = socket_path(setting, self.state_dir or Path(values.get("state_dir", "broker-state")))
        if path is None:
            raise ConfigError(f"admin_socket is {OFF}: this broker has no admin socket")
        return path


asking = with_options(RunningBroker, behind=True)
"""Gives a command the options of all commands that ask a running broker; it takes a `RunningBroker`."""


def clock(text: str) -> str:
    """Return *text*, or if it is a moment of a JSON document, that as all three programs show it to people."""
    return f"{text[:10]} {text[11:19]} UTC" if _MOMENT.fullmatch(text) else text


def print_facts(facts: dict[str, Any]) -> None:
    """Print *facts*, one per line; on a terminal long ones continue below where they began."""
    printed_table.print_pairs([_fact(name, value) for name, value in facts.items()])


def _fact(field: str, value: Any) -> tuple[str, str]:
    """Return the name and the value of a *field* for people, a number of seconds as a duration: ``3d 4h``."""
    name = field.removesuffix("_seconds")
    is_duration = name != field and isinstance(value, int | float)
    shown = in_two_units(value) if is_duration else _shown(value)
    return name.replace("_", " ").replace(" cas", " CAs"), shown


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
        case list():
            return " ".join(_named(each) if isinstance(each, dict) else each for each in value) or "none"
        case _:
            return clock(str(value))


def _named(item: dict[str, Any]) -> str:
    """Return the name of a plugin, or of a CA."""
    return str(item["path"]) if "path" in item else f"{item['name']} ({item['state']})"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table for people, with moments as `clock` shows them."""
    printed_table.print_table(columns, ([clock(cell) for cell in row] for row in rows))
