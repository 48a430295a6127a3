"""A client's handshake that ends with the provisioning service itself, and with no other server of the fleet.

Theory
------
The fleet's CAs certify brokers, too, and devices that serve where a profile allows it; some of them may have the host
name under which the service is reached, as on one machine `localhost` is everybody's. Chain and host name alone let
such a one take tokens, and tell a broker that nobody is revoked. The certificate says who its holder is: here it has to
be the service, before the first byte is sent.

Rules
-----
1. The identity is looked at after every handshake, resumed or not.
2. A server that is somebody else meets the same error as one whose certificate does not chain.
"""

from __future__ import annotations

import ssl

from cryptography import x509

from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import PROVISIONING, InvalidIdentity, Role, identity_of


class GenuineServer(ssl.SSLObject):
    """The TLS side of one connection to the service, for `ssl.SSLContext.sslobject_class`."""

    def do_handshake(self) -> None:
        """Go on with the handshake; raise `ssl.SSLCertVerificationError` if it has ended with somebody else."""
        super().do_handshake()
        wrong = _wrong_with(self.getpeercert(binary_form=True) or b"")
        if wrong is not None:
            raise _not_verified(wrong)


def _wrong_with(der: bytes) -> str | None:
    try:
        found = identity_of(x509.load_der_x509_certificate(der))
    except InvalidIdentity as error:
        return str(error)
    except UNREADABLE as error:
        return f"its certificate cannot be read: {error}"
    if (found.role, found.group, found.name) != (Role.SERVICE, None, PROVISIONING):
        return f"its certificate is that of {found.uri}"
    return None


def _not_verified(message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(message)
    error.verify_message, error.verify_code = message, 0  # As OpenSSL's own has them.
    return error
