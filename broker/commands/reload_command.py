"""``fleet-broker reload``: makes a running broker reload its files, or shows what that would do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from broker.commands.admin_command import RunningBroker, asking
from broker.commands.error_line import USAGE, failed
from broker.reload.report import Part
from provisioning.program.given_file import PEM_BYTES, text_of, unread
from provisioning.program.json_output import print_document
from provisioning.program.printable import printable


@asking
def reload(
    running: RunningBroker,
    parts: Annotated[
        list[Part] | None, typer.Argument(help="certificate, trust, policy, limits (default: all).", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would happen, and to which clients.")
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: a policy file to try instead of the broker's.", show_default=False),
    ] = None,
    anchors: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: trust anchors (PEM) to try instead of the broker's.", show_default=False),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(help="With --anchors: the trust bundle whose anchors they would be.", show_default=False),
    ] = None,
) -> None:
    """Reload certificate, trust anchors, policy and limits, as SIGHUP does.

    A part that cannot be used is refused, and the old one stays: exit code 1. CRLs
    are read again, too, though no line says so: crl status shows them.

    \b
    Example:
      fleet-broker reload
      fleet-broker reload --dry-run --policy new.toml
    """
    if not dry_run and (policy is not None or anchors is not None):
        raise failed("--policy and --anchors: only with --dry-run; a reload takes the broker's own files", USAGE)
    asked = {"dry_run": dry_run, **_candidates(policy, anchors, bundle)}
    if parts:
        asked["parts"] = parts
    elif tried := [part for part, name in ((Part.POLICY, "policy"), (Part.TRUST, "anchors")) if name in asked]:
        asked["parts"] = tried
    with running.client() as client:
        answer = client.post("/v1/reload", asked)
    if running.as_json:
        print_document(answer)
    else:
        for each in answer["parts"]:
            sys.stdout.write(f"{printable(each['text'])}\n")
    if answer["refused"]:
        raise typer.Exit(1)


def _candidates(policy: Path | None, anchors: Path | None, bundle: str | None) -> dict[str, str]:
    """Return the texts to try."""
    from broker.admission.policy_file import PolicyError, read_policy  # Late: `broker.commands.admin_command`, rule 3.

    if bundle is not None and anchors is None:
        raise failed("--bundle: only together with --anchors; give --anchors", USAGE)
    tried = {} if bundle is None else {"bundle": bundle}
    try:
        if policy is not None:
            tried["policy"] = read_policy(policy)
        if anchors is not None:
            tried["anchors"] = text_of(anchors, PEM_BYTES)
    except PolicyError as error:
        raise failed(str(error), USAGE) from None
    except OSError as error:
        raise failed(f"--anchors: {unread(Path(error.filename), error)}", USAGE) from None
    except UnicodeDecodeError:
        raise failed(f"--anchors: {anchors} is no text: give CA certificates in PEM", USAGE) from None
    return tried
