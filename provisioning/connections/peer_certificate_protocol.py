"""HTTPS connections: passes the client's certificate to the application.

No released ASGI server tells the application which certificate the client presented. `PeerCertificateProtocol` reads it
from the TLS object of every connection, and puts it into the scope, in DER, where the ASGI TLS extension would have it
in PEM.

The key of that certificate has been used on this very connection: the service resumes no TLS session
(`provisioning.pki.resumption`). Where it could not be kept from that, a connection that has resumed one ends here
before anything is read from it, and its session with it (OpenSSL forgets one that ends without close_notify), so that
the client's next connection is a full handshake.

A client that changes its TLS keys endlessly is cut off: it would occupy the event loop.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import structlog

from provisioning.connections.connection_protocol import ConnectionProtocol
from provisioning.pki.key_updates import bound_key_updates, changed_keys_too_often
from provisioning.pki.openssl import address_of
from provisioning.pki.polite_handshake import end_turns, take_turns

log = structlog.get_logger(__name__)


class PeerCertificateProtocol(ConnectionProtocol):
    """HTTPS: tells the application which certificate the client presented."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as the library's class
        """Read the certificate once; cut off a client that has not proven its key here."""
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        self._tls: dict[str, Any] = {
            "client_cert_der": tls.getpeercert(binary_form=True),
            "tls_version": tls.version(),
        }
        if tls.version() == "TLSv1.2":  # The library returns one in TLS 1.3, too, where there is none (RFC 9266).
            self._tls["tls_unique"] = tls.get_channel_binding("tls-unique")
        self._session = address_of(tls)
        bound_key_updates(self._session)
        take_turns(transport)
        super().connection_made(transport)
        if tls.session_reused:
            log.debug("TLS session resumed, which is not done here")
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report whether it changed its keys too often: anybody can, so it is not worth a log line each."""
        if changed_keys_too_often(self._session):
            log.debug("TLS keys changed too often")
        end_turns(self.transport)
        super().connection_lost(exc)

    def connection_extensions(self) -> dict[str, Any]:
        """Add the TLS facts, where the ASGI TLS extension has them."""
        return super().connection_extensions() | {"tls": self._tls}
