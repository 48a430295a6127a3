"""The service's own certificates: its HTTPS server's, which it renews itself, and the first operator's.

Theory
------
They are issued like all others, by the same issuer and into the same store, but without a token. The
server's credential is two files that cannot be replaced in one step, so a crash can leave a new key beside an old
certificate; `renew_server` treats a mismatched pair as due for renewal, so the next start repairs it. Other
processes that read the directory wait while the two are replaced (`AuthorityFiles.held`). A file that is lost,
or holds no certificate of this server, is replaced too: the new one has the names of the last that the store knows.

Rules
-----
1. A certificate is recorded before it is written: the store knows every certificate that exists.
2. A key is first written under another name, with mode 0600, so a file is always complete.
3. Nothing is signed, or recorded and written, in the name of a CA that another host has revoked or retired meanwhile:
   whatever a revoked one has issued is listed once (`provisioning.revocation.of_authority`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.ca.issuer import IssuanceRefused, IssuanceRequest, Issuer
from provisioning.ca.name_policy import addresses_of
from provisioning.ca.profile import Profile, ProfileName
from provisioning.ca.server_names import InvalidServerName, IpAddress, split_names
from provisioning.config import ENVIRONMENT_PREFIX, SETTINGS_FILE, Settings
from provisioning.directory.files import OPERATOR, SERVER, AuthorityFiles, read_certificate
from provisioning.enrolment.operator_roles import change_operator_role
from provisioning.errors import ConfigurationError, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import PROVISIONING, Identity, InvalidIdentity, identity_of
from provisioning.pki.keys import KeyFileError, generate_key, key_to_pem, load_key, spki_fingerprint, write_draft
from provisioning.pki.pem import pem_of
from provisioning.pki.revocation import certificate_key
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.program.durable_names import replace_by, sync_names
from provisioning.program.given_file import PEM_BYTES, contents_of
from provisioning.store import audit, authorities, certificates, device_keys, devices, host_names, serials
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.serials import SerialNumbers

OPERATOR_NAME: Final = "admin"
SERVER_NAME: Final = PROVISIONING
DEFAULT_SERVER_NAMES: Final = ("localhost", "127.0.0.1", "::1")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OwnCredentials:
    """Issues the service's own credentials into its directory."""

    files: AuthorityFiles
    issuer: Issuer
    database: Database
    serial_numbers: SerialNumbers
    profiles: Mapping[str, Profile]
    trust_domain: str
    clock: Callable[[], datetime]
    chain: Sequence[x509.Certificate] = ()
    """In addition to the issuer's own: the certificates between roots."""
    server_names: Sequence[str] = ()
    """Names for the server's certificate, which is renewed at once if it has others; empty: it keeps its names."""

    async def issue_first(self, server_names: Sequence[str]) -> None:
        """Issue the server's and the first operator's; raise `InvalidServerName` for an invalid name."""
        await self._issue_server(*split_names(server_names))
        await self.issue_operator()

    async def issue_operator(self, name: str = OPERATOR_NAME, *, as_admin: bool = True) -> None:
        """Issue the operator's in this directory; *as_admin*, or with the operator's present role."""
        operator = Identity(self.trust_domain, Role.OPERATOR, name)
        await self._issue(OPERATOR, ProfileName.OPERATOR, operator)
        if not as_admin:
            return
        now = self.clock()

        def grant(connection: Connection) -> None:
            change_operator_role(connection, name, OperatorRole.ADMIN, by=SERVER_NAME, now=now)

        await self.database.write(grant)

    async def renew_server(self) -> bool:
        """Renew the server's credential if it is due, revoked or unknown; return whether it was."""
        path = self.files.certificate(SERVER)
        current = self._held()
        if current is not None and self.seconds_to_renewal() > 0 and await self._is_good(current):
            return False
        await self._issue_server(*await self._names_after(current))
        if current is None:
            log.warning("server certificate was lost: there is a new one", code="RENEWED", file=str(path))
        else:
            log.info(
                "server certificate renewed", code="RENEWED", file=str(path), was_good_until=current.not_valid_after_utc
            )
        return True

    async def _names_after(self, current: x509.Certificate | None) -> tuple[tuple[str, ...], tuple[IpAddress, ...]]:
        """Return the names for the next: as configured, those of *current*, or of the last one if that is not ours."""
        if current is None or not _is_of_server(current):
            current = await self._last()
        if self.server_names:
            return split_names(self.server_names)
        if current is None:
            raise ConfigurationError(
                f"{self.files.certificate(SERVER)} is missing or not the server's, and the database knows no earlier "
                f"one: restore it from the backup, or set server_names in {self.files.directory / SETTINGS_FILE}, for "
                "a new one with these names"
            )
        return names_of(current)

    async def _is_good(self, certificate: x509.Certificate) -> bool:
        """Whether *certificate* is known, and neither revoked nor on hold: otherwise clients refuse it.

        It is unknown if an older copy of the store was restored.
        """
        key = certificate_key(certificate)
        try:
            stored = await self.database.read(lambda connection: certificates.find(connection, *key))
        except Refused:  # The store cannot be read now: retry soon.
            return True
        return stored is not None and stored.revocation is None and stored.ended_above is None

    def seconds_to_renewal(self) -> float:
        """Return how long the server's credential has until a third of its life is left; 0 if it does not fit.

        It fits if the key matches the certificate, the certificate is this issuer's and has the required names, and it
        is already valid, which it is not if the clock was set back. One that expires with its issuer is not renewed:
        the next would expire no later.
        """
        current = self._held()
        if current is None or not self._fits(current) or self.clock() < current.not_valid_before_utc:
            return 0.0
        if current.not_valid_after_utc >= self.issuer.certificate.not_valid_after_utc:
            return math.inf
        profile = self.profiles[ProfileName.PROVISIONING]
        issued = current.not_valid_before_utc + profile.backdate
        life = min(current.not_valid_after_utc - issued, profile.life)
        return max(0.0, (current.not_valid_after_utc - life / 3 - self.clock()).total_seconds())

    def _held(self) -> x509.Certificate | None:
        """Return the server's certificate, None if its file is missing or holds none.

        Raises `ConfigurationError` if the file cannot be read: what is there may be good.
        """
        path = self.files.certificate(SERVER)
        try:
            content = contents_of(path, PEM_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be read: {error.strerror}; give it back to the service's user, or remove it: the "
                "service then issues itself another"
            ) from error
        try:
            return x509.load_pem_x509_certificate(content)
        except UNREADABLE:
            return None

    async def _last(self) -> x509.Certificate | None:
        """Return the server's last certificate in the store; raise `ConfigurationError` if it is of another domain."""

        def last(connection: Connection) -> x509.Certificate | None:
            server = devices.find(connection, SERVER_NAME)
            held = [] if server is None else certificates.of_devices_or_with_serials(connection, [server.id], [])
            for each in reversed(held):  # Those that sign OCSP responses have no identity.
                found = certificates.find_serial(connection, each.serial)
                if found is not None and _is_of_server(certificate := x509.load_der_x509_certificate(found[1])):
                    return certificate
            return None

        certificate = await self.database.read(last)
        if certificate is None:
            return None
        domain = identity_of(certificate).trust_domain
        if domain != self.trust_domain:  # `check_trust_domain_kept` had no certificate to compare with.
            raise ConfigurationError(_of_another_domain(self.trust_domain, self.files, domain))
        return certificate

    def _fits(self, certificate: x509.Certificate) -> bool:
        if certificate_key(certificate)[0] != self.issuer.key_id:
            return False
        if self.server_names:
            pairs = zip(split_names(self.server_names), names_of(certificate), strict=True)
            if any(set(wanted) != set(held) for wanted, held in pairs):
                return False
        try:
            return load_key(self.files.key(SERVER)).public_key() == certificate.public_key()
        except KeyFileError:
            return False

    async def _issue_server(self, dns_names: tuple[str, ...], addresses: tuple[IpAddress, ...]) -> None:
        server = Identity(self.trust_domain, Role.SERVICE, SERVER_NAME)
        await self._issue(SERVER, ProfileName.PROVISIONING, server, dns_names, addresses)

    async def _issue(
        self,
        file_name: str,
        profile: ProfileName,
        identity: Identity,
        dns_names: tuple[str, ...] = (),
        addresses: tuple[IpAddress, ...] = (),
    ) -> None:
        now = self.clock()
        key = generate_key()
        async with self.serial_numbers.reservation(now) as reservation:
            request = IssuanceRequest(identity, key.public_key(), reservation.serial, now, dns_names, addresses)
            prepared = self.issuer.prepare(self.profiles[profile], request)
            facts: dict[str, object] = {"serial": serial_text(reservation.serial), "role": identity.role.value}

            def announce(connection: Connection) -> None:
                self._check_may_sign(connection)
                audit.append(connection, now, SERVER_NAME, Action.SIGNING_CERTIFICATE, identity.name, facts)

            await self.database.write(announce)
            reservation.burnt = True
            # A token may take its time, or not answer: not on the event loop.
            certificate = await asyncio.to_thread(self.issuer.issue, prepared)

        def record(connection: Connection) -> None:
            self._check_may_sign(connection)
            device = devices.find(connection, identity.name, for_update=True)
            if device is None:
                device = devices.add(connection, identity.name, identity.role, identity.group, now)
            serials.use(connection, certificate.serial_number)
            certificates.add(connection, certificates.issued(certificate), device.id, now)
            device_keys.claim(connection, spki_fingerprint(certificate.public_key()), device.id)
            for name in dns_names:  # No device may be given one: it could pose as the service.
                other = host_names.keep_from_devices(connection, name, device.id, now)
                if other is not None:
                    log.warning(
                        "a device has this server's host name",
                        code="HOST_NAME_TAKEN",
                        host_name=name,
                        device=other.name,
                    )
            signed = facts | {"not_after": certificate.not_valid_after_utc}
            audit.append(connection, now, SERVER_NAME, Action.CERTIFICATE_SIGNED, identity.name, signed)

        await self.database.write(record)
        chain = pem_of(certificate, self.issuer.certificate, *self.chain)
        pair = {self.files.key(file_name): key_to_pem(key), self.files.certificate(file_name): chain}
        with _drafts(pair) as drafts:
            with self.files.held(to_change=True):
                for path, draft in drafts.items():
                    draft.rename(path)
            sync_names(self.files.directory)

    def _check_may_sign(self, connection: Connection) -> None:
        """Raise `IssuanceRefused` if the issuer has ended. One that is being founded is not in the store yet."""
        if authorities.knows(connection, self.issuer.key_id) and not authorities.may_sign(
            connection, self.issuer.key_id
        ):
            raise IssuanceRefused("the CA that was to issue it has been revoked or retired meanwhile: try again")


