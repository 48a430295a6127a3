"""The commands for the life of the fleet's CAs. They work on the service's directory and store; the service may run.

Each that changes something is a ceremony with a transcript (`provisioning.authorities.ceremony_transcript`). Each
command imports what it needs: `--help` starts without it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provisioning.commands.asking import ask
from provisioning.commands.ca_root_commands import root_app
from provisioning.commands.ceremony_command import (
    Another,
    Ceremony,
    Facts,
    Output,
    ceremonial,
    ceremonial_without_keys,
    look_into_store,
    now,
    read_file,
)
from provisioning.commands.known_names import issuing_names
from provisioning.commands.new_file import expect_new, write_new
from provisioning.commands.reason_option import reason_option
from provisioning.commands.service_command import Directory, InvalidityDate, fail
from provisioning.errors import ConfigurationError, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.program.command_group import command_group
from provisioning.program.counted import counted
from provisioning.program.json_output import Json, print_document
from provisioning.program.moments import rfc3339, rfc3339_milliseconds, shown_time
from provisioning.program.printed_table import print_table
from provisioning.revocation.reasons import AUTHORITY_REASONS

if TYPE_CHECKING:
    from provisioning.authorities.authority_life import AuthorityLife
    from provisioning.authorities.authority_revocation import BegunRevocation
    from provisioning.store.certificates import StoredCertificate

ca_app = command_group(help="Manage the CAs: list, roll over, revoke; key ceremonies.")
rollover_app = command_group(help="The next issuing CA: announced first, active later.")
ca_app.add_typer(rollover_app, name="rollover")
ca_app.add_typer(root_app, name="root")

Line = Annotated[str, typer.Option(help="The line of issuing CAs, one for each product with its own CA.")]
Name = Annotated[
    str | None,
    typer.Argument(help="The CA, if more than one is possible.", autocompletion=issuing_names, show_default=False),
]


@ca_app.command("list")
def list_authorities(directory: Directory = None, as_json: Json = False) -> None:
    """Show every CA: its state, where its key is, when it expires.

    \b
    Example:
      fleet-provisioning ca list --dir /var/lib/fleet
    """
    from provisioning.directory.files import AuthorityFiles
    from provisioning.signers.places import SignerPlaces
    from provisioning.store import authorities
    from provisioning.store.authorities import AuthorityKind

    settings, found = look_into_store(directory, lambda database: database.read(authorities.every))
    places = SignerPlaces(AuthorityFiles(settings.directory), settings)
    rows = [
        {
            "name": each.name,
            "kind": each.kind.value,
            "line": each.line if each.kind is AuthorityKind.ISSUING else None,
            "state": each.state.value,
            "key_id": each.key_id.hex(),
            "subject": each.certificate.subject.rfc4514_string(),
            "not_after": rfc3339(each.certificate.not_valid_after_utc),
            "since": rfc3339(each.changed_at),
            "key": places.place(each.name) if each.kind != "cross" else "none",
        }
        for each in found
    ]
    if as_json:
        print_document(rows)
        return
    columns = ("name", "kind", "line", "state", "since", "not after", "key", "subject")
    times = [(each.changed_at, each.certificate.not_valid_after_utc) for each in found]
    print_table(
        columns,
        (
            (
                *(row["name"] or "", row["kind"] or "", row["line"] or "-", row["state"] or ""),
                *(shown_time(since), shown_time(end), row["key"] or "", row["subject"] or ""),
            )
            for row, (since, end) in zip(rows, times, strict=True)
        ),
    )


@ca_app.command("export-csr")
@ceremonial
def export_csr(
    ceremony: Ceremony,
    output: Output,
    line: Line = "default",
    another: Another = False,
) -> None:
    """Create the key of the next issuing CA and write a request for a root elsewhere to sign.

    \b
    Example:
      fleet-provisioning ca export-csr --dir /var/lib/fleet --output issuing.csr
      then, where the root is: fleet-provisioning ca root sign issuing.csr --dir ROOT --output issuing.crt
      and here again:          fleet-provisioning ca import issuing.crt --dir /var/lib/fleet
    """

    async def work(life: AuthorityLife) -> Facts:
        from provisioning.authorities.next_authority import NextAuthority

        expect_new(output)
        write_new(output, await NextAuthority(life).export_csr(line, another=another))
        life.transcript.say(f"Written: {output}")
        return {"request": str(output)}

    ceremony.hold("ca export-csr", work)


@ca_app.command("import")
@ceremonial
def import_certificate(
    ceremony: Ceremony,
    certificate: Annotated[Path, typer.Argument(help="The issuing CA's certificate, PEM.")],
    root: Annotated[Path | None, typer.Option(help="The root that signed it, if the fleet does not know it.")] = None,
) -> None:
    """Import the certificate that a root elsewhere has signed, and announce the new issuing CA.

    \b
    Example:
      fleet-provisioning ca import issuing.crt --dir /var/lib/fleet
    """

    async def work(life: AuthorityLife) -> Facts:
        from provisioning.authorities.next_authority import NextAuthority

        return _announced(
            life, await NextAuthority(life).announce(read_file(certificate), None if root is None else read_file(root))
        )

    ceremony.hold("ca import", work)


@rollover_app.command("begin")
@ceremonial
def begin(
    ceremony: Ceremony,
    line: Line = "default",
    root: Annotated[
        str | None,
        typer.Option(help="The root that signs it (default: the line's, or its successor).", show_default=False),
    ] = None,
    another: Another = False,
) -> None:
    """Create the next issuing CA with the root's key on this machine, and announce it. It does not issue yet.

    \b
    Example:
      fleet-provisioning ca rollover begin --dir /var/lib/fleet --witness "A. Auditor"
    """

    async def work(life: AuthorityLife) -> Facts:
        from provisioning.authorities.next_authority import NextAuthority

        return _announced(life, await NextAuthority(life).begin(line, root, another=another))

    ceremony.hold("ca rollover begin", work)


@rollover_app.command("activate")
@ceremonial_without_keys
def activate(
    ceremony: Ceremony,
    name: Name = None,
    without_waiting: Annotated[
        bool, typer.Option("--without-waiting", help="Do not give relying parties a day to fetch the bundle.")
    ] = False,
    despite_brokers: Annotated[
        bool,
        typer.Option(
            "--despite-brokers",
            help="Even if brokers report that they would refuse its certificates, or may not be named in them.",
        ),
    ] = False,
    despite_services: Annotated[
        bool,
        typer.Option("--despite-services", help="Even if a service, on another machine, does not have its key."),
    ] = False,
) -> None:
    """Let the announced CA issue from now on. The previous one still publishes revocations of what it has issued.

    \b
    Example:
      fleet-provisioning ca rollover activate --dir /var/lib/fleet
    """

    async def work(life: AuthorityLife) -> Facts:
        activated = await life.activate(
            name, waiting=not without_waiting, despite_brokers=despite_brokers, despite_services=despite_services
        )
        chosen, key = activated.name, life.places.path(activated.name).name
        for each in activated.doubts:
            what = f"has not said whether it knows {chosen}" if each.known is None else f"does not know {chosen}"
            life.transcript.say(f"Broker {each.broker} {what}; last report: {shown_time(each.said_at)}.")
        remedy = f"refuses every device until {key} is copied into its directory, from where it was made"
        for address in activated.lacking:
            life.transcript.say(f"A service at {address} cannot use the key of {chosen}, and {remedy}.")
        if despite_services and activated.said_in:
            life.transcript.say(
                "Other services may not have said yet whether they can use it. One on another machine, which has not "
                f"got it, {remedy}."
            )
        life.transcript.say(f"{chosen} issues from now on; running services know it within seconds.")
        return {"name": chosen, "state": "active", "services_without_key": list(activated.lacking)}

    ceremony.hold("ca rollover activate", work)


@rollover_app.command("retire")
@ceremonial_without_keys
def retire(ceremony: Ceremony, name: Name = None) -> None:
    """Retire a CA whose last certificate has expired: it leaves the bundle, its CRL and OCSP end.

    \b
    Example:
      fleet-provisioning ca rollover retire --dir /var/lib/fleet
    """

    async def work(life: AuthorityLife) -> Facts:
        chosen = await life.retire(name)
        life.transcript.say(f"{chosen} is retired. Its key can be destroyed.")
        return {"name": chosen, "state": "retired"}

    ceremony.hold("ca rollover retire", work)


@rollover_app.command("end-line")
@ceremonial_without_keys
def end_line(
    ceremony: Ceremony,
    line: Annotated[str, typer.Argument(help="The line; no group may be bound to it.")],
) -> None:
    """Stop the CA of a line from issuing, without a successor. Retire it when its last certificate has expired.

    CAs of the line that were announced, and have issued nothing, are retired with that.

    \b
    Example:
      fleet-provisioning ca rollover end-line meters --dir /var/lib/fleet
    """

    async def work(life: AuthorityLife) -> Facts:
        ended = await life.end_line(line)
        if ended.active is not None:
            life.transcript.say(f"{ended.active} no longer issues; line {line} has ended.")
        for each in ended.announced:
            life.transcript.say(f"{each}, which had not issued yet, is retired. Its key can be destroyed.")
        state = None if ended.active is None else "retiring"
        return {"name": ended.active, "state": state, "line": line, "retired": ended.announced}

    ceremony.hold("ca rollover end-line", work)


@ca_app.command("revoke")
@ceremonial
def revoke(
    ceremony: Ceremony,
    name: Annotated[str, typer.Argument(help="The issuing CA.", autocompletion=issuing_names)],
    reason: Annotated[RevocationReason, reason_option(AUTHORITY_REASONS)] = RevocationReason.CA_COMPROMISE,
    invalidity_date: InvalidityDate = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Revoke an issuing CA and every certificate that it has issued; shows whose. They need new tokens.

    Brokers refuse its key whatever the reason, in other certificates too, as one of a partner's root.

    \b
    Example:
      fleet-provisioning ca revoke issuing-ca --reason cACompromise --dir /var/lib/fleet
    """
    from provisioning.authorities.authority_revocation import AuthorityRevocation
    from provisioning.store.certificates_of_issuer import count_good

    since = invalidity_date

    async def look(life: AuthorityLife) -> int:
        chosen = await AuthorityRevocation(life).to_revoke(name)
        return await life.database.read(lambda connection: count_good(connection, chosen.key_id, now()))

    if not yes:  # Not in the ceremony: while its loop runs, an interrupt does not end the wait for an answer.
        whose = counted(ceremony.look(look), "certificate")
        ask(f"Revoke {name} and {whose} that it has issued, for ever?")

    problems: list[str] = []

    async def work(life: AuthorityLife) -> Facts:
        revocation = AuthorityRevocation(life)
        begun = await revocation.begin(name, reason, since)
        life.transcript.say(_how_far(name, reason, begun))
        affected: list[StoredCertificate] = []
        renewed = False
        with _noted(problems):  # The CA is revoked: if a step fails now, the others are still done.
            await life.write_files()
        with _noted(problems, "fix that, then run ca restore-operator"):
            if renewed := await revocation.renew_operator(begun):
                life.transcript.say("The first operator (admin) has a new certificate in operator.crt.")
        with _noted(problems, "the running service revokes the rest of its certificates; or run ca revoke again"):
            affected += await revocation.finish(begun)
            life.transcript.say(f"{counted(len(affected), 'certificate')} revoked with it:")
        for each in affected:
            device = each.device
            life.transcript.say(f"  {device.role:<8} {device.group or '-'} {device.name} {each.serial}")
        for problem in problems:
            life.transcript.say(f"Not done: {problem}")
        revoked = [
            {"serial": each.serial, "device": each.device.name, "role": each.device.role, "group": each.device.group}
            for each in affected
        ]
        facts = {"name": name, "state": "revoked", "reason": reason, "revoked": revoked, "operator_renewed": renewed}
        return facts | ({"problems": problems} if problems else {})

    ceremony.hold("ca revoke", work)
    if problems:
        raise fail(f"{name} is revoked, but: {'; '.join(problems)}")


