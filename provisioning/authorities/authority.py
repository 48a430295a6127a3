"""The service's directory: founded once by `found`, opened by `open_authority` each time the service starts.

Theory
------
Everything is made in a hidden directory beside the final one, which is then renamed in one step: after a crash,
Ctrl-C, SIGTERM or a full disk there is either a complete authority or none (`provisioning.authorities.workshop`).

Founding is a key ceremony as all others: each CA certificate has an audit entry before and after it is signed, and the
log vouches for the transcript (`provisioning.authorities.ceremony_transcript`).

Rules
-----
1. Nothing is ever overwritten; the directory must not exist, or be empty.
2. The directory has mode 0700, every key 0600; the CA keys are encrypted with the passphrase, or in a token.
3. The root's key is opened only to sign the root's CRL, once per half of its life; in between it may be kept elsewhere.
4. The CA certificates are signed in the transaction that logs and records them, once nothing is known to be in the way:
   a database of its own that an init could not use is as it was, and the next one may use it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.authorities.ceremony_transcript import Transcript, facts_of, operator_name, vouch_for
from provisioning.authorities.issuing_policy import profiles_of
from provisioning.authorities.own_credentials import OPERATOR_NAME, OwnCredentials
from provisioning.authorities.workshop import Workshop
from provisioning.ca.ceremony import Authority, found_authority
from provisioning.ca.crl import CrlIssuer
from provisioning.ca.issuer import Issuer, IssuerUrls
from provisioning.ca.issuing_ca_findings import identifier_of
from provisioning.ca.server_names import InvalidServerName, split_names
from provisioning.config import SETTINGS_FILE, Settings
from provisioning.directory.audit_key import make_audit_key, read_audit_key
from provisioning.directory.files import ISSUING_CA, ROOT_CA, AuthorityFiles, read_certificate
from provisioning.errors import ConfigurationError, Refused
from provisioning.pki.identity import Identity, InvalidIdentity
from provisioning.pki.keys import KeyFileError, PrivateKey, write_private
from provisioning.pki.pem import pem_of
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.program import full_disk
from provisioning.program.durable_names import make_folder, sync_content
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.signers.places import IN_FILES, SignerPlaces
from provisioning.signers.signer import Signer
from provisioning.store import audit, authorities, counters, devices, schema, serials
from provisioning.store.audit import Action
from provisioning.store.authorities import StoredAuthority
from provisioning.store.crl_shards import CrlShard
from provisioning.store.database import Database
from provisioning.store.serials import SerialNumbers
from provisioning.store.usable import usable

_ROOT_CRL_LIFE: Final = timedelta(days=365)
STRANGER_REMEDY: Final = "restore the file from the same backup as the database, or name the database of this directory"
"""What to do about `strangers`."""


@dataclass(frozen=True, slots=True)
class OpenAuthority:
    """The directory's files, the two CAs that the fleet was founded with, and access to the CAs' keys."""

    files: AuthorityFiles
    root_certificate: x509.Certificate
    issuing_certificate: x509.Certificate
    signers: SignerPlaces


def urls_of(public_http_url: str, issuer: str) -> IssuerUrls:
    """Return the URLs of an issuing CA's CRL, its certificate, and the OCSP responder for its certificates."""
    origin = public_http_url.rstrip("/")
    return replace(_list_and_certificate(origin, issuer), ocsp=f"{origin}/ocsp")


def urls_of_root(settings: Settings, root: str) -> IssuerUrls | None:
    """Return the URLs of a root's CRL and certificate, for what it signs; None if no public address is configured.

    Its key is offline and certifies no OCSP signer: its few certificates are covered by its CRL. The port that a
    service happens to listen on is no address for a certificate of years, whoever signs it here.
    """
    url = settings.public_http_url
    return None if url is None else _list_and_certificate(str(url).rstrip("/"), root)


def _list_and_certificate(origin: str, issuer: str) -> IssuerUrls:
    return IssuerUrls(f"{origin}/crl/{issuer}.crl", f"{origin}/ca/{issuer}.crt")


def open_authority(settings: Settings) -> OpenAuthority:
    """Read the authority in the settings' directory; raise `ConfigurationError` naming the file and the remedy."""
    files = AuthorityFiles(settings.directory)
    files.check_there()
    signers = SignerPlaces(files, settings)
    return OpenAuthority(
        files,
        read_certificate(files.certificate(ROOT_CA)),
        read_certificate(files.certificate(ISSUING_CA)),
        signers,
    )


