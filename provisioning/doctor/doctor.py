"""Checks of a service's directory, clock, keys, database, CRLs and ports, with a remedy for each finding.

Rules
-----
1. It changes nothing: no file, no row, no schema. The service may run meanwhile, or not.
2. Every finding names the remedy, as a command where there is one.
3. A check that is impossible because an earlier one failed is omitted: one cause, one finding.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from sqlalchemy.engine import Connection

from provisioning.authorities.authority import open_authority
from provisioning.authorities.last_ceremony import last_ceremony
from provisioning.authorities.own_credentials import check_trust_domain_kept
from provisioning.ca.signing import try_key
from provisioning.config import SETTINGS_FILE, Settings
from provisioning.directory.audit_key import read_audit_key
from provisioning.directory.closed_directory import check_directory_closed
from provisioning.directory.doubts import about_address, about_keys
from provisioning.directory.files import ISSUING_CA, OPERATOR, SERVER, AuthorityFiles, read_certificate
from provisioning.doctor.doctor_authorities import authority_findings, ceremony_findings
from provisioning.doctor.doctor_build import build_finding, openssl_findings
from provisioning.doctor.doctor_claims import claim_findings
from provisioning.doctor.doctor_clock import clock_finding
from provisioning.doctor.doctor_finding import Finding, failed, ok, warning
from provisioning.doctor.doctor_manufacturers import manufacturer_findings
from provisioning.doctor.doctor_operators import operator_finding
from provisioning.doctor.doctor_own_certificates import certificate_findings, standing_findings
from provisioning.doctor.doctor_ports import port_findings
from provisioning.doctor.doctor_profiles import group_findings, profile_findings
from provisioning.doctor.doctor_server import filled_finding, lock_finding, rights_finding, server_findings
from provisioning.errors import ConfigurationError, Refused
from provisioning.pki import open_to_all
from provisioning.pki.keys import is_encrypted
from provisioning.pki.own_directory import quoted, user_argument, user_name
from provisioning.program import full_disk, read_only
from provisioning.program.given_file import SETTINGS_BYTES, contents_of
from provisioning.signers.places import SignerPlaces
from provisioning.store import audit, audit_findings, damage, held_lock, missing_parts, schema
from provisioning.store.audit_findings import Latest
from provisioning.store.database import Database
from provisioning.store.usable import CROWDED_REMEDY, is_crowded, reason_of, unfit

_PRIVATE_DIRECTORY: Final = 0o700
_PRIVATE_FILE: Final = 0o600
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_GROUP: Final = stat.S_ISGID | stat.S_IRWXG
_ROOT: Final = 0
_OF_ROOT: Final = "root-"
"""How a root's name begins."""
_LEAST_FREE: Final = 500 * 1024 * 1024
_FULL: Final = 1024 * 1024
"""With less free space than this, writing more than a page may fail."""
_FEW_FILES: Final = 16
"""The store's and a renewed certificate's are made when they are needed."""
_LOCK_SECONDS: Final = 2
_READ_SECONDS: Final = 60.0
"""For SQLite's whole file."""
_DRAFT_SECONDS: Final = 60
"""A draft is renamed as soon as it is written."""
_TORN: Final = "tables"
"""The check of a database that lacks some, or where one is locked: nothing else in it is checked."""


async def examine(settings: Settings, now: datetime) -> AsyncIterator[Finding]:
    """Yield the findings, in the order in which they are best fixed."""
    files = AuthorityFiles(settings.directory)
    if not files.certificate(ISSUING_CA).exists():
        yield failed(
            "directory",
            f"{files.directory} holds no certificate authority",
            "give the right --dir, restore a backup, or found one: fleet-provisioning init --dir "
            f"{quoted(files.directory)}",
        )
        return
    for finding in (
        build_finding(files.directory),
        *openssl_findings(),
        *_modes(settings, files),
        *_drafts(files, now),
        *_trust_domain(settings, files),
        *profile_findings(settings),
        *_keys(settings),
        *certificate_findings(files, now),
        *_disk(settings),
        *(warning("address", doubt.what, doubt.remedy) for doubt in about_address(settings)),
    ):
        yield finding
    async for finding in _store(settings, files, now):
        yield finding
    for finding in port_findings(settings, files):
        yield finding


