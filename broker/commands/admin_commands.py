"""The commands that talk to a running broker: ``fleet-broker status``, ``sessions``, ``kick``, ``trust show``, more.

Rules
-----
1. Everything goes through the admin API (`broker.admin.client`): a command can do what the API can, and no more.
2. Exit codes: 0 done, 1 refused or no answer, 2 wrong usage.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.commands.admin_command import RunningBroker, asking, print_facts, print_table
from broker.commands.known_clients import client_ids
from provisioning.program.command_group import command_group
from provisioning.program.durations import in_two_units
from provisioning.program.json_output import print_document
from provisioning.program.printable import printable

if TYPE_CHECKING:
    from broker.admin.client import AdminClient

_SHOWN = 1000
_ROLES = ("device", "service", "operator")
_CALLED = {"seconds_since_current": "revocation_data_age_seconds"}
"""Fields of ``/v1/trust``, by the name that the same has in ``/v1/status``."""

trust_app = command_group(help="Show the trust anchors.")

Who = Annotated[
    str | None,
    typer.Argument(
        help="Client identifier, device, serial number or address.", autocompletion=client_ids, show_default=False
    ),
]
Group = Annotated[str | None, typer.Option(help="Only of this group.", show_default=False)]
Limit = Annotated[
    int | None, typer.Option(min=1, help=f"How many to show (default: {_SHOWN}, with --json all).", show_default=False)
]


@asking
def status(running: RunningBroker) -> None:
    """Show the broker's status: listeners, connected clients, refusals, age of the revocation data."""
    with running.client() as client:
        facts = client.get("/v1/status")
    if running.as_json:
        print_document(facts)
    else:
        print_facts(facts)


@asking
def sessions(
    running: RunningBroker,
    who: Who = None,
    group: Group = None,
    device: Annotated[str | None, typer.Option(help="Only of this name.", show_default=False)] = None,
    role: Annotated[
        str | None,
        typer.Option(help="device, service or operator.", autocompletion=lambda: list(_ROLES), show_default=False),
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Only of this trust domain.", show_default=False)] = None,
    connected: Annotated[
        bool | None, typer.Option("--connected/--away", help="Only connected ones, or only kept ones.")
    ] = None,
    limit: Limit = None,
) -> None:
    """List sessions: identity, certificate, address, start, queued messages.

    \b
    Example:
      fleet-broker sessions --group north
      fleet-broker sessions meter-17 --json
    """
    query = {
        "anything": who,
        "group": group,
        "device": device,
        "role": role,
        "domain": domain,
        "connected": None if connected is None else str(connected).lower(),
    }
    columns = (
        *("client id", "identity", "serial", "address", "version", "connected since", "keep alive"),
        *("subscriptions", "queued", "certificate ends in", "session ends in"),
    )
    with running.client() as client:
        _list(client, "session", query, limit, None if running.as_json else (columns, _session_row))


@asking
def subscriptions(
    running: RunningBroker,
    who: Who = None,
    topic: Annotated[
        str | None, typer.Option(help="Only those that match this topic: who would get a message.", show_default=False)
    ] = None,
    group: Group = None,
    limit: Limit = None,
) -> None:
    """List the subscriptions of a client, or the clients that get what is published to a topic.

    \b
    Example:
      fleet-broker subscriptions meter-17
      fleet-broker subscriptions --topic fleet/north/meter-17/cmd/reboot
    """
    query = {"anything": who, "topic": topic, "group": group}
    columns = ("client id", "identity", "is", "topic filter", "qos", "options")
    with running.client() as client:
        _list(client, "subscription", query, limit, None if running.as_json else (columns, _subscription_row))


@asking
def kick(
    running: RunningBroker,
    who: Annotated[
        str,
        typer.Argument(
            help="Client identifier or device of the broker's own trust domain, or <trust domain>/<client identifier>; "
            "identity, serial number or address.",
            autocompletion=client_ids,
        ),
    ],
    reason: Annotated[str | None, typer.Option(help="What the client is told.", show_default=False)] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Also end kept sessions, with subscriptions and queued messages.")
    ] = False,
) -> None:
    """Close the connections of a client, device, certificate or address. It may reconnect: to keep it out, revoke.

    An MQTT 5 client gets DISCONNECT 0x98 (Administrative action) with the reason.

    \b
    Example:
      fleet-broker kick meter-17
      fleet-broker kick plant-7.example/meter-17
    """
    asked: dict[str, Any] = {"anything": who, "forget": forget} | ({"reason": reason} if reason is not None else {})
    with running.client() as client:
        answer = client.post("/v1/sessions/kick", asked)
    if running.as_json:
        print_document(answer)
        return
    for each in answer["kicked"]:
        what = "disconnected" if each["was_connected"] else "forgotten"
        kept = ", its session is kept" if each["session_kept"] else ""
        at = f" at {each['address']}" if each["address"] else ""
        sys.stdout.write(f"{printable(each['client_id'])} ({each['identity']}){at}: {what}{kept}\n")
    if not answer.get("stored", True):
        why = "is slow and has not written this yet" if answer.get("store") == "slow" else "cannot be written now"
        sys.stderr.write(f"the broker's store {why}: until it has, a crash would bring the session back\n")


