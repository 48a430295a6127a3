"""``fleet-broker crl``: which CRLs a running broker uses, and what another one would do.

Exit codes: 0 every source is current, or the tried CRL would be used; 1 one is late, expired, lost or keeps new
connections out, or the CRL would not be used, or there is no answer.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.commands.admin_command import RunningBroker, asking, clock, print_facts, print_table
from broker.commands.error_line import failed
from provisioning.program.command_group import command_group
from provisioning.program.durations import in_two_units
from provisioning.program.given_file import LIST_BYTES, contents_of, unread
from provisioning.program.json_output import print_document
from provisioning.program.printable import printable

crl_app = command_group(help="Show the CRLs in use, and try another one.")

_NEWCOMERS = ("newcomers of", "by", "policy", "are", "because")
_IN_TABLES = {"lists", "newcomers", "policies", "ocsp_policies", "feed_policy"}
_CALLED = {"alarms": "CRL and OCSP alarms so far"}
"""Counted since the start: they stay when what they were about is over."""
_QUIET = {"current", "off", "no responder"}
"""States of the staple that need no attention."""
_FIELDS = ("number", "entries", "state", "this_update", "next_update", "late_from", "source")


@crl_app.command("status")
@asking
def crl_status(running: RunningBroker) -> None:
    """Show each CRL in use, its age and its end, how fresh the feed is, and the staple.

    Exit code 1 if a CRL is late or expired, the feed is lost, or either, OCSP or the audit log keeps new connections
    out; or the staple is late or missing, or says that the broker is revoked.
    """
    with running.client() as client:
        answer = client.get("/v1/crls")
    if running.as_json:
        print_document(answer)
    else:
        _print_status(answer)
    if needs_attention(answer):
        raise typer.Exit(1)


@crl_app.command("try")
@asking
def crl_try(
    running: RunningBroker,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="CRLs, DER or PEM; a delta with its base, in any order.")
    ],
) -> None:
    """Say what a CRL would do if the broker had it now: whom it would disconnect, or why it would not be used.

    Nothing is changed.

    \b
    Example:
      fleet-broker crl try plant-7.crl
    """
    content = _contents(files)
    with running.client() as client:
        answer = client.post_bytes("/v1/crls/try", content, "application/pkix-crl")
    if running.as_json:
        print_document(answer)
    else:
        for each in answer["lists"]:
            sys.stdout.write(f"{printable(each['text'])}\n")
    known = [each["code"] == "CRL_KNOWN" for each in answer["lists"]]
    if all(known) or not all(each["used"] or each["code"] == "CRL_KNOWN" for each in answer["lists"]):
        raise typer.Exit(1)


def needs_attention(answer: dict[str, Any]) -> bool:
    """Return whether a source of revocations, or the staple, is not as it should be: what a monitor asks for.

    Of CRLs their own state counts: a CA that has none may be one below which no client has been seen. If that is so of
    every CA of a bundle, nobody of that gets in.
    """
    staple = answer.get("staple", {"state": "off"})  # A broker from before the last upgrade does not send it.
    by_source = defaultdict[tuple[str, str], list[bool | None]](list)
    for each in answer.get("newcomers", ()):
        by_source[each["bundle"], each["source"]].append(each["admitted"])
    shut = any(all(admitted is False for admitted in each) for each in by_source.values())
    late = any(each["state"] != "current" for each in answer["lists"])
    return staple["state"] not in _QUIET or late or shut or answer.get("feed_lost", False)


def _contents(files: Sequence[Path]) -> bytes:
    """Return the request body for *files*: a single file as it is, several as PEM."""
    try:
        contents = [contents_of(file, LIST_BYTES) for file in files]
    except OSError as error:
        raise failed(unread(Path(error.filename), error)) from None
    if len(contents) == 1:
        return contents[0]
    from provisioning.pki.pem import armoured  # Late: `broker.commands.admin_command`, rule 3.

    return b"".join(each if b"-----BEGIN" in each else armoured("X509 CRL", each) for each in contents)


def _print_status(answer: dict[str, Any]) -> None:
    if answer["lists"]:
        rows = [(each["issuer"], *(str(each[name]) for name in _FIELDS)) for each in answer["lists"]]
        print_table(("CRL of", *_FIELDS), rows)
        sys.stdout.write("\n")
    if newcomers := answer.get("newcomers"):
        print_table(_NEWCOMERS, map(_prospect, newcomers))
        sys.stdout.write("\n")
    hidden = _IN_TABLES
    if "feed_policy" in answer and answer["feed_policy"] is None:  # "feed lost: no" would say that there is one.
        hidden = hidden | {"feed_lost", "feed_age_seconds"}
        sys.stdout.write("no revocation feed is configured\n\n")
    facts = {_CALLED.get(name, name): value for name, value in answer.items() if name not in hidden}
    if "staple" in facts:
        facts["staple"] = told_staple(facts["staple"])
    print_facts(facts)


def told_staple(staple: dict[str, Any]) -> str:
    """Return the state of the staple in words: age, expiry, and any problem; ``--json`` has everything."""
    told: str = staple["state"]
    if "next_update" in staple:
        told += f", made {in_two_units(staple['age_seconds'])} ago, good until {clock(staple['next_update'])}"
    return f"{told}; {staple['problem']}" if "problem" in staple else told


def _prospect(each: dict[str, Any]) -> tuple[str, ...]:
    says = {True: "admitted", False: "refused", None: "it depends"}[each["admitted"]]
    of = each["source"] + (f" of {each['issuer']}" if each["issuer"] else "")
    return each["bundle"], of, each["policy"], says, each["detail"]
