"""Is the process alive, and can it do its work now? For load balancers and supervisors, on the plain port.

``/healthz`` says that the event loop runs. ``/readyz`` checks each part: a service that cannot issue, revoke or answer
gets no traffic, but is not killed for what a restart would not fix. Reasons are in the log; strangers get only names,
and cannot cause a signature: tokens are tested in the background (`provisioning.authorities.signing_trials`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from provisioning.ca.ocsp import OcspRefused
from provisioning.enrolment.issuing import Issuing
from provisioning.errors import Refused
from provisioning.revocation.ocsp_signer import RenewedOcspSigner
from provisioning.revocation.publisher import CrlPublisher
from provisioning.store import revocations
from provisioning.store.authorities import DEFAULT_LINE
from provisioning.store.database import Database

_PATIENCE_SECONDS: Final = 2.0

Check = Callable[[], Awaitable[str]]
"""Returns ``ok``, or in a word or two what is wrong."""


class Patient:
    """A check that is waited for a limited time, and never runs twice at a time.

    A transaction cannot be cancelled (`provisioning.store.lanes`), and one on a database that has vanished takes half a
    minute: meanwhile probes get an answer, and do not queue up behind one another.
    """

    def __init__(self, check: Check, seconds: float) -> None:
        """Wait for *check* for so many *seconds*."""
        self._check = check
        self._seconds = seconds
        self._asking: asyncio.Future[str] | None = None

    async def __call__(self) -> str:
        """Return its result, or ``slow``."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._check())
        asking = self._asking
        done, _ = await asyncio.wait({asking}, timeout=self._seconds)
        return asking.result() if done else "slow"


@dataclass(frozen=True, slots=True)
class Readiness:
    """The parts that are asked."""

    database: Database
    active: Callable[[], Mapping[str, Issuing | None]]
    signers: Callable[[], Sequence[RenewedOcspSigner]]
    publishers: Mapping[str, CrlPublisher]
    clock: Callable[[], datetime]
    signs: Callable[[], bool] = lambda: True
    """Whether every key of a CA that issues has signed when it was tried last."""

    def checks(self) -> dict[str, Check]:
        """Return what `/readyz` asks."""
        return {
            "store": Patient(self._store, _PATIENCE_SECONDS),
            "issuing_ca": self._issuing_ca,
            "ocsp_signer": self._ocsp_signer,
            "crls": self._crls,
        }

    async def _store(self) -> str:
        try:
            await self.database.read(revocations.newest)
            if self.database.write_is_late:
                return "slow"
            if self.database.write_failed:
                await self.database.probe()
        except Refused:
            return "unavailable"
        return "in doubt" if self.database.lost_ends.in_doubt else "ok"  # Nobody is let in, and nobody called good.

    async def _issuing_ca(self) -> str:
        active, now = self.active(), self.clock()
        certificates = [each.issuer.certificate for each in active.values() if each is not None]
        if DEFAULT_LINE not in active or len(certificates) < len(active):
            return "none"
        if any(now < each.not_valid_before_utc for each in certificates):
            return "not yet valid"  # The clock is behind: a successor, as for one that has expired, would not help.
        if any(each.not_valid_after_utc <= now for each in certificates):
            return "expired"
        return "ok" if self.signs() else "not signing"

    async def _ocsp_signer(self) -> str:
        now = self.clock()
        for signer in self.signers():
            try:
                if now < signer.issuer.certificate.not_valid_after_utc:  # What it issued has ended with it.
                    signer.current(now)
            except OcspRefused:
                return "not yet valid" if signer.is_early(now) else "expired"
        return "ok"

    async def _crls(self) -> str:
        now = self.clock()
        current = [publisher.current for publisher in self.publishers.values()]
        return "ok" if all(each is not None and now < each.next_update for each in current) else "expired"


def health_routes(checks: Mapping[str, Check]) -> list[Route]:
    """Return the two routes."""

    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> JSONResponse:
        found = {name: await check() for name, check in checks.items()}
        is_ready = set(found.values()) == {"ok"}
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse({"ready": is_ready, "checks": found}, status, headers={"Cache-Control": "no-store"})

    return [Route("/healthz", health), Route("/readyz", ready)]
