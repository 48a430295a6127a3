"""The commands that speak to a running broker: ``status``, ``sessions``, ``kick``, ``trust show``, ``reload``.

Rules
-----
1. Everything goes through the admin API (`broker.admin.client`): a command can do what the API can, and no more.
2. Data goes to standard output, for people or with ``--json`` for programs; a table is never cut to the terminal's
   width: a serial number is there to be copied. Exit codes: 0 done, 1 refused or nobody there, 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.admin.client import AdminClient, BrokerUnreachable, RequestRefused
from broker.admin.endpoint import OFF, socket_path
from broker.admission.policy_file import PolicyError, read_policy
from broker.config import ConfigError, read_file
from broker.reload.report import Part

_SHOWN = 1000
_USAGE = 2

trust_app = typer.Typer(help="See whom the broker trusts.", no_args_is_help=True)

Socket = Annotated[
    Path | None,
    typer.Option(
        "--admin-socket",
        envvar="FLEET_BROKER_ADMIN_SOCKET",
        help="The broker's admin socket (default: STATE_DIR/admin.sock).",
        show_default=False,
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option(
        envvar="FLEET_BROKER_STATE_DIR",
        help="The broker's state directory (default: broker-state).",
        show_default=False,
    ),
]
Config = Annotated[Path | None, typer.Option(help="The broker's TOML file, to find its socket.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Group = Annotated[str | None, typer.Option(help="Only of this group.", show_default=False)]


def status(socket: Socket = None, state_dir: StateDir = None, config: Config = None, as_json: Json = False) -> None:
    """Say how the broker is: where it listens, who is connected, who was refused, how old its revocation data is."""
    with _client(socket, state_dir, config) as client:
        facts = client.get("/v1/status")
    if as_json:
        _print_json(facts)
    else:
        _print_facts(facts)


def sessions(
    who: Annotated[
        str | None,
        typer.Argument(help="Client identifier, device, serial number or address.", show_default=False),
    ] = None,
    group: Group = None,
    device: Annotated[str | None, typer.Option(help="Only of this name.", show_default=False)] = None,
    role: Annotated[str | None, typer.Option(help="device, service or operator.", show_default=False)] = None,
    connected: Annotated[
        bool | None, typer.Option("--connected/--away", help="Only connected ones, or only kept ones.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"How many to show (default: {_SHOWN}, with --json all).", show_default=False),
    ] = None,
    socket: Socket = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List sessions: who, with which certificate, from where, since when, what waits for them.

    \b
    Example:
      fleet-broker sessions --group north
      fleet-broker sessions meter-17 --json
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"
    query = {
        "anything": who,
        "group": group,
        "device": device,
        "role": role,
        "connected": None if connected is None else str(connected).lower(),
    }
    shown = limit if limit is not None else None if as_json else _SHOWN
    query["limit"] = None if shown is None else str(shown)
    with _client(socket, state_dir, config) as client:
        pieces = client.stream("/v1/sessions", **query)
        if as_json:
            for piece in pieces:
                sys.stdout.write(piece.decode())
            return
        answer = json.loads(b"".join(pieces))
    if not answer["sessions"]:
        typer.echo("no session of that description", err=True)
        return
    columns = (
        *("client id", "identity", "serial", "address", "version", "connected since", "keep alive"),
        *("subscriptions", "queued", "expires in"),
    )
    _print_table(columns, map(_session_row, answer["sessions"]))
    if answer["matched"] > answer["shown"]:
        typer.echo(f"{answer['shown']} of {answer['matched']} sessions; --limit shows more", err=True)


def kick(
    who: Annotated[str, typer.Argument(help="Client identifier, device, serial number or address.")],
    reason: Annotated[str | None, typer.Option(help="What the client is told.", show_default=False)] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="End kept sessions too: subscriptions and waiting messages are gone.")
    ] = False,
    socket: Socket = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Close the connections of a client, device, certificate or address. It may come back: to keep it out, revoke.

    An MQTT 5 client gets DISCONNECT 0x98 (Administrative action) with the reason.
    """
    asked: dict[str, Any] = {"anything": who, "forget": forget} | ({"reason": reason} if reason is not None else {})
    with _client(socket, state_dir, config) as client:
        answer = client.post("/v1/sessions/kick", asked)
    if as_json:
        _print_json(answer)
        return
    for each in answer["kicked"]:
        what = "disconnected" if each["was_connected"] else "forgotten"
        kept = ", its session is kept" if each["session_kept"] else ""
        at = f" at {each['address']}" if each["address"] else ""
        sys.stdout.write(f"{each['client_id']} ({each['identity']}){at}: {what}{kept}\n")