def server_names_of(settings: Settings) -> tuple[str, ...]:
    """Return the configured names of the HTTPS server's certificate; raise `ConfigurationError` for an invalid one.

    Empty: they stay as they are.
    """
    try:
        split_names(settings.server_names)
    except InvalidServerName as error:
        raise ConfigurationError(f"configuration: server_names: {error}, and no IP address") from error
    return settings.server_names


def check_trust_domain_kept(settings: Settings, files: AuthorityFiles) -> None:
    """Raise `ConfigurationError` if the settings' trust domain differs from that of the service's own certificate.

    Enrolled clients would take it for another fleet's (`provisioning.client.genuine_server`).
    """
    try:
        held = identity_of(read_certificate(files.certificate(SERVER))).trust_domain
    except (ConfigurationError, InvalidIdentity, *UNREADABLE):
        return  # Whoever needs the certificate says what is wrong with it.
    if held != settings.trust_domain:
        raise ConfigurationError(_of_another_domain(settings.trust_domain, files, held))


def _of_another_domain(configured: str, files: AuthorityFiles, held: str) -> str:
    variable = f"{ENVIRONMENT_PREFIX}TRUST_DOMAIN"
    unset = f", and unset {variable}, which comes before it" if variable in os.environ else ""
    return (
        f"trust_domain is {configured}, and {files.certificate(SERVER)} is of {held}, as are the "
        f'clients\' certificates, which renew with no other: put trust_domain = "{held}" back into '
        f"{files.directory / SETTINGS_FILE}{unset}"
    )


