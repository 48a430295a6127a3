"""The broker's own certificate: enrolled at the first start, renewed before it expires, without dropping a connection.

Theory
------
With a provisioning service the broker is a client like any device: a one-time token buys the first certificate; each
renewal is authenticated by the present certificate and uses a new key. Key, certificate and chain are in one file that
is replaced by a rename, so that a crash leaves either the old credential or the new one, whole. The new one is on disk
before anybody is told of it: the token that bought it is spent.

Rules
-----
1. The private key never leaves this file; mode 0600.
2. Renewal begins at two thirds of the certificate's lifetime, and is retried with growing pauses until it succeeds. A
   pause is at most a tenth of the time left, so a service that returns before the expiry is asked before it. If a
   certificate is so short-lived, and backdated so far, that this time had passed when it arrived, it is renewed at two
   thirds of the time it had left: its successor is just as short, and would otherwise be renewed at once, endlessly.
3. An existing valid certificate is used: a token is spent only if there is no usable certificate, or the service says
   that it is revoked or expired, or its TLS that no CA above it is trusted, and if a new one could be stored. A revoked
   broker gets in again only with a token created after the revocation; the service enforces that.
4. A server whose certificate, or a CA's above it, is known to be revoked is sent nothing, neither a token nor a
   request: whoever has that CA's key can sign any proof that the client library asks for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from broker.credentials.own_certificate import CredentialError, read_certificate, token_options
from broker.timing.growing_pause import GrowingPause
from provisioning.client.connection import UNKNOWN_CA
from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable, EstClient
from provisioning.client.genuine_server import Refuse
from provisioning.errors import Code
from provisioning.pki.identity import InvalidIdentity, identity_of
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import generate_key, key_to_pem, write_draft
from provisioning.pki.path_to_send import path_to_send
from provisioning.pki.pem import pem_of
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.pki.tls import CredentialFiles, TlsConfigurationError
from provisioning.program.durable_names import make_folder, replace_by
from provisioning.program.moments import shown_minute
from provisioning.program.spread import spread

log = structlog.get_logger("broker")

_RENEW_AT = 2 / 3
_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 300.0
_SHARE_OF_LEFT = 0.1
_LOOK_SECONDS = 60.0
_ROOM = 64 * 1024
"""The most bytes that a key, a certificate and its chain take."""
_MISSING = "does not exist"

_REFUSED_FOR: Final[Mapping[str, tuple[str, str]]] = {
    Code.CERTIFICATE_REVOKED: ("the broker's own certificate is revoked", "OWN_CERTIFICATE_REVOKED"),
    UNKNOWN_CA: ("provisioning trusts no CA above the broker's own certificate", "OWN_CERTIFICATE_REVOKED"),
    Code.CERTIFICATE_EXPIRED: ("clients will not trust the broker", "OWN_CERTIFICATE_DATES"),
}
"""Reasons for which the service refuses a certificate that a token then replaces: the alarm and its code.

A root that was retired at once, because its key was stolen, is trusted no longer: TLS itself refuses what is under it.
"""

_ENROLMENT_ERRORS = (EnrolmentRefused, EnrolmentUnavailable, InvalidIdentity, CredentialError)
_RENEWAL_ERRORS = (*_ENROLMENT_ERRORS, TlsConfigurationError)


class NoRoomError(CredentialError):
    """A certificate could not be stored, so none was requested: the token is unspent."""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Where the broker enrols, and under which name."""

    url: str
    anchors: Path
    name: str
    token: str | None
    trust_domain: str | None = None
    """The trust domain of the service that may issue its first certificate; None: any that the anchors vouch for."""


