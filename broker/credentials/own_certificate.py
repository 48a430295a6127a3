"""The broker's own certificate file: reading and describing it. `broker.credentials.credentials` obtains it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from provisioning.pki.extension import UNREADABLE, extension
from provisioning.pki.identity import InvalidIdentity, identity_of
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialFiles, CredentialPem, TlsConfigurationError
from provisioning.program.given_file import PEM_BYTES, contents_of

log = structlog.get_logger()

OF_NO_USE: Final = frozenset({"expired", "not yet valid", "revoked", "on hold"})
"""Results of `OwnCertificate.state_at` for a certificate that clients do not accept."""


NAMELESS: Final = (
    "clients that look for the server's name in subjectAltName, as they should, refuse the broker; some also take the "
    "Common Name"
)
"""What follows if its certificate names no host."""
NAMELESS_REMEDY: Final = (
    "have it issued for the names by which clients come: as subjectAltName by your own CA, or with token create "
    "--role broker --dns-name"
)


class NotToday(TlsConfigurationError):
    """The certificate is not valid yet, or has expired, by the local clock; the text says when."""


class CredentialError(Exception):
    """The broker has no usable certificate and cannot get one; the text gives the reason and the remedy."""


def read_certificate(path: Path) -> x509.Certificate | None:
    """Return the first certificate in the PEM file *path*, or None."""
    try:
        return x509.load_pem_x509_certificate(contents_of(path, PEM_BYTES))
    except (OSError, *UNREADABLE):
        return None


def certificate_of(credential: CredentialPem) -> x509.Certificate | None:
    """Return the certificate of *credential*, or None if it cannot be read."""
    try:
        return x509.load_pem_x509_certificate(credential.pem)
    except UNREADABLE:
        return None


class OwnCertificate:
    """What the broker presents now; its file may hold another, which waits for a reload or was refused."""

    __slots__ = ("_tell", "certificate", "credential", "files", "find_revocation")

    def __init__(self, files: CredentialFiles, credential: CredentialPem) -> None:
        """Begin with *credential*, which *files* contained."""
        self.files: Final = files
        self._tell: Callable[[datetime | None], None] = lambda _begins: None
        self.find_revocation: Callable[[], RevocationReason | None] = lambda: None
        """Returns why it is revoked or on hold, as far as that is known here (`broker.sources.staple`)."""
        self.use(credential)

    def use(self, credential: CredentialPem) -> None:
        """Take note that *credential* is presented from now on."""
        self.credential = credential
        self.certificate = certificate_of(credential)
        """None: OpenSSL presents one that other software cannot read."""
        self._tell(self._begins)
        self._warn_of_no_name()

    def tell_beginning(self, tell: Callable[[datetime | None], None]) -> None:
        """Call *tell* with the time from which it is valid, and again for each that follows; None: it is unreadable."""
        self._tell = tell
        tell(self._begins)

    @property
    def _begins(self) -> datetime | None:
        return None if self.certificate is None else self.certificate.not_valid_before_utc

    def _warn_of_no_name(self) -> None:
        if self.certificate is not None and not host_names(self.certificate):
            log.warning(
                "the broker's certificate names no host",
                code="OWN_CERTIFICATE_NAMELESS",
                detail=f"{self.files.certificate}: {NAMELESS}",
                remedy=NAMELESS_REMEDY,
            )

    @property
    def host_names(self) -> list[str]:
        """Names and addresses by which clients may reach the broker; empty if there are none or they are unreadable."""
        return host_names(self.certificate) if self.certificate is not None else []

    def state_at(self, now: datetime) -> str:
        """Return its state: ``ok``, one of `OF_NO_USE`, or ``unreadable``."""
        own = self.certificate
        if own is None:
            return "unreadable"
        if now >= own.not_valid_after_utc:
            return "expired"
        if now < own.not_valid_before_utc:
            return "not yet valid"
        revocation = self.find_revocation()
        if revocation is None:
            return "ok"
        return "on hold" if revocation is RevocationReason.CERTIFICATE_HOLD else "revoked"


def is_for_servers(certificate: x509.Certificate) -> bool:
    """Whether clients accept *certificate* as a server's."""
    try:
        purposes = extension(certificate, x509.ExtendedKeyUsage)
    except UNREADABLE:
        return False
    wanted = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    return purposes is None or not wanted.isdisjoint(purposes)


def host_names(certificate: x509.Certificate) -> list[str]:
    """Return the DNS names and addresses in *certificate*; none if they cannot be read."""
    return _names(certificate, x509.DNSName, x509.IPAddress)


def token_options(certificate: x509.Certificate) -> str:
    """Return what ``token create`` is to be told for the host names of *certificate*; nothing if it has none."""
    options = [("--dns-name", name) for name in _names(certificate, x509.DNSName)]
    options += [("--ip-address", address) for address in _names(certificate, x509.IPAddress)]
    return " ".join(f"{option} {shlex.quote(value)}" for option, value in options)


def _names(certificate: x509.Certificate, *kinds: type[x509.DNSName | x509.IPAddress]) -> list[str]:
    try:
        names = extension(certificate, x509.SubjectAlternativeName)
        return [str(each.value) for each in names or () if isinstance(each, kinds)]
    except UNREADABLE:
        return []


def own_trust_domain(path: Path) -> str | None:
    """Return the trust domain of the broker's own certificate; None for one of a foreign CA, which has none."""
    own = read_certificate(path)
    try:
        return identity_of(own).trust_domain if own is not None else None
    except InvalidIdentity:
        return None
