"""The foreign trust anchors that TLS accepts beside our own CAs, for enrolment only: claims and manufacturers.

Theory
------
Getting through TLS decides nothing. Every caller of the API is looked up by `provisioning.enrolment.authentication`,
which refuses a certificate that this service did not issue. Only `provisioning.enrolment.ways` looks for claims and
manufacturers, when a first certificate is requested, and checks them against the store again.

The anchors are handed to what makes the listener's contexts (`provisioning.authorities.https_credential`).

Dates are not checked by TLS either: a device whose certificate has expired may have a grace time to renew it, and one
without gets a readable refusal. `authenticate` and every way check both ends of the validity period.

Rules
-----
1. Only anchors that are in the store and in force are trusted.
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
from provisioning.store.failure_lines import FailureLines

log = structlog.get_logger(__name__)

_ROUND_SECONDS: Final = 3.0


class EnrolmentTrust:
    """The foreign anchors that are in force."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], tell: Callable[[Sequence[bytes]], None]
    ) -> None:
        """*tell* is called with the anchors, in DER, when they have changed."""
        self._database = database
        self._clock = clock
        self._tell = tell
        self._anchors: list[bytes] = []
        self._refreshing: Final = asyncio.Lock()
        self._failures: Final = FailureLines()

    async def refresh(self) -> bool:
        """Compare with the store, and return whether the trust has changed; it applies from the next handshake.

        If the listener cannot be told now, because the service's own files cannot be read, it is told later: the
        change is in the store, and the operator who asked for it gets an answer.
        """
        async with self._refreshing:
            anchors = await self._database.read(self._in_force)
            if anchors == self._anchors:
                return False
            try:
                self._tell(anchors)
            except ConfigurationError as error:
                log.error("enrolment trust not taken over", code="ENROLMENT_TRUST_STALE", detail=str(error))
                return False
            self._anchors = anchors
            log.info("enrolment trust changed", anchors=len(anchors))
            return True

    async def keep_up(self) -> bool:
        """Do the same. If the store cannot be read now, the trust stays as it is: `run` compares again soon.

        So whoever has just changed the store gets an answer: a claim's key is in no other.
        """
        try:
            return await self.refresh()
        except Refused as refusal:
            if times := self._failures.failed(refusal.detail, asyncio.get_running_loop().time()):
                facts = {"code": "ENROLMENT_TRUST_STALE", "detail": refusal.detail, "times": times}
                log.warning("enrolment trust not compared", **facts)
            return False

    async def run(self) -> None:
        """Compare for ever."""
        while True:
            await asyncio.sleep(_ROUND_SECONDS)
            await self.keep_up()

    def _in_force(self, connection: Connection) -> list[bytes]:
        return [*claims.anchors(connection, self._clock()), *manufacturers.anchors(connection)]