def strangers(files: AuthorityFiles, known: Iterable[StoredAuthority]) -> list[Path]:
    """Return the certificate files that differ from the store's certificates of the CAs *known* by these names."""
    places = [(files.certificate(each.name), each.certificate) for each in known]
    return [path for path, certificate in places if path.exists() and read_certificate(path) != certificate]


async def found(
    settings: Settings,
    server_names: Sequence[str],
    clock: Callable[[], datetime],
    transcript: Transcript | None = None,
) -> AuthorityFiles:
    """Make the authority, the server's and the first operator's credentials, and the store; write the *transcript*.

    Raises `ConfigurationError` and leaves nothing behind if anything is in the way.
    """
    directory = settings.directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(
            f"{directory} exists and is not empty: choose another --dir; init does not overwrite anything"
        )
    try:
        make_folder(directory.parent, 0o777)
        workshop = Workshop(directory)
    except FileExistsError as error:
        raise ConfigurationError(f"{directory} cannot be made: {error.filename} is no directory") from error
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be made: {error.strerror}") from error
    try:
        async with _keys(settings.model_copy(update={"directory": workshop.path})) as keys:
            await _furnish(keys, server_names, clock, transcript or founding(clock))
            workshop.become_the_directory()
    except (OSError, KeyFileError, InvalidIdentity, InvalidServerName, Refused, ConfigurationError) as error:
        if (full := full_disk.told(error, directory.parent)) is not None:
            raise ConfigurationError(f"{directory} cannot be made: {full}, or choose another --dir") from error
        if isinstance(error, ConfigurationError):
            raise
        what = f"{directory} cannot be made"
        if isinstance(error, InvalidServerName):
            what = "server_names (--server-name)"
        raise ConfigurationError(f"{what}: {error}") from error
    finally:
        workshop.close()
    return AuthorityFiles(directory)


def founding(clock: Callable[[], datetime], witnesses: Sequence[str] = ()) -> Transcript:
    """Return the transcript of a founding, to be written: nothing of it is shown before all is done."""
    return Transcript("init", clock, lambda _: None, witnesses)


@dataclass(frozen=True, slots=True)
class _NewKeys:
    settings: Settings
    root: PrivateKey
    issuing: PrivateKey


@contextlib.asynccontextmanager
async def _keys(settings: Settings) -> AsyncIterator[_NewKeys]:
    """Make the CAs' keys where the settings say; delete them if the block fails: those in a token would remain."""
    places = SignerPlaces(AuthorityFiles(settings.directory), settings)
    made: list[tuple[str, Signer]] = []
    try:
        keys = []
        for name in (ROOT_CA, ISSUING_CA):
            key, signer = places.create(name)
            made.append((name, signer))
            keys.append(key)
        yield _NewKeys(settings, *keys)
    except BaseException:
        for name, signer in made:
            places.discard(name, signer)
        raise


async def _furnish(
    keys: _NewKeys, server_names: Sequence[str], clock: Callable[[], datetime], transcript: Transcript
) -> None:
    settings = keys.settings
    files = AuthorityFiles(settings.directory)
    now = clock()
    public_url = None if settings.public_http_url is None else str(settings.public_http_url)
    Identity(settings.trust_domain, Role.OPERATOR, OPERATOR_NAME)  # Refuse a wrong trust domain first.
    _write_settings(files, settings, public_url)
    split_names(server_names)  # So are wrong names.
    if settings.database_url is None:
        write_private(settings.directory / "fleet.db", b"")  # So that SQLite does not choose the mode.
    make_audit_key(files)
    database = Database(settings.resolved_database_url, read_audit_key(files))
    try:
        with usable(database):
            await schema.upgrade(database)
        authority = await database.write(partial(_sign, keys=keys, now=now, shown_url=database.shown_url))
        _write_certificates(files, authority)
        root, issuing = authority.root_ca, authority.issuing_ca
        urls = None if public_url is None else urls_of(public_url, ISSUING_CA)
        issuer = Issuer(issuing.certificate, issuing.key, urls)
        numbers = SerialNumbers(database)
        credentials = OwnCredentials(
            files, issuer, database, numbers, profiles_of(settings), settings.trust_domain, clock
        )
        await credentials.issue_first(server_names)
        await numbers.release()
        for name, life, ca in (
            (ISSUING_CA, settings.crl_life, issuing),
            (ROOT_CA, _ROOT_CRL_LIFE, root),
        ):
            plan = _crl_plan(settings, name, life, partial(_same, CrlIssuer(ca.certificate, ca.key)))
            await CrlPublisher(database, plan, clock).start()
        places = SignerPlaces(files, settings)
        for name, what, ca in ((ROOT_CA, "Root", root), (ISSUING_CA, "Issuing CA", issuing)):
            where = f"encrypted, in {files.key(name).name}" if places.in_file(name) else places.place(name)
            transcript.say(f"Key of {name}: {where}")
            transcript.certificate(f"{what} {name}", ca.certificate)
        path = transcript.path_in(settings.directory)
        transcript.write(path)
        await database.write(partial(vouch_for, transcript=transcript, path=path, now=clock()))
    finally:
        await database.close()