@trust_app.command("show")
@asking
def trust_show(running: RunningBroker) -> None:
    """Show the trust anchors that the running broker uses, and what it knows of revocations."""
    with running.client() as client:
        answer = client.get("/v1/trust")
    if running.as_json:
        print_document(answer)
        return
    columns = ("bundle", "subject", "kind", "key", "ends", "days left", "sha256")
    rows = [
        (
            *(", ".join(each.get("bundles", ())) or "-", each["subject"]),
            "root" if each["self_signed"] else f"issued by {each['issuer']}",
            *(each["key"], each["not_after"], str(each["days_left"]), each["sha256"]),
        )
        for each in answer["anchors"]
    ]
    print_table(columns, rows)
    sys.stdout.write("\n")
    if answer["lists"]:
        fields = ("issuer", "number", "entries", "state", "next_update", "source")
        print_table(("CRL of", *fields[1:]), [tuple(str(each[name]) for name in fields) for each in answer["lists"]])
        sys.stdout.write("\n")
    if answer["anchor_urls"]:
        print_table(
            ("anchors of", "fetched from", "pins", "confirmed", "state"), map(_anchor_url_row, answer["anchor_urls"])
        )
        sys.stdout.write("\n")
    facts = {"trust_domain": answer["trust_domain"] or "any that the anchors vouch for"}
    bundles = {"bundles": ", ".join(answer["bundles"]), "generation": answer["generation"]}
    known = {_CALLED.get(name, name): value for name, value in answer["revocation"].items()}
    print_facts({**facts, **bundles, **known})


def _anchor_url_row(followed: dict[str, Any]) -> tuple[str, ...]:
    age = followed["age_seconds"]
    confirmed = "never" if age is None else f"{in_two_units(age)} ago"
    pins = str(followed["pins"] or "-")
    return followed["bundle"], followed["url"], pins, confirmed, followed["problem"] or "ok"


def _list(
    client: AdminClient,
    what: str,
    query: dict[str, str | None],
    limit: int | None,
    table: tuple[Sequence[str], Callable[[dict[str, Any]], Sequence[str]]] | None,
) -> None:
    """Print the *what* (``session``) that *query* selects: in a *table* with these columns, or as JSON."""
    shown = limit if limit is not None else None if table is None else _SHOWN
    path, limited = f"/v1/{what}s", {**query, "limit": None if shown is None else str(shown)}
    if table is None:
        for piece in client.stream(path, **limited):
            sys.stdout.write(piece.decode())
        return
    answer = client.get(path, **limited)
    found = answer[f"{what}s"]
    if not found:
        asked = " of that description" if any(value is not None for value in query.values()) else ""
        typer.echo(f"no {what}{asked}", err=True)
        return
    columns, row = table
    print_table(columns, map(row, found))
    if answer["matched"] > answer["shown"]:
        typer.echo(f"{answer['shown']} of {answer['matched']} {what}s; --limit shows more", err=True)


def _subscription_row(subscription: dict[str, Any]) -> tuple[str, ...]:
    options = [name for name in ("no_local", "retain_as_published") if subscription[name]]
    return (
        subscription["client_id"],
        subscription["identity"],
        "connected" if subscription["connected"] else "away",
        subscription["filter"],
        str(subscription["qos"]),
        ", ".join(options).replace("_", " ") or "-",
    )


def _session_row(session: dict[str, Any]) -> tuple[str, ...]:
    if session["connected"]:  # Its session ends some time after the connection.
        ends = (_time_left(session["certificate_expires_in"]), "-")
    else:
        ends = ("-", _time_left(session["session_expires_in"]))
    return (
        session["client_id"],
        session["identity"],
        session["serial"] or "-",
        session["address"] or "away",
        session["version"] or "-",
        session["connected_since"] or "-",
        "-" if session["keep_alive"] is None else f"{session['keep_alive']} s",
        str(session["subscriptions"]),
        str(session["queued"]),
        *ends,
    )


def _time_left(seconds: int | None) -> str:
    return "never" if seconds is None else in_two_units(seconds)
