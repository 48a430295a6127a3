"""Whose certificates TLS lets through beside those of our own CAs: for enrolment, claims and manufacturers.

Theory
------
What TLS lets through decides nothing. Whoever acts at the API is looked up by `provisioning.enrolment.authentication`:
a certificate that this service did not issue is refused there. Claims and manufacturers are looked for by
`provisioning.enrolment.ways` alone, when a first certificate is asked for, and again by the store.

What is found is handed to whoever makes the listener's contexts (`provisioning.authorities.https_credential`).

Dates are not checked by TLS either: a device that was away too long for its certificate may have a grace time to renew
it, and whoever has none is told so in a sentence. `authenticate` and every way check both ends of the validity.

Rules
-----
1. No anchor is taken into the trust that is not in the store and in force.
2. Another process may have changed the store: it is compared every few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError, Refused
from provisioning.store import claims, manufacturers
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

_ROUND_SECONDS: Final = 3.0


class EnrolmentTrust:
    """The foreign anchors that are in force."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], tell: Callable[[Sequence[bytes]], None]
    ) -> None:
        """*tell* is called with the anchors, DER, when they have changed."""
        self._database = database
        self._clock = clock
        self._tell = tell
        self._anchors: list[bytes] = []
        self._refreshing: Final = asyncio.Lock()

    async def refresh(self) -> bool:
        """Compare with the store, and return whether the trust has changed; it holds for the next handshake.

        A listener that cannot be told now, because the service's own files cannot be read, is told later: what the
        store has is done, and who has asked for it is answered.
        """
        async with self._refreshing:
            anchors = await self._database.read(self._in_force)
            if anchors == self._anchors:
                return False
            try:
                self._tell(anchors)
            except ConfigurationError as error:
                log.error("enrolment trust not taken over", error=str(error))  # noqa: TRY400 - that says it all
                return False
            self._anchors = anchors
            log.info("enrolment trust changed", anchors=len(anchors))
            return True

    async def run(self) -> None:
        """Compare for ever. A store that cannot be read now is compared later; the trust stays as it is."""
        while True:
            await asyncio.sleep(_ROUND_SECONDS)
            try:
                await self.refresh()
            except Refused as refusal:
                log.warning("enrolment trust not compared", reason=refusal.detail)

    def _in_force(self, connection: Connection) -> list[bytes]:
        return [*claims.anchors(connection, self._clock()), *manufacturers.anchors(connection)]