def _sign(connection: Connection, *, keys: _NewKeys, now: datetime, shown_url: str) -> Authority:
    """Sign the two CAs' certificates and record them, with an audit entry before and after each."""
    if any(devices.count(connection).values()) or authorities.every(connection) or audit.entries(connection, 0, 1):
        raise ConfigurationError(
            f"database_url: {shown_url} holds another authority's records, or those of an init that was "
            "stopped: give each authority a database of its own"
        )
    numbers = (serials.new_serial(), serials.new_serial())
    for name, serial in zip((ROOT_CA, ISSUING_CA), numbers, strict=True):
        facts = {"root": ROOT_CA, "serial": serial_text(serial)}
        audit.append(connection, now, operator_name(), Action.SIGNING_CA, name, facts)
    authority = found_authority(
        keys.settings.trust_domain,
        now,
        numbers,
        urls_of_root(keys.settings, ROOT_CA),
        (keys.root, keys.issuing),
    )
    for name, ca in ((ROOT_CA, authority.root_ca), (ISSUING_CA, authority.issuing_ca)):
        audit.append(connection, now, operator_name(), Action.CA_SIGNED, name, facts_of(ca.certificate))
    authorities.adopt(connection, authority.root_ca.certificate, authority.issuing_ca.certificate, now)
    return authority


def issuing_crl_plans(
    settings: Settings, ca: StoredAuthority, key: PrivateKey, public_http_url: str, shards: Sequence[CrlShard]
) -> list[CrlPlan]:
    """Return the plans for the CRL of an issuing CA, and for each of its *shards*."""
    plan = _crl_plan(settings, ca.name, settings.crl_life, partial(_same, CrlIssuer(ca.certificate, key)))
    origin = public_http_url.rstrip("/")
    return [
        replace(plan, delta_url=f"{origin}/crl/{plan.name}.delta.crl"),
        *(
            replace(plan, name=shard.name, shard=shard, delta_url=f"{origin}/crl/{shard.name}.delta.crl")
            for shard in shards
        ),
    ]


def root_crl_plan(settings: Settings, signers: SignerPlaces, name: str, certificate: x509.Certificate) -> CrlPlan:
    """Return the plan for a root's CRL: its key is loaded for each CRL."""

    def open_root() -> CrlIssuer:
        try:
            key = signers.open_for(name, certificate)
        except ConfigurationError as error:
            raise ConfigurationError(f"the root CA's CRL is due and its key is needed: {error}") from error
        return CrlIssuer(certificate, key)

    return replace(_crl_plan(settings, name, _ROOT_CRL_LIFE, open_root), issuer_key_id=identifier_of(certificate))


def _crl_plan(settings: Settings, name: str, life: timedelta, open_issuer: Callable[[], CrlIssuer]) -> CrlPlan:
    return CrlPlan(name, counters.crl_counter(name), life, settings.crl_debounce_seconds, open_issuer)


def _same(issuer: CrlIssuer) -> CrlIssuer:
    return issuer


def _write_certificates(files: AuthorityFiles, authority: Authority) -> None:
    for name, ca in ((ROOT_CA, authority.root_ca), (ISSUING_CA, authority.issuing_ca)):
        _write_public(files.certificate(name), pem_of(ca.certificate))
    _write_public(files.bundle, pem_of(authority.root_ca.certificate, authority.issuing_ca.certificate))


def _write_settings(files: AuthorityFiles, settings: Settings, public_url: str | None) -> None:
    lines = [
        "# Settings of fleet-provisioning; flags and FLEET_PROVISIONING_* in the environment come first.",
        f'trust_domain = "{settings.trust_domain}"',
    ]
    if settings.signer != IN_FILES:
        lines.append(f"signer = {json.dumps(settings.signer)}")
    if public_url is not None:
        lines.append(f'public_http_url = "{public_url}"')
    _write_public(files.directory / SETTINGS_FILE, ("\n".join(lines) + "\n").encode())


def _write_public(path: Path, content: bytes) -> None:
    # Nobody else's to write, whatever the umask: 002 is usual, and a service whose directory is then opened for reading
    # would not start (`provisioning.directory.closed_directory`).
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
        file.write(content)
        sync_content(file)