def _modes(settings: Settings, files: AuthorityFiles) -> Iterator[Finding]:
    """Report who can read or write what is the service's alone."""
    of_group = _GROUP if settings.unsafe_group_writable_directory else 0
    there = (path for path in sorted(files.directory.iterdir()) if path.exists())  # A link may lead nowhere.
    private = [path for path in there if path.suffix in {".key", ".db"}]
    wrong = _too_open(files, private, of_group)
    for path, mode, wanted in wrong:
        what = "may write to it" if mode & _OTHERS_WRITE else "can read it"
        yield failed("files", f"{path} has mode {mode:04o}: others {what}", f"chmod {wanted:04o} {quoted(path)}")
    # Others who may write are reported already.
    refused = None if any(mode & _OTHERS_WRITE for _, mode, _ in wrong) else _not_closed(settings)
    if refused is not None:
        yield refused
    yield from _secrets(settings)
    if others := _owned_by_others(files):
        yield others
    elif not wrong and refused is None:
        whose = "their owner's and their group's" if of_group else "their owner's only"
        yield ok("files", f"{files.directory} and {len(private)} private files are {whose}")


def _too_open(files: AuthorityFiles, private: Sequence[Path], of_group: int) -> list[tuple[Path, int, int]]:
    """Return which of the files have a mode that lets others in, beside those *of_group*: it, and the mode wanted."""
    closed = [(files.directory, _PRIVATE_DIRECTORY), *((path, _PRIVATE_FILE) for path in private)]
    settings_file = files.directory / SETTINGS_FILE
    if settings_file.exists() and "database_url" in contents_of(settings_file, SETTINGS_BYTES).decode(errors="replace"):
        closed.append((settings_file, _PRIVATE_FILE))  # The URL may have a password.
    found = [(path, stat.S_IMODE(path.stat().st_mode), wanted) for path, wanted in closed]
    return [(path, mode, wanted) for path, mode, wanted in found if mode & ~wanted & ~of_group]


def _not_closed(settings: Settings) -> Finding | None:
    """Return why the service would not start in its directory, None if it would."""
    try:
        check_directory_closed(settings)
    except ConfigurationError as error:
        what, _, remedy = str(error).partition("; ")
        return failed("files", what, remedy)
    return None


def _drafts(files: AuthorityFiles, now: datetime) -> Iterator[Finding]:
    """Warn of what a command that was killed has left: nobody reads it, and it may be a key."""
    begun = now.timestamp() - _DRAFT_SECONDS
    left = []
    for path in sorted(files.directory.glob(".*.new")):
        with contextlib.suppress(FileNotFoundError):  # Its command has just renamed it.
            if path.stat().st_mtime < begun:
                left.append(path)
    if left:
        names = ", ".join(path.name for path in left)
        what = f"{names}: left by a command that was killed, perhaps with a key"
        yield warning("files", what, f"rm {' '.join(map(quoted, left))}")


def _owned_by_others(files: AuthorityFiles) -> Finding | None:
    """Report private files that the directory's owner, as whom the service runs, cannot read.

    When root restores a store or writes a key, root owns the files. Root itself can read everything.
    """
    owner = files.directory.stat().st_uid
    with_database = (path for path in sorted(files.directory.iterdir()) if path.suffix.startswith((".key", ".db")))
    owners = {path: _owner_of(path) for path in with_database}
    foreign = {path: found for path, found in owners.items() if found is not None and found != owner}
    if owner == _ROOT or not foreign:
        return None
    names = ", ".join(path.name for path in foreign)
    whose = " and ".join(sorted({user_name(each) for each in foreign.values()}))
    return failed(
        "files",
        f"{names}: owned by {whose}; a service that runs as the directory's owner, {user_name(owner)}, cannot read "
        "them",
        f"chown {user_argument(owner)} {' '.join(map(quoted, foreign))}",
    )


