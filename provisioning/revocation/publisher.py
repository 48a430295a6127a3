"""When a new CRL appears: soon after a revocation, and at half of the last one's life even if nothing happened.

Theory
------
A CA whose list lapses because nobody was revoked locks its fleet out of every relying party that checks; so the timer
does not depend on revocations. Revocations come in bursts; a short wait turns a burst into one list.

Rules
-----
1. The number is taken from the store, so it rises across restarts; a number may be skipped, never repeated.
2. Signing runs in a thread: a long list takes a second.
3. A failed attempt is logged and repeated; the last list is served meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.ca.crl import CrlEntry, CrlIssuer, CrlRequest
from provisioning.errors import ConfigurationError, Refused
from provisioning.pki.keys import key_identifier
from provisioning.store import counters, crls, revocations
from provisioning.store.counters import Counter
from provisioning.store.crls import PublishedCrl
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

_RETRY_SECONDS: Final = 10.0
_LONGEST_WAIT_SECONDS: Final = 3600.0  # Look at the wall clock now and then: it may be set.


@dataclass(frozen=True, slots=True)
class CrlPlan:
    """Whose list it is, how long it is good for, and how long a burst of revocations may last."""

    name: str
    counter: Counter
    life: timedelta
    debounce_seconds: float
    open_issuer: Callable[[], CrlIssuer]
    """Called in a thread for every list: a root's key is in memory only while it signs."""


class CrlPublisher:
    """Publishes one CA's CRL and holds the newest."""

    def __init__(self, database: Database, plan: CrlPlan, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._plan = plan
        self._clock = clock
        self._changed = asyncio.Event()
        self._current: PublishedCrl | None = None

    @property
    def current(self) -> PublishedCrl | None:
        """The newest list, None only before `start`."""
        return self._current

    def changed(self) -> None:
        """Say that something was revoked."""
        self._changed.set()

    async def start(self) -> None:
        """Take up the last published list, or publish the first one."""
        self._current = await self._database.read(lambda connection: crls.newest(connection, self._plan.name))
        if self._current is None:
            await self.publish()

    async def run(self) -> None:
        """Publish when it is time, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_to_renewal()):
                    await self._changed.wait()
            if self._changed.is_set():
                await asyncio.sleep(self._plan.debounce_seconds)
            elif self._seconds_to_renewal() > 0:
                continue
            self._changed.clear()
            try:
                await self.publish()
            except (Refused, ConfigurationError, OSError) as error:
                log.error("CRL not published", issuer=self._plan.name, error=str(error))  # noqa: TRY400
                self._changed.set()
                await asyncio.sleep(_RETRY_SECONDS)

    async def publish(self) -> PublishedCrl:
        """Sign and record a new list."""
        (number,) = await self._database.write(lambda connection: counters.take(connection, self._plan.counter))
        issuer = await asyncio.to_thread(self._plan.open_issuer)
        previous_update = datetime.min.replace(tzinfo=UTC) if self._current is None else self._current.this_update
        now = self._clock().replace(microsecond=0)
        issuer_key_id = key_identifier(issuer.certificate.public_key())
        revoked = await self._database.read(
            lambda connection: revocations.for_crl(connection, issuer_key_id, previous_update)
        )

        def sign() -> bytes:
            entries = [CrlEntry(int(serial, 16), revoked_at, reason) for serial, revoked_at, reason in revoked]
            prepared = issuer.prepare(CrlRequest(number, now, now + self._plan.life, entries))
            return issuer.issue(prepared).public_bytes(Encoding.DER)

        der = await asyncio.to_thread(sign)
        published = PublishedCrl(self._plan.name, number, now, now + self._plan.life, len(revoked), der)
        await self._database.write(lambda connection: crls.add(connection, published))
        self._current = published
        log.info("CRL published", issuer=self._plan.name, number=number, entries=len(revoked), bytes=len(der))
        return published

    def _seconds_to_renewal(self) -> float:
        if self._current is None:
            return 0.0
        renewal = self._current.this_update + (self._current.next_update - self._current.this_update) / 2
        return min(max(0.0, (renewal - self._clock()).total_seconds()), _LONGEST_WAIT_SECONDS)
