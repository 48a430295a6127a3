"""The HTTPS server's credential while the service runs: renewed in time, and used for new connections.

Theory
------
`OwnCredentials` issues and writes it; this module decides when, and what the listener presents. The listener has one
`RenewableContext` for its life; a renewed certificate or a changed set of CAs makes a new context, which is put there.
Open connections keep theirs: none is disconnected.

Rules
-----
1. It is renewed when a third of its life is left, when another CA becomes the active one, and within
   `_LONGEST_WAIT_SECONDS` after it was revoked, or the store no longer knows it: its clients refuse such a certificate.
2. A failed renewal is logged and retried; the service continues with its present certificate. So it does while its
   files cannot be read: a disk that fails for a moment, or no descriptor left, ends no service.
3. Clients that ask get an OCSP staple with it, a few minutes old at most: devices, brokers and operators' tools check
   it (`provisioning.client.genuine_server`). If there is no new one, that is logged once.
4. Of several workers on one directory one *keeps* its files; the others present what they find there.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.authorities.own_credentials import OwnCredentials, replace_file
from provisioning.ca.issuer import IssuanceRefused, Issuer
from provisioning.ca.key_envelope import EnvelopeSigner
from provisioning.ca.ocsp import OcspRefused
from provisioning.directory.files import SERVER, AuthorityFiles
from provisioning.errors import ConfigurationError, Refused
from provisioning.pki.keys import KeyFileError, load_key
from provisioning.pki.ocsp import ask
from provisioning.pki.pem import pem_of
from provisioning.pki.renewable_context import RenewableContext
from provisioning.pki.stapling import staple
from provisioning.pki.tls import ClientCertificate, CredentialFiles, TlsConfigurationError, server_context
from provisioning.revocation.ocsp import OcspAnswer

log = structlog.get_logger(__name__)

_LONGEST_WAIT_SECONDS: Final = 15.0  # Look at the wall clock now and then: it may be set.
_SHORTEST_WAIT_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 15.0


class HttpsCredential:
    """What the HTTPS listener presents, and whose certificates it accepts."""

    def __init__(
        self,
        files: AuthorityFiles,
        credentials_for: Callable[[Issuer], OwnCredentials],
        answer: Callable[[bytes], Awaitable[OcspAnswer]],
        *,
        keeps: bool = True,
    ) -> None:
        """*credentials_for* returns credentials issued by the given CA; *answer* is the OCSP responder's method."""
        self._answer = answer
        self._staple: tuple[bytes, float] = (b"", 0.0)
        """The staple, and until when it is valid."""
        self._unproven = False
        """Whether the log was told that there is no new one."""
        self._files = files
        self._keeps = keeps
        self._credentials_for = credentials_for
        self._credentials: OwnCredentials | None = None
        self._anchors: Sequence[x509.Certificate] = ()
        self._bundle_is_behind = False
        """Whether they could not be written to the bundle."""
        self._foreign: Sequence[bytes] = ()
        self._shown = b""
        self._context: RenewableContext | None = None

    @property
    def context(self) -> RenewableContext:
        """The listener's context, with the directory's credential if no CA is here to issue another.

        Raises `ConfigurationError` if that cannot be used either.
        """
        return self._context or self._show()

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate for new connections, once there is a `context`."""
        return x509.load_pem_x509_certificate(self._shown)

    def trust(self, anchors: Sequence[x509.Certificate]) -> None:
        """Accept the certificates of these CAs from now on, and write them to the bundle.

        While it serves, the bundle is written later if it cannot be now (`run`): trust does not wait for a disk.
        """
        self._anchors = anchors
        if self._context is None:
            self._write_bundle()
        else:
            self._show()
            self._keep_bundle()

    def _write_bundle(self) -> None:
        bundle = pem_of(*self._anchors)
        if self._keeps and not _holds(self._files.bundle, bundle):
            replace_file(self._files.bundle, bundle)
        self._bundle_is_behind = False

    def _keep_bundle(self) -> None:
        try:
            self._write_bundle()
        except (ConfigurationError, OSError) as error:
            self._bundle_is_behind = True
            log.error("bundle of the CAs not written", code="BUNDLE_NOT_WRITTEN", detail=str(error))

    def let_through(self, anchors: Sequence[bytes]) -> None:
        """Let certificates of these CAs (DER) through TLS too: `provisioning.enrolment.enrolment_trust` says why."""
        self._foreign = anchors
        if self._context is not None:
            self._show()

    async def issue_with(self, issuer: Issuer) -> None:
        """Have the credential issued by *issuer* from now on; renew it if it is due or another CA's.

        An expired issuer certifies nothing: the present credential is then used, and checked again later.
        """
        self._credentials = self._credentials_for(issuer)
        try:
            await self.check()
        except IssuanceRefused as refusal:
            log.error("server certificate not renewed", code="RENEWAL_FAILED", detail=str(refusal))

    async def check(self) -> bool:
        """Renew the credential if it is due and use it for new connections; return whether it was due.

        A credential that another process has renewed in the same directory is used too.
        """
        if self._credentials is None:
            return False
        renewed = self._keeps and await self._credentials.renew_server()
        if renewed or not _holds(self._files.certificate(SERVER), self._shown):
            self._show()
            await self.staple()
        return renewed

    async def staple(self) -> None:
        """Staple the current OCSP response for the certificate. If there is none, keep the previous one."""
        if self._context is None:
            return
        shown = self._shown
        own, *above = x509.load_pem_x509_certificates(shown)
        if not above:
            return
        try:
            answer = await self._answer(ask(own.serial_number, above[0], nonce=False).der)
        except (OcspRefused, Refused) as error:  # The CA's key, or the store, is unavailable for now.
            if not self._unproven:
                self._unproven = True
                log.error(
                    "no proof that the server certificate is not revoked", code="STAPLE_FAILED", detail=str(error)
                )
            return
        if self._unproven:
            self._unproven = False
            log.info("proof again that the server certificate is not revoked", code="STAPLED")
        if shown == self._shown:
            self._staple = answer.der, answer.next_update.timestamp()
            staple(self._context.current, *self._staple)

    def signer(self) -> EnvelopeSigner:
        """Return what signs keys that the service makes for devices; reads the files. Raise `ConfigurationError`."""
        try:
            with self._files.held(to_change=False):
                key, chain = load_key(self._files.key(SERVER)), _content_of(self._files.certificate(SERVER))
        except (KeyFileError, OSError) as error:
            raise ConfigurationError(str(error)) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigurationError(
                f"{self._files.key(SERVER)} is not an EC key, the kind that this service makes: let "
                "the service renew it"
            )
        return EnvelopeSigner(key, x509.load_pem_x509_certificates(chain))

    async def run(self) -> None:
        """Renew when it is time, and write the bundle if that has failed, until cancelled."""
        while True:
            credentials = self._credentials
            try:
                wait = credentials.seconds_to_renewal() if self._keeps and credentials else _LONGEST_WAIT_SECONDS
                await asyncio.sleep(min(max(wait, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS))
                if self._bundle_is_behind:  # Else it may be ahead: a command writes it with what it has changed.
                    self._keep_bundle()
                await self.check()
                await self.staple()
            except (Refused, IssuanceRefused, ConfigurationError, KeyFileError, OSError) as error:
                log.error("server certificate not renewed", code="RENEWAL_FAILED", detail=str(error))
                await asyncio.sleep(_RETRY_SECONDS)

    def _show(self) -> RenewableContext:
        credential = CredentialFiles(self._files.certificate(SERVER), self._files.key(SERVER))
        try:
            with self._files.held(to_change=False):
                shown = _content_of(credential.certificate)
                context = server_context(
                    credential,
                    pem_of(*self._anchors).decode() + "".join(map(ssl.DER_cert_to_PEM_cert, self._foreign)),
                    client_certificate=ClientCertificate.OPTIONAL,
                    allow_tls12=True,
                    caller_checks_dates=True,  # `provisioning.enrolment.enrolment_trust` says why.
                    resumes=False,
                )
        except (TlsConfigurationError, OSError) as error:
            raise ConfigurationError(str(error)) from error
        if shown == self._shown:
            staple(context, *self._staple)
        else:
            self._shown, self._staple = shown, (b"", 0.0)
        if self._context is None:
            self._context = RenewableContext(context)
        else:
            self._context.replace(context)
        return self._context


def _content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # That of a read has no name in it.
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _holds(path: Path, content: bytes) -> bool:
    """Whether the file at *path* can be read, and is *content*."""
    try:
        return path.read_bytes() == content
    except OSError:
        return False
