"""HTTP connections as the application needs them: limits that the server library leaves open, and who is connected.

No released ASGI server tells the application which certificate the client presented. `PeerCertificateProtocol` reads it
from the TLS object of every connection, full handshake or resumed, and puts it into the scope under the names of the
ASGI TLS extension, so that this file can go when the library does the same.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from provisioning.gathering_transport import GatheringTransport

_MAXIMUM_HEADER_BYTES: Final = 32 * 1024
_REQUEST_SECONDS: Final = 60.0


class ConnectionProtocol(HttpToolsProtocol):
    """HTTP with two limits: the size of a request's headers, and the time until they are complete."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(GatheringTransport(transport, self.loop))
        self._header_bytes = 0
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._overdue.cancel()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Wait no longer: the body has a limit of its own, `provisioning.api.body`."""
        self._overdue.cancel()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._await_request()
        super().on_response_complete()

    def _await_request(self) -> None:
        # One timer until the headers are complete: a byte now and then does not put it off.
        self._overdue = self.loop.call_later(_REQUEST_SECONDS, self.transport.close)

    def on_message_begin(self) -> None:
        """Start counting, and describe the connection in the scope."""
        super().on_message_begin()
        self._header_bytes = 0
        self.scope["extensions"] = self.connection_extensions()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count, before the header is kept; the parser turns the exception into 400 and closes."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > _MAXIMUM_HEADER_BYTES:
            raise ValueError("header section too large")
        super().on_header(name, value)

    def connection_extensions(self) -> dict[str, Any]:
        """Return what the application may know of, and do to, the connection."""
        return {"connection": {"abort": self.transport.abort}}


class PeerCertificateProtocol(ConnectionProtocol):
    """HTTPS: tells the application which certificate the client presented."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the certificate once; on a resumed session it comes from the session."""
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True)
        chain = [] if der is None else [ssl.DER_cert_to_PEM_cert(der)]
        self._tls: dict[str, Any] = {
            "client_cert_chain": chain,
            "client_cert_der": der,
            "tls_version": tls.version(),
            "tls_resumed": tls.session_reused,
        }
        if tls.version() == "TLSv1.2":  # Of TLS 1.3 the library gives a value too, which binds nothing (RFC 9266).
            self._tls["tls_unique"] = tls.get_channel_binding("tls-unique")
        super().connection_made(transport)

    def connection_extensions(self) -> dict[str, Any]:
        """Add the TLS facts, named as the ASGI TLS extension names them."""
        return super().connection_extensions() | {"tls": self._tls}
