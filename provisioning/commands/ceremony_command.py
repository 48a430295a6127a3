"""Shared by all commands on the CAs: the directory and store that they work on, and the transcript that they write.

Each command imports what it needs: `--help` starts without it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from provisioning.commands.service_command import Directory, fail, say, warn_of_open
from provisioning.errors import ConfigurationError, Refused
from provisioning.program import interruption
from provisioning.program.gathered_options import with_options
from provisioning.program.given_file import PEM_BYTES, contents_of, unread
from provisioning.program.json_output import Json, print_document

if TYPE_CHECKING:
    from provisioning.authorities.authority_life import AuthorityLife
    from provisioning.config import Settings
    from provisioning.store.database import Database

ResultT = TypeVar("ResultT")

"""A shell's exit code for a command that was ended by Ctrl-C."""

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
Another = Annotated[bool, typer.Option("--another", help="Create it although the previous one is not active yet.")]
Output = Annotated[Path, typer.Option(help="Where to write it; an existing file is not overwritten.")]


Facts = dict[str, object]
"""A ceremony's results for programs, besides its transcript."""


@dataclass(frozen=True, slots=True)
class Ceremony:
    """The command line's facts for a ceremony: where the CAs are, what opens their keys, witnesses, output."""

    directory: Directory = None
    passphrase_file: PassphraseFile = None
    pin_file: PinFile = None
    witness: Annotated[
        list[str] | None, typer.Option(help="A witness of the ceremony, for the transcript; repeatable.")
    ] = None
    as_json: Json = False

    def hold(self, title: str, work: Callable[[AuthorityLife], Awaitable[Facts]]) -> None:
        """Run *work* as the ceremony called *title*, and write its transcript; an error is one line.

        The text for people goes to stdout; with *as_json* it goes to stderr, and the facts to stdout.
        """
        from provisioning.authorities.authority_life import AuthorityLife
        from provisioning.authorities.ceremony_transcript import Transcript, vouch_for
        from provisioning.directory.one_ceremony import ceremony_on

        has_begun = False

        async def run(settings: Settings, database: Database) -> None:
            nonlocal has_begun
            held.enter_context(ceremony_on(settings.directory))
            tell = say if self.as_json else show  # Aside, if the result is for programs.
            transcript = Transcript(title, now, tell, self.witness or ())
            has_begun = True
            told = await work(AuthorityLife(settings, database, now, transcript))
            transcript.say("")
            path = transcript.path_in(settings.directory)
            try:
                transcript.write(path)
            except ConfigurationError as error:
                raise ConfigurationError(f"{error}; the changes shown above are in effect all the same") from error
            facts = await database.write(lambda connection: vouch_for(connection, transcript, path, now()))
            if self.as_json:
                print_document({"ceremony": title, **told, **facts, "transcript": str(path)})
            tell(f"Transcript: {path} (SHA-256 {transcript.digest}, in the audit log)")
            transcript.check_shown()

        try:
            with contextlib.ExitStack() as held:
                self._opened(run)
        except KeyboardInterrupt as error:
            told = _interrupted(title) if has_begun else f"{title} was stopped before it began"
            say(f"fleet-provisioning: {told}")
            raise typer.Exit(interruption.EXIT_CODE) from error

    def look(self, work: Callable[[AuthorityLife], Awaitable[ResultT]]) -> ResultT:
        """Return the result of *work*, before a ceremony: it changes nothing, and leaves no transcript."""
        from provisioning.authorities.authority_life import AuthorityLife
        from provisioning.authorities.ceremony_transcript import Transcript

        async def run(settings: Settings, database: Database) -> ResultT:
            return await work(AuthorityLife(settings, database, now, Transcript("", now, lambda _: None)))

        return self._opened(run)

    def _opened(self, work: Callable[[Settings, Database], Awaitable[ResultT]]) -> ResultT:
        import asyncio

        from provisioning.config import load_settings
        from provisioning.directory.closed_directory import secrets_of
        from provisioning.program.logs import configure_logging

        configure_logging(least="error")  # The command reports what it does.
        flags: dict[str, object] = {"passphrase_file": self.passphrase_file, "pkcs11_pin_file": self.pin_file}
        with _told():
            settings = load_settings(self.directory, **flags)
            warn_of_open(*secrets_of(settings))
            with _told(settings.directory):
                return asyncio.run(_open(settings, lambda database: work(settings, database)))
        raise AssertionError("told")


