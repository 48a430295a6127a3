"""The commands for the life of the fleet's CAs. They work on the service's directory and store; the service may run.

Each that changes something is a ceremony with a transcript (`provisioning.ceremony_transcript`). What the commands need
is imported by the command: `--help` starts without it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from provisioning.config import Settings, load_settings
from provisioning.errors import ConfigurationError, Refused
from provisioning.files import ISSUING_CA, ROOT_CA, AuthorityFiles, read_certificate
from provisioning.pki.revocation import RevocationReason
from provisioning.service_command import Directory, Json, fail, print_table, shown_time

if TYPE_CHECKING:
    from provisioning.authority_life import AuthorityLife
    from provisioning.store.database import Database

ca_app = typer.Typer(help="The fleet's CAs: list, succeed, revoke them; key ceremonies.", no_args_is_help=True)
rollover_app = typer.Typer(help="The next issuing CA: announced first, active later.", no_args_is_help=True)
root_app = typer.Typer(help="The root: sign with it, succeed it.", no_args_is_help=True)
ca_app.add_typer(rollover_app, name="rollover")
ca_app.add_typer(root_app, name="root")

ResultT = TypeVar("ResultT")

PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="File with the passphrase of the CA keys; or set FLEET_PROVISIONING_PASSPHRASE."),
]
PinFile = Annotated[
    Path | None,
    typer.Option(
        "--pkcs11-pin-file",
        help="File with the PIN of the token with the CA keys; or set FLEET_PROVISIONING_PKCS11_PIN.",
    ),
]
Witness = Annotated[
    list[str] | None, typer.Option(help="Who watches the ceremony; repeat it. Goes into the transcript.")
]
Name = Annotated[str | None, typer.Argument(help="The CA, where more than one could be meant.", show_default=False)]
Output = Annotated[Path, typer.Option(help="Where to write it; an existing file is not overwritten.")]


@ca_app.command("list")
def list_authorities(directory: Directory = None, as_json: Json = False) -> None:
    """Show every CA: its state, where its key is, until when it is good.

    \b
    Example:
      fleet-provisioning ca list --dir /var/lib/fleet
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"
    from provisioning.signers.places import SignerPlaces
    from provisioning.store import authorities

    settings, found = _with_store(directory, {}, lambda database: database.read(authorities.every))
    places = SignerPlaces(AuthorityFiles(settings.directory), settings)
    rows = [
        {
            "name": each.name,
            "kind": each.kind.value,
            "state": each.state.value,
            "key_id": each.key_id.hex(),
            "subject": each.certificate.subject.rfc4514_string(),
            "not_after": each.certificate.not_valid_after_utc.isoformat(),
            "since": each.changed_at.isoformat(),
            "key": places.place(each.name) if each.kind != "cross" else "none",
        }
        for each in found
    ]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    columns = ("name", "kind", "state", "since", "not after", "key", "subject")
    times = [(each.changed_at, each.certificate.not_valid_after_utc) for each in found]
    print_table(
        columns,
        (
            (row["name"], row["kind"], row["state"], shown_time(since), shown_time(end), row["key"], row["subject"])
            for row, (since, end) in zip(rows, times, strict=True)
        ),
    )


@ca_app.command("export-csr")
def export_csr(
    output: Output,
    directory: Directory = None,
    passphrase_file: PassphraseFile = None,
    pin_file: PinFile = None,
    witness: Witness = None,
) -> None:
    """Make the key of the next issuing CA and write the request that a root elsewhere signs.

    \b
    Example:
      fleet-provisioning ca export-csr --dir /var/lib/fleet --output issuing.csr
      then, where the root is: fleet-provisioning ca root sign issuing.csr --dir ROOT --output issuing.crt
      and here again:          fleet-provisioning ca import issuing.crt --dir /var/lib/fleet
    """  # noqa: D301

    async def work(life: AuthorityLife) -> None:
        _write_new(output, await life.export_csr())
        life.transcript.say(f"Written: {output}")

    _ceremony("ca export-csr", directory, passphrase_file, pin_file, witness, work)


@ca_app.command("import")
def import_certificate(
    certificate: Annotated[Path, typer.Argument(help="The issuing CA's certificate, PEM.")],
    root: Annotated[Path | None, typer.Option(help="The root that signed it, if the fleet does not know it.")] = None,
    directory: Directory = None,
    passphrase_file: PassphraseFile = None,
    pin_file: PinFile = None,
    witness: Witness = None,
) -> None:
    """Take over the certificate that a root elsewhere has signed, and announce the new issuing CA.

    \b
    Example:
      fleet-provisioning ca import issuing.crt --dir /var/lib/fleet
    """  # noqa: D301

    async def work(life: AuthorityLife) -> None:
        name = await life.announce(_read(certificate), None if root is None else _read(root))
        _say_next(life, name)

    _ceremony("ca import", directory, passphrase_file, pin_file, witness, work)


@rollover_app.command("begin")
def begin(
    directory: Directory = None,
    passphrase_file: PassphraseFile = None,
    pin_file: PinFile = None,
    witness: Witness = None,
) -> None:
    """Make the next issuing CA with the root's key that is here, and announce it. Nothing is issued by it yet.

    \b
    Example:
      fleet-provisioning ca rollover begin --dir /var/lib/fleet --witness "A. Auditor"
    """  # noqa: D301

    async def work(life: AuthorityLife) -> None:
        _say_next(life, await life.begin())

    _ceremony("ca rollover begin", directory, passphrase_file, pin_file, witness, work)


@rollover_app.command("activate")
def activate(
    name: Name = None,
    without_waiting: Annotated[
        bool, typer.Option("--without-waiting", help="Do not give relying parties a day to fetch the bundle.")
    ] = False,
    directory: Directory = None,
    witness: Witness = None,
) -> None:
    """Let the announced CA issue from now on. The one before it still says what is revoked of what it has issued.

    \b
    Example:
      fleet-provisioning ca rollover activate --dir /var/lib/fleet
    """  # noqa: D301

    async def work(life: AuthorityLife) -> None:
        chosen = await life.activate(name, waiting=not without_waiting)
        life.transcript.say(f"{chosen} issues from now on; running services have heard within seconds.")

    _ceremony("ca rollover activate", directory, None, None, witness, work)


@rollover_app.command("retire")
def retire(name: Name = None, directory: Directory = None, witness: Witness = None) -> None:
    """End a CA whose last certificate has ended: it leaves the bundle, its CRL and OCSP end.

    \b
    Example:
      fleet-provisioning ca rollover retire --dir /var/lib/fleet
    """  # noqa: D301

    async def work(life: AuthorityLife) -> None:
        life.transcript.say(f"{await life.retire(name)} is retired. Its key can be destroyed.")

    _ceremony("ca rollover retire", directory, None, None, witness, work)


@ca_app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="The issuing CA.")],
    reason: Annotated[
        RevocationReason, typer.Option(help="Why, as RFC 5280 spells it.")
    ] = RevocationReason.CA_COMPROMISE,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    directory: Directory = None,
    passphrase_file: PassphraseFile = None,
    pin_file: PinFile = None,
    witness: Witness = None,
) -> None:
    """Revoke an issuing CA and every certificate that it has issued; shows whose. They need new tokens.

    \b
    Example:
      fleet-provisioning ca revoke issuing-ca --reason cACompromise --dir /var/lib/fleet
    """  # noqa: D301
    from provisioning.revocation.of_authority import AUTHORITY_REASONS

    if reason not in AUTHORITY_REASONS:
        raise typer.BadParameter(f"of a CA it can be: {', '.join(AUTHORITY_REASONS)}", param_hint="--reason")
    if not yes:
        typer.confirm(f"Revoke {name} and everything that it has issued, for ever?", abort=True)

    async def work(life: AuthorityLife) -> None:
        outcome = await life.revoke(name, reason)
        life.transcript.say(f"{name} is revoked ({reason}), and {len(outcome.affected)} certificates with it:")
        for each in outcome.affected:
            device = each.device
            life.transcript.say(f"  {device.role:<8} {device.group or '-'} {device.name} {each.serial}")
        if await life.renew_operator(outcome):
            life.transcript.say("The first operator (admin) has a new certificate in operator.crt.")

    _ceremony("ca revoke", directory, passphrase_file, pin_file, witness, work)


