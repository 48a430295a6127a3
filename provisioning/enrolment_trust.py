"""Whose certificates the HTTPS server lets through TLS: our own CAs', and, for enrolment, claims and manufacturers.

Theory
------
What TLS lets through decides nothing. Whoever acts at the API is looked up by `provisioning.enrolment.authentication`:
a certificate that this service did not issue is refused there. Claims and manufacturers are looked for by
`provisioning.enrolment.ways` alone, when a first certificate is asked for, and again by the store.

A context is immutable, so a changed trust is a new context: the listener's own context asks, at each handshake, for
the newest one (OpenSSL takes the anchors from the context that the server name callback leaves).

Rules
-----
1. No anchor is taken into the trust that is not in the store and in force.
2. Another process may have changed the store: it is compared every few seconds.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Refused
from provisioning.pki.tls import ClientCertificate, Credential, server_context
from provisioning.store import claims, manufacturers
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

_ROUND_SECONDS: Final = 3.0


class EnrolmentTrust:
    """The HTTPS server's contexts, one after the other."""

    def __init__(self, database: Database, clock: Callable[[], datetime], credential: Credential, bundle: Path) -> None:
        """Raise `provisioning.pki.tls.TlsConfigurationError` if a file cannot be used."""
        self._database = database
        self._clock = clock
        self._credential = credential
        self._own = bundle.read_text(encoding="ascii")
        self._extra: list[bytes] = []
        self._refreshing: Final = asyncio.Lock()
        self.context: Final = self._build()
        """What the listener uses for its whole life."""
        self._newest = self.context
        self.context.sni_callback = self._choose

    async def refresh(self) -> bool:
        """Compare with the store, and return whether the trust has changed; it holds for the next handshake."""
        async with self._refreshing:
            extra = await self._database.read(self._anchors)
            if extra == self._extra:
                return False
            self._extra = extra
            self._newest = await asyncio.to_thread(self._build)
            log.info("enrolment trust changed", anchors=len(extra))
            return True

    async def run(self) -> None:
        """Compare for ever. A store that cannot be read now is compared later; the trust stays as it is."""
        while True:
            await asyncio.sleep(_ROUND_SECONDS)
            try:
                await self.refresh()
            except Refused as refusal:
                log.warning("enrolment trust not compared", reason=refusal.detail)

    def _anchors(self, connection: Connection) -> list[bytes]:
        return [*claims.anchors(connection, self._clock()), *manufacturers.anchors(connection)]

    def _build(self) -> ssl.SSLContext:
        anchors = self._own + "".join(map(ssl.DER_cert_to_PEM_cert, self._extra))
        return server_context(
            self._credential, anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True
        )

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest
