"""The service's directory: founded once by `found`, opened by `open_authority` each time the service starts.

Theory
------
Everything is made in a hidden directory beside the final one, which then takes its name in one step: after a crash,
Ctrl-C or a full disk there is either a complete authority or none.

Rules
-----
1. Nothing is ever overwritten; the directory must not exist, or be empty.
2. The directory has mode 0700, every key 0600; the CA keys are encrypted with the passphrase.
3. The root's key is read only to sign the root's CRL, once in half its life; between, it may be kept elsewhere.
"""

from __future__ import annotations

import ipaddress
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.ca.ceremony import Authority, found_authority
from provisioning.ca.crl import CrlIssuer
from provisioning.ca.issuer import IssuanceRequest, Issuer, IssuerUrls
from provisioning.ca.profile import InvalidProfile, Profile, ProfileConfig, ProfileName, profile_of
from provisioning.ca.server_names import InvalidServerName, check_host_name
from provisioning.config import SETTINGS_FILE, Settings
from provisioning.errors import ConfigurationError
from provisioning.pki.identity import Identity, InvalidIdentity, Role
from provisioning.pki.keys import KeyFileError, PrivateKey, generate_key, key_to_pem, load_key, write_private
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store import certificates, devices, schema, serials
from provisioning.store.counters import Counter
from provisioning.store.database import Database
from provisioning.store.serials import SerialNumbers

ROOT_CA: Final = "root-ca"
ISSUING_CA: Final = "issuing-ca"
OPERATOR_NAME: Final = "admin"
SERVER_NAME: Final = "provisioning"
DEFAULT_SERVER_NAMES: Final = ("localhost", "127.0.0.1", "::1")

_ROOT_CRL_LIFE: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class AuthorityFiles:
    """Where everything is."""

    directory: Path

    def certificate(self, name: str) -> Path:
        """Return the file of a certificate: a CA's own, the server's or operator's with the issuing CA's."""
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        """Return the file of the private key that belongs to `certificate`."""
        return self.directory / f"{name}.key"

    @property
    def bundle(self) -> Path:
        """What relying parties trust: root and issuing CA."""
        return self.directory / "ca-bundle.crt"


@dataclass(frozen=True, slots=True)
class OpenAuthority:
    """The issuing CA's key in memory, the certificates that others ask for, and how to reach the root's key."""

    files: AuthorityFiles
    root_certificate: x509.Certificate
    issuing_certificate: x509.Certificate
    issuing_key: PrivateKey
    passphrase: bytes

    def issuer(self, public_http_url: str) -> Issuer:
        """Return the issuer, whose certificates point at *public_http_url* for CRL and CA certificate."""
        return Issuer(self.issuing_certificate, self.issuing_key, urls_of(public_http_url, ISSUING_CA))

    def crl_plans(self, settings: Settings) -> dict[str, CrlPlan]:
        """Return how each CA's CRL is published."""
        return {
            ISSUING_CA: _issuing_crl_plan(settings, CrlIssuer(self.issuing_certificate, self.issuing_key)),
            ROOT_CA: _root_crl_plan(settings, self._open_root),
        }

    def _open_root(self) -> CrlIssuer:
        try:
            key = load_key(self.files.key(ROOT_CA), self.passphrase)
        except KeyFileError as error:
            raise ConfigurationError(f"the root CA's CRL is due and its key is needed: {error}") from error
        return CrlIssuer(self.root_certificate, key)


def urls_of(public_http_url: str, issuer: str) -> IssuerUrls:
    """Return where *issuer*'s CRL and certificate are served."""
    origin = public_http_url.rstrip("/")
    return IssuerUrls(f"{origin}/crl/{issuer}.crl", f"{origin}/ca/{issuer}.crt")


def profiles_of(settings: Settings) -> dict[ProfileName, Profile]:
    """Return every profile as configured; raise `ConfigurationError` naming the one that is wrong."""
    lives = {
        ProfileName.DEVICE: settings.device_life,
        ProfileName.BROKER: settings.broker_life,
        ProfileName.SERVICE: settings.service_life,
        ProfileName.OPERATOR: settings.operator_life,
        ProfileName.PROVISIONING: settings.provisioning_life,
    }
    try:
        return {name: profile_of(ProfileConfig(name, life)) for name, life in lives.items()}
    except InvalidProfile as error:
        raise ConfigurationError(f"configuration: {error}") from error


def open_authority(settings: Settings) -> OpenAuthority:
    """Read the authority in the settings' directory; raise `ConfigurationError` naming the file and the remedy."""
    files = AuthorityFiles(settings.directory)
    if not files.certificate(ISSUING_CA).exists():
        raise ConfigurationError(
            f"{files.directory} holds no certificate authority: run fleet-provisioning init --dir {files.directory}"
        )
    passphrase = settings.read_passphrase()
    try:
        key = load_key(files.key(ISSUING_CA), passphrase)
    except KeyFileError as error:
        raise ConfigurationError(str(error)) from error
    return OpenAuthority(
        files,
        _read_certificate(files.certificate(ROOT_CA)),
        _read_certificate(files.certificate(ISSUING_CA)),
        key,
        passphrase,
    )


async def found(settings: Settings, server_names: Sequence[str], clock: Callable[[], datetime]) -> AuthorityFiles:
    """Make the authority, the server's and the first operator's credentials, and the store.

    Raises `ConfigurationError` and leaves nothing behind if anything is in the way.
    """
    directory = settings.directory.absolute()
    passphrase = settings.read_passphrase()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(
            f"{directory} exists and is not empty: choose another --dir, nothing is ever overwritten"
        )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))  # Mode 0700.
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be made: {error.strerror}") from error
    try:
        await _furnish(settings.model_copy(update={"directory": workshop}), passphrase, server_names, clock)
        workshop.rename(directory)  # noqa: ASYNC240 - one system call, and nobody else is on this loop
    except (OSError, KeyFileError, InvalidIdentity, InvalidServerName) as error:
        raise ConfigurationError(f"{directory} cannot be made: {error}") from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return AuthorityFiles(directory)