@root_app.command("begin")
def begin_root(
    directory: Directory = None,
    passphrase_file: PassphraseFile = None,
    pin_file: PinFile = None,
    witness: Witness = None,
) -> None:
    """Make the next root, with the certificates that carry trust between it and the one before; announce all three.

    \b
    Example:
      fleet-provisioning ca root begin --dir /var/lib/fleet
    """  # noqa: D301

    async def work(life: AuthorityLife) -> None:
        name = await life.begin_root()
        life.transcript.say(f"{name} is announced. The next issuing CA is signed by it: ca rollover begin")

    _ceremony("ca root begin", directory, passphrase_file, pin_file, witness, work)


@root_app.command("retire")
def retire_root(
    name: Annotated[str, typer.Argument(help="The root.")], directory: Directory = None, witness: Witness = None
) -> None:
    """End a root under which no issuing CA is left.

    \b
    Example:
      fleet-provisioning ca root retire root-ca --dir /var/lib/fleet
    """  # noqa: D301

    async def work(life: AuthorityLife) -> None:
        await life.retire_root(name)
        life.transcript.say(f"{name} is retired. Its key can be destroyed.")

    _ceremony("ca root retire", directory, None, None, witness, work)


@root_app.command("sign")
def sign(
    request: Annotated[Path, typer.Argument(help="The issuing CA's request, PEM.")],
    output: Output,
    root: Annotated[
        str, typer.Option(help="Which root of the directory: NAME.crt with NAME.key or NAME.pkcs11.")
    ] = "root-ca",
    days: Annotated[int, typer.Option(min=1, max=3652, help="Life of the issuing CA, in days.")] = 1826,
    directory: Directory = None,
    passphrase_file: PassphraseFile = None,
    pin_file: PinFile = None,
    witness: Witness = None,
) -> None:
    """Sign an issuing CA's request with a root, on a machine that needs no store and no network.

    \b
    Example:
      fleet-provisioning ca root sign issuing.csr --dir /media/root --output issuing.crt --witness "A. Auditor"
    """  # noqa: D301
    from datetime import timedelta

    from provisioning.authority import urls_of
    from provisioning.ca.ceremony import CeremonyRefused, CertificateAuthority, read_issuing_ca_csr, sign_issuing_ca
    from provisioning.ceremony_transcript import Transcript
    from provisioning.files import pem_of
    from provisioning.signers.places import SignerPlaces
    from provisioning.store.serials import new_serial

    try:
        settings = load_settings(directory, passphrase_file=passphrase_file, pkcs11_pin_file=pin_file)
        files = AuthorityFiles(settings.directory)
        transcript = Transcript("ca root sign", _now, _show, witness or ())
        authority = CertificateAuthority(
            read_certificate(files.certificate(root)), SignerPlaces(files, settings).open(root)
        )
        wanted = read_issuing_ca_csr(_read(request))
        transcript.certificate(f"Root {root}", authority.certificate)
        url = settings.public_http_url
        urls = None if url is None else urls_of(str(url), root)
        signed = sign_issuing_ca(authority, wanted, new_serial(), _now(), urls, timedelta(days=days))
        transcript.certificate("Signed", signed)
        _write_new(output, pem_of(signed))
        transcript.say(f"Written: {output}")
        transcript.write(output.with_name(output.name + ".transcript.txt"))
    except CeremonyRefused as error:
        raise fail(str(error)) from error
    except ConfigurationError as error:
        raise fail(str(error)) from error


