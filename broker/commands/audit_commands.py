"""``fleet-broker audit``: whether the audit log is unchanged, and what is in it. The broker need not run.

Exit codes: 0 unchanged; 1 changed, or unreadable; 2 wrong usage.
"""

from __future__ import annotations

import json
import re
import sys
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from broker.commands.error_line import USAGE, failed, say_wrong
from provisioning.errors import ConfigurationError
from provisioning.program.command_group import command_group
from provisioning.program.counted import counted
from provisioning.program.given_file import unread
from provisioning.program.given_moment import Since, Until
from provisioning.program.json_output import Json, print_document
from provisioning.program.printable import printable

audit_app = command_group(help="Verify and read the audit log.")

_AT: Final = re.compile(rb'\{"number":\d+,"at":"([0-9T:.+-]+)"')

Log = Annotated[
    Path | None, typer.Option("--log", help="The log (default: audit_log in --config).", show_default=False)
]
Config = Annotated[Path | None, typer.Option(help="The broker's TOML file, to find log and key.", show_default=False)]
StateDir = Annotated[
    Path | None,
    typer.Option(envvar="FLEET_BROKER_STATE_DIR", help="The broker's state directory.", show_default=False),
]


@audit_app.command("verify")
def verify(
    log: Log = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Its key (default: audit_keyfile in --config, or STATE_DIR/audit.key).", show_default=False),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="A head that an earlier run printed: detects a restored older log.", show_default=False),
    ] = None,
    config: Config = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Check that no entry was changed, removed or truncated. Prints the head to record; exit code 1 if the check fails.

    \b
    Example:
      fleet-broker audit verify --config broker.toml
      fleet-broker audit verify --log /var/log/fleet/audit.jsonl --key /etc/fleet/audit.key
    """
    from broker.audit.head import AuditError  # Late, like all imports here: `broker.commands.admin_command`, rule 3.
    from broker.audit.verification import verify as verify_log
    from provisioning.directory.audit_chain import AuditHead, read_key

    path = _log(log, config)
    try:
        noted = None if head is None else AuditHead.parse(head)
    except ValueError:
        raise typer.BadParameter("write NUMBER:HEXADECIMAL, as audit verify prints it", param_hint="'--head'") from None
    try:
        verdict = verify_log(path, read_key(key or _key(config, state_dir)), noted)
    except ConfigurationError as error:
        raise failed(f"the log's key: {error}; name it with --key, --state-dir or --config") from None
    except AuditError as error:
        raise failed(str(error)) from None
    except OSError as error:
        raise failed(unread(Path(error.filename or path), error)) from None
    entries = verdict.head.number - verdict.first + 1 if verdict.first else 0
    if as_json:
        facts = {"entries": entries, "first": verdict.first, "head": str(verdict.head), "findings": verdict.findings}
        print_document(facts)
    else:
        for finding in verdict.findings:
            sys.stdout.write(f"{printable(finding)}\n")
    if verdict.findings:
        raise failed(f"the audit log has {counted(len(verdict.findings), 'finding')}")
    if not as_json:
        earlier = f" (from {verdict.first} on; older files are gone)" if verdict.first > 1 else ""
        sys.stdout.write(
            f"{counted(entries, 'entry', 'entries')}{earlier}, all as they were written\nhead {verdict.head}\n"
        )


@audit_app.command("show")
def show(
    about: Annotated[
        str | None,
        typer.Argument(help="Only entries with this text: a client, serial, address, code …", show_default=False),
    ] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many of the last ones.")] = 100,
    log: Log = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the last entries, the oldest first; with --json the lines as they are.

    \b
    Example:
      fleet-broker audit show meter-17 --config broker.toml
      fleet-broker audit show REVOKED --since 2027-01-05 --until 2027-01-06 --config broker.toml
    """
    from broker.audit.verification import lines

    path = _log(log, config)
    text = about or ""
    wanted = {text.encode(), json.dumps(text)[1:-1].encode()}  # A line is ASCII, as JSON is.
    try:
        every = (
            line for _, line in lines(path) if any(each in line for each in wanted) and _within(line, since, until)
        )
        found = deque(every, maxlen=limit + 1)  # One more, to know whether there are more.
    except OSError as error:
        raise failed(unread(Path(error.filename or path), error)) from None
    if not found:
        narrowed = since is not None or until is not None
        typer.echo("no entry" + (" of that time" if narrowed else "") + (" with that text" if text else ""), err=True)
    are_all = len(found) <= limit
    if not are_all:
        found.popleft()
    for line in found:
        sys.stdout.write(line.decode(errors="replace") if as_json else f"{_shown(line)}\n")
    if not are_all:
        shown = " is" if limit == 1 else f" {limit} are"
        say_wrong(f"only the last{shown} shown: --limit shows more")


def _within(line: bytes, since: datetime | None, until: datetime | None) -> bool:
    """Whether the time of *line* is in these bounds; not of a line without a time, if there are any."""
    if since is None and until is None:
        return True
    found = _AT.match(line)
    if found is None:
        return False
    at = found[1].decode()  # All have one form, so that the order of texts is that of times.
    return (since is None or at >= _text(since)) and (until is None or at < _text(until))


def _text(bound: datetime) -> str:
    return bound.isoformat(timespec="microseconds")


def _shown(line: bytes) -> str:
    from broker.audit.lines import decoded

    try:
        facts = decoded(line)[2]
    except ValueError:
        return printable(line.decode(errors="replace").rstrip())
    number, at, event = facts.pop("number"), str(facts.pop("at", "")), str(facts.pop("event", ""))
    facts.pop("mac", None)
    code = facts.pop("code", "")
    rest = "  ".join(f"{name}={each if isinstance(each, str) else json.dumps(each)}" for name, each in facts.items())
    moment = at[:23].replace("T", " ")
    return printable(f"{number:>8}  {moment}  {event:<12}  {f'{code}  ' if code else ''}{rest}".rstrip())


def _log(log: Path | None, config: Path | None) -> Path:
    if log is not None:
        return log
    named = _settings(config).get("audit_log")
    if named is None:
        raise failed("say which log: --log, or --config with the broker's file that has audit_log", USAGE)
    return Path(named)


def _key(config: Path | None, state_dir: Path | None) -> Path:
    settings = _settings(config)
    if "audit_keyfile" in settings:
        return Path(settings["audit_keyfile"])
    return (state_dir or Path(settings.get("state_dir", "broker-state"))) / "audit.key"


def _settings(config: Path | None) -> dict[str, str]:
    from broker.settings.config_file import ConfigError, read_texts

    try:
        return read_texts(config, "audit_log", "audit_keyfile", "state_dir")
    except ConfigError as error:
        raise failed(str(error), USAGE) from None