def renewal_due(certificate: x509.Certificate, obtained: datetime | None) -> datetime:
    """Return when to renew *certificate*, which arrived at *obtained* (None: long ago), by rule 2."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    due = begin + (end - begin) * _RENEW_AT
    return due if obtained is None or obtained < due else obtained + (end - obtained) * _RENEW_AT


class BrokerCredential:
    """The credential file in the state directory, kept valid."""

    def __init__(self, state_dir: Path, enrolment: Enrolment, refuse: Refuse = lambda _path: None) -> None:
        """*refuse* tells what is known against the server of a path (`broker.revocation.revoked_services`)."""
        self._enrolment = enrolment
        self._refuse = refuse
        self._path = state_dir / "broker.pem"
        self._draft = self._path.with_suffix(".new")
        self._obtained: datetime | None = None
        """When the present certificate arrived; None: before this process began."""
        self._of_no_use: str | None = None
        """A token that was spent or refused: it is not used again."""
        self._told_no_room = ""
        """The last reason reported for not using one."""
        self._told_ended: x509.Certificate | None = None
        """The certificate whose expiry has been reported."""

    @property
    def files(self) -> CredentialFiles:
        """The files for TLS contexts."""
        return CredentialFiles(self._path, self._path)

    @property
    def _token_command(self) -> str:
        """Makes a token for a certificate with the names of the last one: by those clients come."""
        held = self.certificate()
        options = (token_options(held) if held is not None else "") or "--dns-name localhost"
        return f"fleet-provisioning token create --role broker --device {self._enrolment.name} {options}"

    def certificate(self) -> x509.Certificate | None:
        """Return the present certificate, or None if none can be read."""
        return read_certificate(self._path)

    async def ensure(self) -> None:
        """Ensure a valid credential, enrolling with the token if necessary. Raises `CredentialError`."""
        certificate = self.certificate()
        now = datetime.now(UTC)
        if certificate is not None and certificate.not_valid_after_utc > now:
            return
        token = self._enrolment.token
        what = _why_of_no_use(self._path, certificate, now)
        if token is None:
            raise CredentialError(
                f"the broker's certificate {self._path} {what}: give --token or --token-file ({self._token_command})"
            )
        try:
            await self._enrol(token)
        except (EnrolmentRefused, EnrolmentUnavailable, InvalidIdentity) as error:
            former = "" if what == _MISSING else f"the broker's certificate {self._path} {what}; "
            raise CredentialError(
                f"{former}the broker could not enrol at {self._enrolment.url}: {error}{_remedy(error)}"
            ) from error

    @staticmethod
    def is_replaced(refusal: str) -> bool:
        """Whether a certificate that the service refuses with this code is replaced by means of a token."""
        return refusal in _REFUSED_FOR

    async def replace(self, refusal: str, token: str | None) -> bool:
        """Enrol with *token* to replace a certificate with that *refusal*; return whether there is a new one."""
        if token is None or token == self._of_no_use:
            return False
        try:
            await self._enrol(token)
        except NoRoomError as error:  # It is retried at the next refusal.
            if str(error) != self._told_no_room:
                self._told_no_room = str(error)
                self._alarm(refusal, str(error), "make it writable: the token is unspent, and is used then")
            return False
        except _ENROLMENT_ERRORS as error:
            if isinstance(error, EnrolmentUnavailable) and token != self._of_no_use:
                return False  # So is this, unless the service went away when the token was spent already.
            self._of_no_use = token
            self._alarm(refusal, str(error), self._put_token("another"))
            return False
        self._told_no_room = ""
        return True

    @staticmethod
    def _alarm(refusal: str, detail: str, remedy: str) -> None:
        alarm, code = _REFUSED_FOR[refusal]
        log.error(alarm, code=code, detail=detail, remedy=remedy)

    def _put_token(self, which: str) -> str:
        return f"put {which} token into token_file ({self._token_command})"

    def _tell_end(self) -> None:
        """Report once that the present certificate has expired, if it has."""
        certificate, now = self.certificate(), datetime.now(UTC)
        if certificate is None or now < certificate.not_valid_after_utc or certificate == self._told_ended:
            return
        self._told_ended = certificate
        detail = f"the broker's certificate {self._path} {_why_of_no_use(self._path, certificate, now)}"
        self._alarm(Code.CERTIFICATE_EXPIRED, detail, self._put_token("a"))

    async def _enrol(self, token: str) -> None:
        """Spend *token*. Raises `NoRoomError` if nothing was requested.

        Also `EnrolmentRefused`, `EnrolmentUnavailable`, `InvalidIdentity` or `CredentialError`.
        """
        self._make_room()
        asked = self._enrolment
        async with EstClient(asked.url, asked.anchors, trust_domain=asked.trust_domain, refuse=self._refuse) as client:
            key = generate_key()
            chain = await client.ca_certificates()  # First: it may fail while the token is still unspent.
            certificate = await client.enrol(
                build_csr(key, self._enrolment.name), user=self._enrolment.name, token=token
            )
            self._of_no_use = token
            identity = identity_of(certificate)
            chain = await _current(chain, certificate, client)
        if identity.role is not Role.BROKER:  # Neither clients nor the feed would accept it as a broker's.
            raise CredentialError(
                f"the enrolment token was for role {identity.role} and has now been used: ask for one with role broker "
                f"({self._token_command})"
            )
        self._store(key_to_pem(key), certificate, chain)
        log.info("enrolled", code="ENROLLED", identity=identity.uri, serial=serial_text(certificate.serial_number))

    async def renew(self) -> None:
        """Replace key and certificate; on failure keep the old ones.

        Raises `EnrolmentRefused`, `EnrolmentUnavailable` or `CredentialError`.
        """
        current = self.certificate()
        if current is None:
            raise EnrolmentUnavailable(f"{self._path} cannot be read")
        asked = self._enrolment
        self._make_room()
        async with EstClient(asked.url, asked.anchors, self.files, refuse=self._refuse) as client:
            key = generate_key()
            chain = await client.ca_certificates()
            certificate = await client.reenrol(build_csr(key, identity_of(current), like=current))
            chain = await _current(chain, certificate, client)
        if not any(is_issued_by(certificate, each) for each in chain):  # Clients would have no path to an anchor.
            raise EnrolmentUnavailable(
                f"none of the CAs of which {asked.url} sends the certificates has issued the new certificate"
            )
        self._store(key_to_pem(key), certificate, chain)
        log.info(
            "renewed",
            code="RENEWED",
            serial=serial_text(certificate.serial_number),
            not_after=str(certificate.not_valid_after_utc),
        )

    async def until_renewed(self) -> None:
        """Wait until renewal is due, then renew, however long that takes."""
        pauses = GrowingPause(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            await _sleep_until(self._due())  # A token may have bought a newer one meanwhile.
            try:
                await self.renew()
            except _RENEWAL_ERRORS as error:
                self._tell_end()
                pause = pauses.after_failure(self._longest_pause())
                log.warning("renewal failed", code="RENEWAL_FAILED", detail=str(error), retry_in=round(pause))
                await asyncio.sleep(pause * spread(0.5))
            else:
                return

    def _longest_pause(self) -> float:
        certificate = self.certificate()
        if certificate is None:
            return _LONGEST_PAUSE
        left = (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()
        return max(_FIRST_PAUSE, left * _SHARE_OF_LEFT) if left > 0 else _LONGEST_PAUSE

    def _due(self) -> datetime:
        certificate = self.certificate()
        if certificate is None:
            return datetime.now(UTC)
        return renewal_due(certificate, self._obtained)

    def _store(self, key_pem: bytes, certificate: x509.Certificate, chain: list[x509.Certificate]) -> None:
        path = [certificate, *path_to_send(certificate, chain, datetime.now(UTC))]
        content = key_pem + pem_of(*path)
        try:
            write_draft(self._draft, content)
            replace_by(self._draft, self._path)
            self._obtained = datetime.now(UTC)
        except OSError as error:
            raise CredentialError(
                f"{self._path} cannot be written: {error.strerror}; the new certificate is lost"
            ) from error

    def _make_room(self) -> None:
        """Check that a certificate could be stored, before one is requested. Raises `NoRoomError`."""
        try:
            make_folder(self._path.parent)
            write_draft(self._draft, bytes(_ROOM))
            self._draft.unlink()
        except OSError as error:
            raise NoRoomError(
                f"{self._path} cannot be written: {error.strerror}; no certificate was asked for"
            ) from error


async def _current(
    chain: list[x509.Certificate], certificate: x509.Certificate, client: EstClient
) -> list[x509.Certificate]:
    """Return *chain*, fetched again if *certificate* comes from a CA that has begun to issue since."""
    if any(is_issued_by(certificate, each) for each in chain):
        return chain
    return await client.ca_certificates()


async def _sleep_until(when: datetime) -> None:
    while (left := when - datetime.now(UTC)) > timedelta(0):  # noqa: ASYNC110 - the clock may be set while we sleep
        await asyncio.sleep(min(left.total_seconds(), _LOOK_SECONDS))


def _why_of_no_use(path: Path, certificate: x509.Certificate | None, now: datetime) -> str:
    """Return what is wrong with the file; raise `CredentialError` if it could not be replaced either."""
    if certificate is not None:
        ended = certificate.not_valid_after_utc
        return f"has expired on {ended:%Y-%m-%d} (the clock here says {shown_minute(now)})"
    try:
        path.read_bytes()
    except FileNotFoundError:
        return _MISSING
    except OSError as error:
        raise CredentialError(
            f"the broker's certificate {path} cannot be read: {error.strerror}; run the broker as the user who owns "
            "it, or give the file to the broker's user (chown)"
        ) from error
    return "is not a readable certificate"


def _remedy(error: Exception) -> str:
    """Return what an operator can do about *error*, if it does not say so itself."""
    match error:
        case EnrolmentRefused(code=Code.TOKEN_DEVICE):
            return "; --name, or name in the file of the settings, is the broker's"
        case EnrolmentUnavailable() if error.__cause__ is not None and "; " not in str(error):  # No meaningful answer.
            return "; is the service running (fleet-provisioning serve), and are --provisioning and --cafile right?"
        case _:
            return ""
