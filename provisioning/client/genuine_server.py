"""A client's handshake that ends with the provisioning service of its own fleet, and with no other server.

Theory
------
The fleet's CAs certify brokers, too, and devices that serve where a profile allows it; some of them may have the host
name under which the service is reached, as on one machine `localhost` is everybody's. Chain and host name alone let
such a one take tokens, and tell a broker that nobody is revoked. The certificate says who its holder is: here it has to
be the service, before the first byte is sent. Where two fleets are below one root, each has such a service, and their
trust domains tell them apart (docs/decisions/0168-the-service-is-of-ones-own-trust-domain.md).

Rules
-----
1. The identity is looked at after every handshake, resumed or not.
2. A server that is somebody else meets the same error as one whose certificate does not chain.
3. A client that knows its trust domain takes no other's service for its own; one that does not, as before it is first
   enrolled, takes that of any fleet below its anchors.

Does not handle: a CA below the same root that writes another fleet's trust domain into its certificates.
"""

from __future__ import annotations

import functools
import ssl
from typing import ClassVar

from cryptography import x509

from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import PROVISIONING, InvalidIdentity, Role, identity_of
from provisioning.pki.tls import Credential, CredentialPem, TlsConfigurationError
from provisioning.program.given_file import PEM_BYTES, contents_of

_DOMAINS = 64


class GenuineServer(ssl.SSLObject):
    """The TLS side of one connection to the service of any fleet, for `ssl.SSLContext.sslobject_class`."""

    trust_domain: ClassVar[str | None] = None
    """Of which fleet it has to be; None: of any."""

    def do_handshake(self) -> None:
        """Go on with the handshake; raise `ssl.SSLCertVerificationError` if it has ended with somebody else."""
        super().do_handshake()
        wrong = _wrong_with(self.getpeercert(binary_form=True) or b"", self.trust_domain)
        if wrong is not None:
            raise _not_verified(wrong)


@functools.lru_cache(_DOMAINS)
def genuine_server(trust_domain: str | None) -> type[GenuineServer]:
    """Return the same for the service of *trust_domain* alone; None: of any."""
    # A class of its own: OpenSSL's objects are made by the context, which has nothing to hand to them.
    return type("GenuineServer", (GenuineServer,), {"trust_domain": trust_domain})


def trust_domain_of(credential: Credential) -> str | None:
    """Return the trust domain of who has *credential*; None: it names no identity, as a claim's certificate does.

    Raises `TlsConfigurationError` if it cannot be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(
            credential.pem if isinstance(credential, CredentialPem) else contents_of(credential.certificate, PEM_BYTES)
        )
    except OSError as error:
        raise TlsConfigurationError(f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        where = "the credential" if isinstance(credential, CredentialPem) else credential.certificate
        raise TlsConfigurationError(f"{where} holds no PEM certificate: {error}") from error
    try:
        return identity_of(certificate).trust_domain
    except (InvalidIdentity, *UNREADABLE):  # A manufacturer writes what he likes.
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
        return f"it is the service of trust domain {found.trust_domain}, and that of {trust_domain} is asked for"
    return None


def _not_verified(message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(message)
    error.verify_message, error.verify_code = message, 0  # As OpenSSL's own has them.
    return error