@ca_app.command("verify-transcript")
def verify_transcript(
    transcript: Annotated[Path, typer.Argument(help="The file.")], directory: Directory = None
) -> None:
    """Say which entry of the audit log vouches for a transcript; exit code 1 if none does.

    \b
    Example:
      fleet-provisioning ca verify-transcript fleet/ceremonies/2027-01-05T101500.000000Z-ca-rollover-begin.txt
    """  # noqa: D301
    from provisioning.ceremony_transcript import digest_of
    from provisioning.store import audit

    digest = digest_of(_read(transcript))
    _, entry = _with_store(
        directory, {}, lambda database: database.read(lambda connection: audit.ceremony_of(connection, digest))
    )
    if entry is None:
        raise fail(f"no entry of the audit log vouches for {transcript}: it was changed, or belongs to another fleet")
    sys.stdout.write(
        f"entry {entry.number} of {shown_time(entry.at)} by {entry.actor} vouches for {transcript}; "
        "audit verify vouches for the entry\n"
    )


def _say_next(life: AuthorityLife, name: str) -> None:
    life.transcript.say(
        f"{name} is announced: in the bundle and in /cacerts, with CRL and OCSP. When relying parties have fetched the "
        "bundle (a day): ca rollover activate"
    )


def _ceremony(
    title: str,
    directory: Path | None,
    passphrase_file: Path | None,
    pin_file: Path | None,
    witness: list[str] | None,
    work: Callable[[AuthorityLife], Awaitable[None]],
) -> None:
    from provisioning.authority_life import AuthorityLife
    from provisioning.ceremony_transcript import Transcript, operator_name
    from provisioning.logs import configure_logging
    from provisioning.store import audit
    from provisioning.store.audit import Action

    configure_logging()

    async def run(settings: Settings, database: Database) -> None:
        transcript = Transcript(title, _now, _show, witness or ())
        await work(AuthorityLife(settings, database, _now, transcript))
        transcript.say("")
        path = transcript.path_in(settings.directory)
        transcript.write(path)
        facts = {"transcript": path.name, "transcript_sha256": transcript.digest}

        def vouch(connection: object) -> None:
            audit.append(connection, _now(), operator_name(), Action.CEREMONY, title, facts)  # type: ignore[arg-type]

        await database.write(vouch)
        _show(f"Transcript: {path} (SHA-256 {transcript.digest}, in the audit log)")

    flags: dict[str, object] = {"passphrase_file": passphrase_file, "pkcs11_pin_file": pin_file}
    try:
        settings = load_settings(directory, **flags)
        asyncio.run(_open(settings, lambda database: run(settings, database)))
    except (ConfigurationError, Refused) as error:
        raise fail(str(error)) from error


def _with_store(
    directory: Path | None, flags: dict[str, object], work: Callable[[Database], Awaitable[ResultT]]
) -> tuple[Settings, ResultT]:
    try:
        settings = load_settings(directory, **flags)
        return settings, asyncio.run(_open(settings, work))
    except (ConfigurationError, Refused) as error:
        raise fail(str(error)) from error


async def _open(settings: Settings, work: Callable[[Database], Awaitable[ResultT]]) -> ResultT:
    from provisioning.audit_key import read_audit_key
    from provisioning.store import authorities, schema
    from provisioning.store.database import Database

    files = AuthorityFiles(settings.directory)
    database = Database(settings.resolved_database_url, read_audit_key(files))
    root, issuing = read_certificate(files.certificate(ROOT_CA)), read_certificate(files.certificate(ISSUING_CA))
    try:
        await schema.upgrade(database)
        await database.write(lambda connection: authorities.adopt(connection, root, issuing, _now()))
        return await work(database)
    finally:
        await database.close()


def _write_new(path: Path, content: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise fail(f"{path} cannot be read: {error.strerror}") from error


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _now() -> datetime:
    return datetime.now(UTC)