@ca_app.command("restore-operator")
@ceremonial
def restore_operator(
    ceremony: Ceremony,
    name: Annotated[str, typer.Argument(help="The operator, who becomes an admin.")] = "admin",
) -> None:
    """Certify an admin without a token if no operator has access any more: DIR/operator.crt and operator.key.

    \b
    Example:
      fleet-provisioning ca restore-operator --dir /var/lib/fleet
    """
    from provisioning.authorities import operator_restoration
    from provisioning.directory.files import OPERATOR, read_certificate

    async def work(life: AuthorityLife) -> Facts:
        await operator_restoration.restore_operator(life, name)
        certificate = read_certificate(life.files.certificate(OPERATOR))
        life.transcript.say(f"{name} is an admin, with a new key and certificate in operator.key and operator.crt.")
        life.transcript.say("Earlier certificates stay valid until they expire or are revoked: revoke --serial")
        return {"name": name, "serial": serial_text(certificate.serial_number)}

    ceremony.hold("ca restore-operator", work)


@ca_app.command("verify-transcript")
def verify_transcript(
    transcript: Annotated[Path, typer.Argument(help="The file.")], directory: Directory = None, as_json: Json = False
) -> None:
    """Show which entry of the audit log confirms a transcript; exit code 1 if none does.

    \b
    Example:
      fleet-provisioning ca verify-transcript fleet/ceremonies/2027-01-05T101500.000000Z-ca-rollover-begin.txt
    """
    from provisioning.authorities.ceremony_transcript import digest_of
    from provisioning.store import audit

    digest = digest_of(read_file(transcript))
    _, entry = look_into_store(
        directory, lambda database: database.read(lambda connection: audit.ceremony_of(connection, digest))
    )
    if entry is None:
        raise fail(
            f"no entry of the audit log confirms {transcript}: it was changed, is another fleet's, or its ceremony "
            "was interrupted before the last entry; audit show has what it did until then"
        )
    if as_json:
        at = rfc3339_milliseconds(entry.at)
        print_document({"entry": entry.number, "at": at, "actor": entry.actor, "sha256": digest})
        return
    sys.stdout.write(
        f"entry {entry.number} of {shown_time(entry.at)} by {entry.actor} confirms {transcript}; "
        "audit verify confirms the entry\n"
    )