def _interrupted(title: str) -> str:
    return (
        f"{title} was interrupted: what it has shown as done is in effect, and what follows may be. Look with ca list "
        "and audit show before you run it again; a transcript that is not in the audit log does not count"
    )


ceremonial = with_options(Ceremony, behind=True)
"""Gives a command the options of a ceremony that signs or creates a key; it takes a `Ceremony` first."""

ceremonial_without_keys = with_options(Ceremony, without={"passphrase_file", "pin_file"}, behind=True)
"""Gives a command the options of a ceremony that needs no key; it takes a `Ceremony` first."""


def look_into_store(directory: Path | None, work: Callable[[Database], Awaitable[ResultT]]) -> tuple[Settings, ResultT]:
    """Return the settings and the result of *work*; an error is one line.

    A store with an older schema is refused, not upgraded.
    """
    import asyncio  # Late: `service_command`, rule 3.

    from provisioning.config import load_settings

    with _told():
        settings = load_settings(directory)
        with _told(settings.directory):
            return settings, asyncio.run(_open(settings, work, looks=True))
    raise AssertionError("told")


@contextlib.contextmanager
def _told(directory: Path | None = None) -> Iterator[None]:
    """Turn a command's errors into one line and exit code 1; for a full disk, *directory* tells which."""
    from provisioning.pki.keys import KeyFileError
    from provisioning.program import full_disk

    try:
        yield
    except (ConfigurationError, Refused, KeyFileError) as error:
        text = str(error)
        if directory is not None and (full := full_disk.told(error, directory)) is not None and full not in text:
            raise fail(f"{error.code}: {full}" if isinstance(error, Refused) else f"{text}: {full}") from error
        raise fail(error) from error


async def _open(settings: Settings, work: Callable[[Database], Awaitable[ResultT]], *, looks: bool = False) -> ResultT:
    from provisioning.directory.audit_key import read_audit_key
    from provisioning.directory.files import ISSUING_CA, ROOT_CA, AuthorityFiles, read_certificate
    from provisioning.program.logs import configure_logging
    from provisioning.store import authorities, schema
    from provisioning.store.database import Database
    from provisioning.store.usable import reported, usable

    configure_logging(least="error")  # Not to stdout, which is for the result; errors are reported.
    files = AuthorityFiles(settings.directory)
    files.check_there()
    database = Database(settings.resolved_database_url, read_audit_key(files))
    if database.doubt is not None:
        say(f"fleet-provisioning: {database.doubt}")
    root, issuing = read_certificate(files.certificate(ROOT_CA)), read_certificate(files.certificate(ISSUING_CA))
    held = contextlib.ExitStack()
    try:
        with usable(database):
            if looks:
                schema.check_there(database)
                await database.read(lambda connection: schema.check_current(connection, database))
            else:
                await _upgrade(settings, database, held)
            if not await database.read(authorities.every):  # Else nothing is written for a command that looks.
                await database.write(lambda connection: authorities.adopt(connection, root, issuing, now()))
        with reported(database):
            return await work(database)
    finally:
        await database.close()
        held.close()  # Later: `provisioning.program.sqlite_lock`, rule 1.


async def _upgrade(settings: Settings, database: Database, held: contextlib.ExitStack) -> None:
    """Bring the schema up to date, with locks that are *held*; raise `ConfigurationError` while an older service runs.

    One of another directory, too, which a copy of this one with the same store is.
    """
    from provisioning.authorities.own_credentials import SERVER_NAME
    from provisioning.directory.in_charge import in_charge
    from provisioning.store import schema
    from provisioning.store.sole_service import alone_on

    schema.check_there(database)
    if database.url.get_backend_name() == "sqlite" and await database.read(schema.state) is schema.SchemaState.OLDER:
        try:
            held.enter_context(in_charge(settings.directory, "", os.getpid(), alone=True))
            held.enter_context(alone_on(database.url))
        except ConfigurationError as error:
            raise ConfigurationError(
                "the store has an older schema, and this command brings it up to date, for which the service must "
                f"have stopped and the store been copied (docs/backup.md); {error}"
            ) from error
    await schema.upgrade_founded(database, SERVER_NAME)


def read_file(path: Path) -> bytes:
    """Return the file's contents; exit with one line if it cannot be read."""
    try:
        return contents_of(path, PEM_BYTES)
    except OSError as error:
        raise fail(unread(path, error)) from error


def show(line: str) -> None:
    """Print a line of the result."""
    sys.stdout.write(f"{line}\n")


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)