@trust_app.command("show")
def trust_show(socket: Socket = None, state_dir: StateDir = None, config: Config = None, as_json: Json = False) -> None:
    """Show the trust anchors that the running broker uses, and what it knows of revocations."""
    with _client(socket, state_dir, config) as client:
        answer = client.get("/v1/trust")
    if as_json:
        _print_json(answer)
        return
    columns = ("subject", "kind", "key", "ends", "days left", "sha256")
    rows = [
        (
            *(each["subject"], "root" if each["self_signed"] else f"issued by {each['issuer']}", each["key"]),
            *(each["not_after"], str(each["days_left"]), each["sha256"]),
        )
        for each in answer["anchors"]
    ]
    _print_table(columns, rows)
    sys.stdout.write("\n")
    _print_facts({"trust_domain": answer["trust_domain"] or "any that the anchors vouch for", **answer["revocation"]})


def reload(
    parts: Annotated[
        list[Part] | None, typer.Argument(help="certificate, trust, policy, limits (default: all).", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen, and to whom.")] = False,
    policy: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: a policy file to try instead of the broker's.", show_default=False),
    ] = None,
    socket: Socket = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Read certificate, trust anchors, policy and limits anew, as SIGHUP does.

    What cannot be used is refused, and the old one stays: exit code 1.
    """
    asked: dict[str, Any] = {"dry_run": dry_run}
    if parts:
        asked["parts"] = parts
    if policy is not None:
        if not dry_run:
            typer.echo("fleet-broker: --policy: only with --dry-run; a reload takes the broker's own file", err=True)
            raise typer.Exit(_USAGE)
        try:
            asked["policy"] = read_policy(policy)
        except PolicyError as error:
            typer.echo(f"fleet-broker: {error}", err=True)
            raise typer.Exit(_USAGE) from None
        asked.setdefault("parts", [Part.POLICY])
    with _client(socket, state_dir, config) as client:
        answer = client.post("/v1/reload", asked)
    if as_json:
        _print_json(answer)
    else:
        for each in answer["parts"]:
            sys.stdout.write(f"{each['text']}\n")
    if answer["refused"]:
        raise typer.Exit(1)


@contextlib.contextmanager
def _client(socket: Path | None, state_dir: Path | None, config: Path | None) -> Iterator[AdminClient]:
    """Yield a client of the broker that is meant; an error is one line and exit code 1."""
    try:
        with AdminClient(_socket(socket, state_dir, config)) as client:
            yield client
    except (BrokerUnreachable, RequestRefused, ConfigError) as error:
        typer.echo(f"fleet-broker: {error}", err=True)
        raise typer.Exit(1) from None


def _socket(socket: Path | None, state_dir: Path | None, config: Path | None) -> Path:
    values = read_file(config) if config is not None else {}
    setting = str(socket) if socket is not None else values.get("admin_socket")
    path = socket_path(setting, state_dir or Path(values.get("state_dir", "broker-state")))
    if path is None:
        raise ConfigError(f"admin_socket is {OFF}: this broker has no admin socket")
    return path


def _session_row(session: dict[str, Any]) -> tuple[str, ...]:
    if session["connected"]:
        expires = _duration(session["certificate_expires_in"])
    else:
        expires = _duration(session["session_expires_in"])
    return (
        session["client_id"],
        session["identity"],
        session["serial"] or "-",
        session["address"] or "away",
        session["version"] or "-",
        (session["connected_since"] or "-").replace("T", " ").replace("Z", ""),
        "-" if session["keep_alive"] is None else f"{session['keep_alive']} s",
        str(session["subscriptions"]),
        str(session["queued"]),
        expires,
    )


def _duration(seconds: int | None) -> str:
    """Return *seconds* in the two largest units that fit."""
    if seconds is None:
        return "never"
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // part}{smaller}"
    return f"{seconds}s"


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        text = value
        if isinstance(value, dict):
            text = ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
        elif isinstance(value, list):
            text = " ".join(value)
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        sys.stdout.write(f"{name.replace('_', ' '):<{width}}  {'-' if text is None else text}\n")


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [columns, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        cells = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
