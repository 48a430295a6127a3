"""HTTPS connections: passes the client's certificate to the application.

No released ASGI server tells the application which certificate the client presented. `PeerCertificateProtocol` reads it
from the TLS object of every connection, full handshake or resumed, and puts it into the scope, in DER, where the ASGI
TLS extension would have it in PEM, so that this file can be removed when the library does the same.

A client that changes its TLS keys endlessly is cut off: it would occupy the event loop.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import structlog

from provisioning.connections.connection_protocol import ConnectionProtocol
from provisioning.pki.key_updates import bound_key_updates, changed_keys_too_often
from provisioning.pki.openssl import address_of, has_extended_master_secret

log = structlog.get_logger(__name__)


class PeerCertificateProtocol(ConnectionProtocol):
    """HTTPS: tells the application which certificate the client presented."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the certificate once; on a resumed session it comes from the session."""
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        self._tls: dict[str, Any] = {
            "client_cert_der": tls.getpeercert(binary_form=True),
            "tls_version": tls.version(),
            "tls_resumed": tls.session_reused,
        }
        if _has_unique(tls):
            self._tls["tls_unique"] = tls.get_channel_binding("tls-unique")
        self._session = address_of(tls)
        bound_key_updates(self._session)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report whether it changed its keys too often: anybody can, so it is not worth a log line each."""
        if changed_keys_too_often(self._session):
            log.debug("TLS keys changed too often")
        super().connection_lost(exc)

    def connection_extensions(self) -> dict[str, Any]:
        """Add the TLS facts, where the ASGI TLS extension has them."""
        return super().connection_extensions() | {"tls": self._tls}


def _has_unique(tls: ssl.SSLObject) -> bool:
    """Whether the connection's tls-unique is really unique: the library returns one for every connection.

    It is not in TLS 1.3 (RFC 9266), nor if a session is resumed without extended master secret: a man in the
    middle can have made it the same on both sides (RFC 7627 §5.4).
    """
    if tls.version() != "TLSv1.2":
        return False
    return not tls.session_reused or has_extended_master_secret(tls)
