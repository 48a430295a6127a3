"""The peer of a request: the certificate and TLS facts that the server's protocol put into the ASGI scope.

They are where the ASGI TLS extension has them (``scope["extensions"]["tls"]``), the certificate in DER: the server
fills them in, see `provisioning.connections.peer_certificate_protocol`.
"""

from __future__ import annotations

from cryptography import x509
from starlette.types import Scope

from provisioning.enrolment.attempt import TlsConnection
from provisioning.errors import Code, Refused
from provisioning.pki.extension import UNREADABLE


def peer_certificate(scope: Scope) -> x509.Certificate | None:
    """Return the certificate that the client presented, None without one."""
    der = peer_certificate_der(scope)
    if der is None:
        return None
    try:
        return x509.load_der_x509_certificate(der)
    except UNREADABLE as error:  # OpenSSL has read it; a manufacturer's may be stranger than the library likes.
        raise Refused(Code.CERTIFICATE_UNKNOWN, f"the client certificate cannot be read ({error})") from error


def peer_certificate_der(scope: Scope) -> bytes | None:
    """Return the same as it came, None without one."""
    der: bytes | None = scope.get("extensions", {}).get("tls", {}).get("client_cert_der")
    return der


def tls_connection(scope: Scope) -> TlsConnection | None:
    """Return what binds the request to its connection, None if it came without TLS."""
    tls, client = scope.get("extensions", {}).get("tls"), scope.get("client")
    if tls is None:
        return None
    address = None if client is None else client[0]
    return TlsConnection(tls["tls_version"], tls.get("tls_unique"), address)


def vouch(scope: Scope, who: str) -> None:
    """Have the next handshakes from the client's address come before those of strangers, also in a crowd.

    To be called for *who* was found to be somebody whom others should not be able to keep out.
    """
    tell = scope.get("extensions", {}).get("connection", {}).get("vouch")
    if tell is not None:  # Otherwise it came without a connection.
        tell(who)
