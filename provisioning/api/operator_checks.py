"""Authenticates callers of the operators' API, with one query of the store for simultaneous calls.

Theory
------
An operator's program has many calls under way, all with one certificate. A transaction per call for the same result
was a third of a revocation's cost. So calls that arrive during a query wait for the next one, which serves them all
and looks up each certificate once::

    call A ─► look 1 ─────────────────► A        call B, C ─► wait ─► look 2 ─► B, C

Rules
-----
1. A query begins after the arrival of all calls that it serves, so no call gets a result from before it was made: an
   operator revoked before is refused. Nothing is cached.
2. Certificates that differ in a single bit are looked up separately.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.enrolment.authentication import AuthenticatedOperator, authenticate_operator
from provisioning.errors import Refused
from provisioning.program.shielded import shielded
from provisioning.store.database import Database

_Found = AuthenticatedOperator | Refused
_Certificates = Mapping[bytes, x509.Certificate | None]


@dataclass(slots=True)
class _Look:
    """One look at the store, and who waits for it: certificates by their DER, empty for none."""

    certificates: dict[bytes, x509.Certificate | None] = field(default_factory=dict)
    done: asyncio.Task[dict[bytes, _Found]] | None = None


class OperatorChecks:
    """Asks the store; used from one event loop."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        self._next = _Look()
        self._under_way: asyncio.Task[dict[bytes, _Found]] | None = None

    async def operator(self, certificate: x509.Certificate | None, der: bytes) -> AuthenticatedOperator:
        """Return who presented *certificate*, whose encoding is *der*; raise `Refused` as `authenticate_operator`."""
        look = self._next
        look.certificates[der] = certificate
        if look.done is None:
            look.done = asyncio.create_task(self._look(look, self._under_way))
        found = (await shielded(look.done))[der]
        if isinstance(found, Refused):
            raise Refused(found.code, found.detail)  # One for each: an exception remembers who raised it.
        return found

    async def _look(self, look: _Look, before: asyncio.Task[dict[bytes, _Found]] | None) -> dict[bytes, _Found]:
        if before is not None and not before.done():
            await asyncio.wait([before])  # How it ended is its callers' concern.
        self._next, self._under_way = _Look(), look.done
        return await self._database.look(lambda connection: _found(connection, look.certificates, self._clock()))


def _found(connection: Connection, certificates: _Certificates, now: datetime) -> dict[bytes, _Found]:
    found: dict[bytes, _Found] = {}
    for der, certificate in certificates.items():
        try:
            found[der] = authenticate_operator(connection, certificate, now)
        except Refused as refusal:
            found[der] = refusal
    return found
