"""A client's handshake that succeeds only with the provisioning service of its own fleet.

Theory
------
The fleet's CAs also certify brokers, and devices as servers if a profile allows it; some of them may have the service's
host name, as everything on one machine is `localhost`. With chain and host name checks alone, such a server could
collect tokens, and tell a broker that nothing is revoked. The certificate identifies its holder: it has to be
the service, before the first byte is sent. If two fleets are below one root, each has such a service, and their
trust domains distinguish them (docs/decisions/0168-service-of-ones-own-trust-domain.md).

Rules
-----
1. The identity is checked after every handshake, resumed or not.
2. A wrong server causes the same error as one whose certificate does not chain.
3. The server proves that its certificate is not revoked, with an OCSP response that its CA has signed within the hour.
   An attacker on the path who has copied the service's key has none an hour after the revocation
   (docs/decisions/0192-staple-required-before-a-token-is-sent.md,
   docs/decisions/0208-attacks-on-protocol-edges.md).
4. A client that knows more than the server's CA admits, say that this CA is itself revoked, whose key then signs any
   such response, judges the verified path in the handshake, too (`Refuse`).
5. A client that knows its trust domain accepts only that domain's service; one that does not, as before its first
   enrolment, accepts that of any fleet below its anchors.

Handles: if OpenSSL cannot be asked for the response (`provisioning.pki.openssl`), rule 3 is not enforced.
Does not handle: a CA below the same root that writes another fleet's trust domain into its certificates.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from cryptography import x509

from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import PROVISIONING, InvalidIdentity, identity_of
from provisioning.pki.ocsp import OcspRefused, Question, read_answer
from provisioning.pki.role import Role
from provisioning.pki.stapling import staple_in
from provisioning.pki.tls import Credential, CredentialPem, TlsConfigurationError
from provisioning.pki.verified_path import verified_path
from provisioning.program.given_file import PEM_BYTES, contents_of
from provisioning.program.moments import shown_minute

_DOMAINS = 64
_OLDEST = timedelta(hours=1)
"""Maximum age of a response: an attacker with a copied key and response has so long after the revocation."""
_WITH_ISSUER = 2
_OF_THE_CONNECTION = (
    ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError, ssl.SSLEOFError, ssl.SSLSyscallError,
)  # fmt: skip

Refuse = Callable[[Sequence[bytes]], str | None]
"""Returns why a server with this certificate path (DER, its own first) is not trusted, or None."""


class GenuineServer(ssl.SSLObject):
    """The TLS side of one connection to the service of any fleet, for `ssl.SSLContext.sslobject_class`."""

    trust_domain: ClassVar[str | None] = None
    """The trust domain that it must have; None: any."""
    proves: ClassVar[bool] = False
    """Whether it must show that its certificate is not revoked."""
    refuse: ClassVar[Refuse | None] = None
    """What else is known against it; None: nothing."""

    def do_handshake(self) -> None:
        """Continue the handshake; raise `ssl.SSLCertVerificationError` if it has ended with another peer."""
        super().do_handshake()
        wrong = _wrong_with(self.getpeercert(binary_form=True) or b"", self.trust_domain)
        if wrong is None and self.proves:
            wrong = unproven(verified_path(self), staple_in(self), datetime.now(UTC))
        refuse = type(self).refuse
        if wrong is None and refuse is not None:
            wrong = refuse(verified_path(self))
        if wrong is not None:
            raise not_verified(wrong)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - named so by `ssl`
        """Return what the server has sent; raise `ssl.SSLSyscallError` if it, or the connection, has failed.

        In TLS 1.3 a server refuses its client's certificate by an alert behind the handshake. The HTTP library takes
        that for an error of its user and lets it through as it is; a broken connection it makes an error of its own.
        """
        try:
            return super().read(len, buffer) if buffer is not None else super().read(len)
        except _OF_THE_CONNECTION:
            raise
        except ssl.SSLError as error:
            broken = ssl.SSLSyscallError(error.errno, error.strerror)
            broken.library, broken.reason = error.library, error.reason
            raise broken from error


@functools.lru_cache(_DOMAINS)
def genuine_server(
    trust_domain: str | None, *, proves: bool = False, refuse: Refuse | None = None
) -> type[GenuineServer]:
    """Return the class for the service of *trust_domain*, None: of any.

    *proves*: it must prove that it is good. *refuse* judges its path.
    """
    judge = None if refuse is None else staticmethod(refuse)
    # A new class: the context creates its TLS objects, and passes them no arguments of ours.
    return type("GenuineServer", (GenuineServer,), {"trust_domain": trust_domain, "proves": proves, "refuse": judge})


def unproven(path: Sequence[bytes], response: bytes, now: datetime) -> str | None:
    """Return why the OCSP *response* does not prove that the first of *path* (DER) is not revoked; None: it does."""
    if not response:
        return (
            "it does not prove that its certificate is not revoked (OCSP stapling): its log says why "
            "(STAPLE_FAILED); for half a minute after its clock was set it has none; or it is older than this program"
        )
    if len(path) < _WITH_ISSUER:
        return "its certificate is itself a trust anchor: no CA says whether it is revoked"
    try:
        own, issuer = (x509.load_der_x509_certificate(each) for each in path[:_WITH_ISSUER])
    except UNREADABLE as error:
        return f"its certificate, or that of its CA, cannot be read: {error}"
    try:
        answer = read_answer(response, Question(b"", b""), own.serial_number, issuer, now)
    except OcspRefused as error:
        return f"its OCSP response cannot be trusted: {error}; the clock here says {now:%H:%M} UTC"
    if answer.reason is not None:
        return f"its certificate is revoked ({answer.reason})"
    if not answer.known:
        return "its CA does not know its certificate"
    if answer.this_update < now - _OLDEST:
        return f"its OCSP response is of {shown_minute(answer.this_update)}; the clock here says {now:%H:%M} UTC"
    return None


def trust_domain_of(credential: Credential) -> str | None:
    """Return the trust domain in *credential*; None: it names no identity, like a claim's certificate.

    Raises `TlsConfigurationError` if it cannot be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(
            credential.pem if isinstance(credential, CredentialPem) else contents_of(credential.certificate, PEM_BYTES)
        )
    except OSError as error:
        raise TlsConfigurationError(f"{error.filename} cannot be read: {error.strerror}") from error
    except UNREADABLE as error:
        where = "the credential" if isinstance(credential, CredentialPem) else credential.certificate
        raise TlsConfigurationError(f"{where} holds no PEM certificate: {error}") from error
    try:
        return identity_of(certificate).trust_domain
    except (InvalidIdentity, *UNREADABLE):  # A manufacturer's certificate may have any names.
        return None


def _wrong_with(der: bytes, trust_domain: str | None) -> str | None:
    try:
        found = identity_of(x509.load_der_x509_certificate(der))
    except InvalidIdentity as error:
        return str(error)
    except UNREADABLE as error:
        return f"its certificate cannot be read: {error}"
    if (found.role, found.group, found.name) != (Role.SERVICE, None, PROVISIONING):
        return f"its certificate is that of {found.uri}"
    if trust_domain not in (None, found.trust_domain):
        return f"it is the service of trust domain {found.trust_domain}, not of {trust_domain}"
    return None


def not_verified(message: str) -> ssl.SSLCertVerificationError:
    """Return the error of a handshake whose peer is the wrong one, as *message* says."""
    error = ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, message)  # Of two, the second is its text.
    error.verify_message, error.verify_code = message, 0  # As in OpenSSL's own errors.
    return error