async def _furnish(
    settings: Settings, passphrase: bytes, server_names: Sequence[str], clock: Callable[[], datetime]
) -> None:
    files = AuthorityFiles(settings.directory)
    now = clock()
    public_url = None if settings.public_http_url is None else str(settings.public_http_url)
    Identity(settings.trust_domain, Role.OPERATOR, OPERATOR_NAME)  # Refuse a wrong trust domain first.
    authority = found_authority(
        settings.trust_domain,
        now,
        (serials.new_serial(), serials.new_serial()),
        None if public_url is None else urls_of(public_url, ROOT_CA),
    )
    _write_authority(files, authority, passphrase)
    _write_settings(files, settings, public_url)
    issuing = authority.issuing_ca
    urls = None if public_url is None else urls_of(public_url, ISSUING_CA)
    credentials = _Credentials(files, Issuer(issuing.certificate, issuing.key, urls), settings, clock)
    if settings.database_url is None:
        write_private(settings.directory / "fleet.db", b"")  # So that SQLite does not choose the mode.
    database = Database(settings.resolved_database_url)
    try:
        await schema.upgrade(database)
        await credentials.issue_all(database, server_names)
        for plan in (
            _issuing_crl_plan(settings, CrlIssuer(issuing.certificate, issuing.key)),
            _root_crl_plan(settings, lambda: CrlIssuer(authority.root_ca.certificate, authority.root_ca.key)),
        ):
            await CrlPublisher(database, plan, clock).start()
    finally:
        await database.close()


class _Credentials:
    """The server's and the first operator's certificates: issued like everybody's, only that no token asks for them."""

    def __init__(
        self, files: AuthorityFiles, issuer: Issuer, settings: Settings, clock: Callable[[], datetime]
    ) -> None:
        self._files = files
        self._issuer = issuer
        self._settings = settings
        self._clock = clock

    async def issue_all(self, database: Database, server_names: Sequence[str]) -> None:
        numbers = SerialNumbers(database)
        domain = self._settings.trust_domain
        dns_names, addresses = _split_names(server_names)
        server = Identity(domain, Role.SERVICE, SERVER_NAME)
        await self._issue(database, numbers, "server", ProfileName.PROVISIONING, server, dns_names, addresses)
        operator = Identity(domain, Role.OPERATOR, OPERATOR_NAME)
        await self._issue(database, numbers, "operator", ProfileName.OPERATOR, operator)
        await numbers.release()

    async def _issue(
        self,
        database: Database,
        numbers: SerialNumbers,
        file_name: str,
        profile: ProfileName,
        identity: Identity,
        dns_names: tuple[str, ...] = (),
        addresses: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...] = (),
    ) -> None:
        now = self._clock()
        key = generate_key()
        serial = await numbers.take(now)
        prepared = self._issuer.prepare(
            profiles_of(self._settings)[profile],
            IssuanceRequest(identity, key.public_key(), serial, now, dns_names, addresses),
        )
        certificate = self._issuer.issue(prepared)
        async with database.write() as connection:
            device = await devices.add(connection, identity.name, identity.role, identity.group, now)
            await serials.use(connection, serial)
            await certificates.add(connection, certificate, device.id, now)
        write_private(self._files.key(file_name), key_to_pem(key))
        self._files.certificate(file_name).write_bytes(_pem(certificate, self._issuer.certificate))


def _issuing_crl_plan(settings: Settings, issuer: CrlIssuer) -> CrlPlan:
    return CrlPlan(ISSUING_CA, Counter.CRL_ISSUING_CA, settings.crl_life, settings.crl_debounce_seconds, lambda: issuer)


def _root_crl_plan(settings: Settings, open_issuer: Callable[[], CrlIssuer]) -> CrlPlan:
    return CrlPlan(ROOT_CA, Counter.CRL_ROOT_CA, _ROOT_CRL_LIFE, settings.crl_debounce_seconds, open_issuer)


def _write_authority(files: AuthorityFiles, authority: Authority, passphrase: bytes) -> None:
    for name, ca in ((ROOT_CA, authority.root_ca), (ISSUING_CA, authority.issuing_ca)):
        write_private(files.key(name), key_to_pem(ca.key, passphrase))
        files.certificate(name).write_bytes(_pem(ca.certificate))
    files.bundle.write_bytes(_pem(authority.root_ca.certificate, authority.issuing_ca.certificate))


def _write_settings(files: AuthorityFiles, settings: Settings, public_url: str | None) -> None:
    lines = [
        "# Settings of fleet-provisioning; flags and FLEET_PROVISIONING_* in the environment come first.",
        f'trust_domain = "{settings.trust_domain}"',
    ]
    if public_url is not None:
        lines.append(f'public_http_url = "{public_url}"')
    (files.directory / SETTINGS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _split_names(
    names: Sequence[str],
) -> tuple[tuple[str, ...], tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]]:
    dns_names: list[str] = []
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for name in dict.fromkeys(names):
        try:
            addresses.append(ipaddress.ip_address(name))
        except ValueError:
            dns_names.append(check_host_name(name.lower()))
    return tuple(dns_names), tuple(addresses)


def _pem(*certificates_: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates_)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a PEM certificate") from error