def _is_of_server(certificate: x509.Certificate) -> bool:
    try:
        identity = identity_of(certificate)
    except (InvalidIdentity, *UNREADABLE):
        return False
    return (identity.role, identity.name) == (Role.SERVICE, SERVER_NAME)


def names_of(certificate: x509.Certificate) -> tuple[tuple[str, ...], tuple[IpAddress, ...]]:
    """Return the host names and the addresses in *certificate*."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(names.get_values_for_type(x509.DNSName)), addresses_of(names)


def replace_file(path: Path, content: bytes) -> None:
    """Replace the file at *path* by one with *content*, in one step; return when that is on disk.

    Raises `ConfigurationError` naming the file.
    """
    with _drafts({path: content}) as drafts:
        replace_by(drafts[path], path)


@contextlib.contextmanager
def _drafts(contents: Mapping[Path, bytes]) -> Iterator[Mapping[Path, Path]]:
    """Write drafts of these files, for the block to rename; if anything fails, none is left, since one may be a key."""
    # A command and a service may write the same file: each has its own draft, and the last one wins.
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}.new") for path in contents}
    try:
        for path, draft in drafts.items():
            write_draft(draft, contents[path])
        yield drafts
    except OSError as error:
        names = " or ".join(map(str, contents))
        raise ConfigurationError(f"{names} cannot be written: {error.strerror}") from error
    finally:
        for draft in drafts.values():
            with contextlib.suppress(OSError):  # It is not there: it was not written, or has its name by now.
                draft.unlink()