def _owner_of(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:  # A link to nowhere; or SQLite's log, of a service that has just stopped.
        return None


def _secrets(settings: Settings) -> Iterator[Finding]:
    """Warn of secrets that open the CA keys if everybody may read them; `_keys` finds missing ones."""
    for path in (settings.passphrase_file, settings.pkcs11_pin_file):
        if path is not None and (said := open_to_all.told_of(path)) is not None:
            what, _, remedy = said.rpartition(": ")
            yield warning("files", what, remedy)


def _trust_domain(settings: Settings, files: AuthorityFiles) -> Iterator[Finding]:
    try:
        check_trust_domain_kept(settings, files)
    except ConfigurationError as error:
        what, _, remedy = str(error).partition(": ")
        yield failed("trust domain", what, remedy)


def _keys(settings: Settings) -> Iterator[Finding]:
    files = AuthorityFiles(settings.directory)
    remedy = (
        "give the passphrase or PIN as for serve, or restore the file from the backup; if the CA is retired or revoked "
        "and its key destroyed or lost, move the file away that holds or names it: NAME.key, NAME.pkcs11"
    )
    try:
        signers = open_authority(settings).signers
        # A root kept elsewhere has no key here.
        names = sorted(path.stem for path in files.directory.glob("*.crt") if path.stem not in {SERVER, OPERATOR})
        held = [name for name in names if signers.holds(name)]
    except ConfigurationError as error:
        yield failed("keys", str(error), remedy)
        return
    unopened, silent = _tried(signers, files, held)
    opened = [name for name in held if name not in unopened]
    own = [name for name in unopened if _may_have_its_own(signers, name, opened)]
    for name in own:
        yield warning(
            "keys",
            f"{unopened[name]}; a root's key may have a passphrase of its own",
            "doctor with that passphrase (--passphrase-file) tries it: the root's next CRL needs it",
        )
    wrong = [error for name, error in unopened.items() if name not in own]
    try:
        read_audit_key(files)
    except ConfigurationError as error:
        wrong.append(str(error))
    if wrong:  # One finding: a wrong passphrase opens none of them. One that is missing is said once.
        yield failed("keys", "; ".join(dict.fromkeys(wrong)), remedy)
    for name in silent:
        yield failed(
            "keys",
            f"the key of {name} opens but does not sign",
            "check that its token is connected and ready, then try again",
        )
    if not held:
        yield failed("keys", f"{files.directory} holds no CA key", "restore the file from the backup")
    elif not (wrong or silent):
        for doubt in about_keys(settings):
            yield warning("keys", doubt.what, doubt.remedy)
        yield ok("keys", f"the keys of {', '.join(opened)} open and sign; the audit log's key is there")


def _may_have_its_own(signers: SignerPlaces, name: str, opened: Sequence[str]) -> bool:
    """Whether the key of *name* may have another passphrase than those that open; not if it is damaged."""
    if not (name.startswith(_OF_ROOT) and signers.in_file(name) and any(map(signers.in_file, opened))):
        return False
    try:
        signers.open(name)
    except ConfigurationError:
        return is_encrypted(signers.path(name))
    return False


def _tried(signers: SignerPlaces, files: AuthorityFiles, held: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return what is wrong with the keys of the CAs *held*, by name, and the names of those that do not sign."""
    wrong, silent = dict[str, str](), list[str]()
    for name in held:
        try:
            try_key(signers.open_for(name, read_certificate(files.certificate(name))))
        except ConfigurationError as error:
            wrong[name] = str(error)
        except (Refused, InvalidSignature):
            silent.append(name)
    return wrong, silent


def _disk(settings: Settings) -> Iterator[Finding]:
    free = shutil.disk_usage(settings.directory).free
    shown = f"{free // 2**20:,} MiB free at {settings.directory}"
    volume = os.statvfs(settings.directory)
    if free < _FULL:
        yield failed("disk", shown, "free disk space: nothing is issued or revoked until then")
    elif volume.f_files and volume.f_favail < _FEW_FILES:
        left = f"{volume.f_favail} more files (inodes) fit at {settings.directory}"
        yield failed("disk", left, "remove files there: nothing is issued or revoked without room for some")
    elif free < _LEAST_FREE:
        yield warning("disk", shown, "free disk space: when the disk is full, nothing is issued or revoked")
    else:
        yield ok("disk", shown)


async def _store(settings: Settings, files: AuthorityFiles, now: datetime) -> AsyncIterator[Finding]:
    try:
        key = read_audit_key(files)
    except ConfigurationError:
        key = b""  # Reported already.
    if settings.database_url is None and not (files.directory / "fleet.db").exists():
        yield failed(
            "database",
            f"{files.directory / 'fleet.db'} is missing",
            "restore it from the backup; or, if the store is on PostgreSQL, give database_url in "
            f"{SETTINGS_FILE} or FLEET_PROVISIONING_DATABASE_URL",
        )
        return
    try:
        database = Database(settings.resolved_database_url, key)
    except ConfigurationError as error:  # The driver is not installed, or does not take the URL; a log of another file.
        remedy = "install what it needs, or correct database_url: docs/postgresql.md"
        yield failed(
            "database", str(error), remedy if settings.database_url else "do so, or restore a backup: docs/backup.md"
        )
        return
    if database.doubt is not None:
        yield warning("database", database.doubt, "repeat what is missing, or restore a backup: docs/backup.md")
    try:
        async for finding in _opened(database, settings, now):
            yield finding
    except ConfigurationError as error:
        yield failed("database", str(error), "restore it from the backup, or name the right one")
    except Refused as refusal:
        yield _unusable(refusal, settings, database.shown_url)
    finally:
        await database.close()


async def _opened(database: Database, settings: Settings, now: datetime) -> AsyncIterator[Finding]:
    where = database.shown_url
    schema.check_there(database)
    state = await database.read(schema.state)
    if state is schema.SchemaState.CURRENT:
        whole = await database.read(lambda connection: _whole(connection, database))
        yield whole
        if whole.check != _TORN:
            if (damaged := await database.read(lambda connection: _sound(connection, database))) is not None:
                yield damaged
            async for finding in _records(settings, database, now):
                yield finding
    elif state is schema.SchemaState.NONE:
        what = "is empty"
        if tables := await database.read(schema.tables):
            what = f"does not say of which version it is: alembic_version is missing or empty, beside {tables} tables"
        yield failed("database", f"{where} {what}", "restore it from the backup, or name the right one")
    elif state is schema.SchemaState.OLDER:
        remedy = "copy the store first, see docs/backup.md: the next start of the service upgrades it"
        yield warning("database", f"{where} has an older schema", remedy)
    else:
        yield failed(
            "database",
            f"{where} was made by a newer version",
            "install that version again",
        )


def _unusable(refusal: Refused, settings: Settings, where: str) -> Finding:
    if (full := full_disk.told(refusal, settings.directory)) is not None:
        return failed("database", f"{where} cannot be used: {full}", "free disk space")
    if (found := unfit(refusal)) is not None:
        what, remedy = found
        return failed("database", f"{where} cannot be used: {what}", f"{remedy}: docs/postgresql.md")
    remedy = "start it; check database_url, its firewall and the database user's rights"
    if settings.database_url is None:
        remedy = "restore it from the backup, or let the service's user read and write it"
    elif is_crowded(refusal):
        remedy = CROWDED_REMEDY
    return failed("database", f"{where} cannot be used: {reason_of(refusal)}", remedy)


def _whole(connection: Connection, database: Database) -> Finding:
    """Report whether the database has all of its schema, and can be written to."""
    where = database.shown_url
    if (locked := lock_finding(connection, _TORN, where)) is not None:  # First: what follows waits.
        return locked
    lost = missing_parts.missing(connection)
    if lost and lost != [missing_parts.AUDIT_TRIGGER]:  # That alone is `changes_that_pass`: nothing is to be restored.
        return failed(
            _TORN,
            f"{where} lacks {', '.join(lost)}: what needs them is refused",
            "stop the service and restore the store from the backup, to the end (docs/backup.md); or find out who "
            "removed them",
        )
    if not schema.takes_changes(connection):
        return failed(
            "database",
            f"{where} is read-only: it is a standby, or is configured so",
            "give the primary's address, or both: ?host=A&host=B&target_session_attrs=read-write; a restore to a point "
            "in time that waits there goes on by SELECT pg_wal_replay_resume()",
        )
    if (prevented := filled_finding(connection, where) or rights_finding(connection, where)) is not None:
        return prevented
    file = Path(database.url.database or "")
    is_file = database.url.get_backend_name() == "sqlite"
    if is_file and (closed := unwritable(file)) is not None:
        return failed(
            "database",
            f"{where} can be read and not be written: {closed} is closed to {user_name(os.geteuid())}",
            read_only.told(file.parent) or f"run the doctor as the service's user; ls -ld {quoted(closed)}",
        )
    if is_file and held_lock.is_held(file, _LOCK_SECONDS):
        return failed(
            "database",
            f"{where} is locked: another program has kept others from writing for {_LOCK_SECONDS} seconds",
            held_lock.remedy(file),
        )
    return ok("database", f"{where} answers, its schema is current")


def _sound(connection: Connection, database: Database) -> Finding | None:
    """Report a file that is damaged, or too large to be read through; None: it is whole, or none."""
    where = database.shown_url
    try:
        found = damage.damage(connection, _READ_SECONDS)
    except damage.NotInTime:
        file = quoted(Path(database.url.database or ""))
        what = f"{where} takes more than {_READ_SECONDS:g} seconds to read: whether it is damaged is not known"
        return warning("database", what, f"sqlite3 {file} 'PRAGMA integrity_check; PRAGMA foreign_key_check'")
    if found is None:
        return None
    return failed(
        "database",
        f"{where} is damaged: {found}. Who is revoked may be missing where it is looked for",
        "stop the service, look whether its disk can be read (dmesg), and restore the backup (docs/backup.md)",
    )


def unwritable(database: Path) -> Path | None:
    """Return *database*, or its folder, if this process may not write there: SQLite says so of a change only."""
    for each in (database, database.resolve().parent):
        if not os.access(each, os.W_OK, effective_ids=True):
            return each
    return None


async def _records(settings: Settings, database: Database, now: datetime) -> AsyncIterator[Finding]:
    last = last_ceremony(settings.directory)

    def read(connection: Connection) -> tuple[Latest | None, list[Finding]]:
        findings = [
            *server_findings(connection),
            *_of_another_key(connection),
            *standing_findings(connection, AuthorityFiles(settings.directory), now),
            *authority_findings(connection, settings, now),
            *ceremony_findings(connection, last),
            *manufacturer_findings(connection, now),
            *claim_findings(connection, now),
            *group_findings(connection, settings),
            operator_finding(connection, settings, now),
            *(
                failed("audit log", each, missing_parts.GUARD_REMEDY)
                for each in missing_parts.changes_that_pass(connection)
            ),
        ]
        try:
            return audit_findings.latest(connection), findings
        except audit_findings.UNREADABLE as error:
            remedy = (
                "run fleet-provisioning audit verify; find out who could write to the database, and restore a backup"
            )
            return None, [failed("audit log", f"its last entries cannot be read: {error}", remedy), *findings]

    latest, about_others = await database.read(read)
    if latest is not None:
        yield clock_finding(now, latest)
    for finding in about_others:
        yield finding


def _of_another_key(connection: Connection) -> list[Finding]:
    if not connection.get_execution_options()[audit.KEY_OPTION]:  # It is missing, which is reported already.
        return []
    try:
        audit_findings.check_key(connection)
    except ConfigurationError as error:
        what, _, remedy = str(error).partition(": ")
        return [failed("audit log", what, remedy)]
    return []
