"""``fleet-broker reload``: the settings' files read anew by a running broker, or what that would do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.admin_command import Config, Json, Socket, StateDir, admin_client, print_json
from broker.admission.policy_file import PolicyError, read_policy
from broker.reload.report import Part

_USAGE = 2


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
    with admin_client(socket, state_dir, config) as client:
        answer = client.post("/v1/reload", asked)
    if as_json:
        print_json(answer)
    else:
        for each in answer["parts"]:
            sys.stdout.write(f"{each['text']}\n")
    if answer["refused"]:
        raise typer.Exit(1)