def _how_far(name: str, reason: RevocationReason, begun: BegunRevocation) -> str:
    if not begun.again:
        return f"{name} is revoked ({reason}): no certificate that it has issued is valid from now on."
    if begun.rest:
        return f"{name} is already revoked; the rest of its certificates follows now."
    return f"{name} is already revoked, with all that it has issued; the first operator's new certificate follows now."


@contextlib.contextmanager
def _noted(problems: list[str], remedy: str = "") -> Iterator[None]:
    """Add an error in the block to *problems*, with its *remedy*, and continue."""
    from provisioning.pki.keys import KeyFileError

    try:
        yield
    except (ConfigurationError, Refused, KeyFileError, OSError) as error:
        problems.append(f"{error}; {remedy}" if remedy else str(error))


def _announced(life: AuthorityLife, name: str) -> Facts:
    life.transcript.say(
        f"{name} is announced: in the bundle and in /cacerts, with CRL and OCSP. When relying parties have fetched the "
        f"bundle (a day): ca rollover activate {name}"
    )
    life.transcript.say(
        "A broker whose cafile is a copy of ca-bundle.crt needs the new one before that; fleet-provisioning "
        "status names the brokers that lack it."
    )
    if life.database.url.get_backend_name() != "sqlite":
        life.transcript.say(
            f"A service on another machine needs {life.places.path(name).name} in its directory before that."
        )
    return {"name": name, "state": "announced"}
