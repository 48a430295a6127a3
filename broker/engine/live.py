"""The connections by certificate: those that a revocation affects.

Rules
-----
1. A certificate may be used on several connections (a service's instances, a clone); closed ones are removed.
2. No I/O, no clock.
"""

from __future__ import annotations

from broker.engine.client import Client
from provisioning.pki.revocation import CertificateKey


class LiveConnections:
    """The admitted connections, by certificate."""

    __slots__ = ("_by_certificate",)

    def __init__(self) -> None:
        self._by_certificate: dict[CertificateKey, list[Client]] = {}

    def add(self, certificate: CertificateKey, connection: Client) -> None:
        """File *connection*, whose client was admitted with *certificate*."""
        self._by_certificate.setdefault(certificate, []).append(connection)

    def remove(self, certificate: CertificateKey, connection: Client) -> None:
        """Remove *connection*."""
        connections = self._by_certificate.get(certificate)
        if connections is not None and connection in connections:
            connections.remove(connection)
            if not connections:
                del self._by_certificate[certificate]

    def of(self, certificate: CertificateKey) -> list[Client]:
        """Return the connections of *certificate*, as a copy: they may close while the caller iterates."""
        return list(self._by_certificate.get(certificate, ()))

    def all(self) -> list[Client]:
        """Return every connection."""
        return [connection for connections in self._by_certificate.values() for connection in connections]
