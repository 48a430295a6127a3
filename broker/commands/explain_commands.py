"""Why a client is not connected: ``fleet-broker why`` shows what happened, ``check`` (`check_command.py`) what would.

Exit codes: 0 known; 1 unknown, or no answer; 2 wrong usage.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from broker.commands.admin_command import RunningBroker, asking
from broker.commands.known_clients import client_ids
from provisioning.program.counted import counted
from provisioning.program.hung_line import print_hung
from provisioning.program.json_output import print_document
from provisioning.program.near_names import did_you_mean
from provisioning.program.printable import printable

_SET_IN = 4
_ABOUT_TLS = (
    "what to do: a client that TLS refuses, for example for an expired certificate, has proved no identity: ask about "
    "its address, or what would happen to its certificate: fleet-broker check FILE"
)


@asking
def why(
    running: RunningBroker,
    about: Annotated[
        str, typer.Argument(help="Client identifier, device, serial number or address.", autocompletion=client_ids)
    ],
) -> None:
    """Show what recently happened to a client, why, and what to do about it.

    \b
    Example:
      fleet-broker why meter-17
      fleet-broker why 192.0.2.7
    """
    with running.client() as client:
        answer = client.get("/v1/why", about=about)
    if running.as_json:
        print_document(answer)
    else:
        _print_answer(answer)
    if not answer["events"] and not answer["sessions"] and not answer.get("claimed"):
        raise typer.Exit(1)


def _print_answer(answer: dict[str, Any]) -> None:
    about = answer["about"]
    for session in answer["sessions"]:
        if session["connected"]:
            since = session["connected_since"].replace("T", " ").replace("Z", " UTC")
            sys.stdout.write(
                f"{printable(session['client_id'])} is connected from {session['address']} since {since}\n"
            )
        else:
            sys.stdout.write(f"{printable(session['client_id'])} is away; its session is kept\n")
    if not answer["sessions"]:
        sys.stdout.write(f"{printable(about)} is not connected\n")
    if not answer["events"] and not answer.get("claimed"):
        remembered = counted(answer["remembered"], "event")
        sys.stdout.write(f"nothing else is known of it; the broker remembers {remembered}\n")
        if near := answer.get("near"):
            sys.stdout.write(f"{did_you_mean(near)}\n")
        if not answer["sessions"]:
            print_hung(f"    {_ABOUT_TLS}", _SET_IN)
    _print_events(answer["events"])
    if answer["nearby"]:
        sys.stdout.write("\nrefused at the same address, before anybody was named; it may be the same device:\n")
        _print_events(answer["nearby"])
    if answer.get("claimed"):
        sys.stdout.write(
            "\nrefused when it asked for this client identifier, before anybody was named; it may be somebody else:\n"
        )
        _print_events(answer["claimed"])


def _print_events(events: list[dict[str, Any]]) -> None:
    last_of = {event["code"]: index for index, event in enumerate(events)}
    for index, event in enumerate(events):
        often = f" x{event['times']} since {_clock(event['first'])}" if event["times"] > 1 else ""
        client_id, identity = event["client_id"] or "", event["identity"] or ""
        who = printable(client_id or identity)
        if event["event"] == "refused" and client_id and identity and client_id != identity.rpartition("/")[2]:
            who += f", asked for by {printable(identity)},"
        serial = f" serial {event['serial']}" if event["serial"] else ""
        head = f"{_clock(event['last'])}  {event['event']:<8}  {event['code']}{often}"
        print_hung(f"{head.rstrip()}  {who} from {event['address']}{serial}".replace("   from", "  from"), _SET_IN)
        if event["detail"]:
            print_hung(f"    {printable(event['detail'])}", _SET_IN)
        if event["remedy"] and last_of[event["code"]] == index:
            print_hung(f"    what to do: {event['remedy']}", _SET_IN)


def _clock(moment: str) -> str:
    return moment.replace("T", " ").replace("Z", "")
