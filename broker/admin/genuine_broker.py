"""A handshake of the command line with a broker elsewhere that fails if another server of its own fleet is there.

Theory
------
A broker may have a certificate of any CA, so its role cannot be asked for. But a fleet's own CA certifies services,
too, and devices as servers if a profile allows it; some of them may have the broker's host name, as everything on one
machine is `localhost`. Such a certificate says whose it is: in the operator's own trust domain, whoever is no broker is
not asked anything, and told nothing.

Does not handle: a server whose certificate names nobody, or somebody of another trust domain; chain and host name are
all that is known of it.
"""

from __future__ import annotations

import ssl
from typing import ClassVar

from cryptography import x509

from provisioning.client.genuine_server import not_verified
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import InvalidIdentity, identity_of
from provisioning.pki.role import Role


class GenuineBroker(ssl.SSLSocket):
    """The TLS side of one connection, for `ssl.SSLContext.sslsocket_class`."""

    trust_domain: ClassVar[str | None] = None
    """The operator's own trust domain; None: the operator's certificate names none."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands; raise `ssl.SSLCertVerificationError` if it has ended with another peer."""
        super().do_handshake(block)
        wrong = _wrong_with(self.getpeercert(binary_form=True) or b"", self.trust_domain)
        if wrong is not None:
            raise not_verified(wrong)


def genuine_broker(trust_domain: str | None) -> type[GenuineBroker]:
    """Return the class for brokers that an operator of *trust_domain* asks."""
    return type("GenuineBroker", (GenuineBroker,), {"trust_domain": trust_domain})


def _wrong_with(der: bytes, trust_domain: str | None) -> str | None:
    try:
        found = identity_of(x509.load_der_x509_certificate(der))
    except InvalidIdentity:  # Of another CA.
        return None
    except UNREADABLE as error:
        return f"its certificate cannot be read: {error}"
    if found.trust_domain == trust_domain and found.role is not Role.BROKER:
        return f"its certificate is that of {found.uri}, which is no broker"
    return None
