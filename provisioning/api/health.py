"""Is the process alive, and can it do its work now? For load balancers and supervisors, on the plain port.

``/healthz`` says that the event loop runs. ``/readyz`` asks each part: a service that cannot issue, revoke or answer
gets no traffic, but is not killed for what a restart would not mend. Reasons are in the log; strangers get names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Final

from fastapi import APIRouter
from starlette.responses import JSONResponse

from provisioning.ca.ocsp import OcspRefused
from provisioning.errors import Refused
from provisioning.revocation.ocsp_signer import RenewedOcspSigner
from provisioning.revocation.publisher import CrlPublisher
from provisioning.store import revocations
from provisioning.store.database import Database

_PATIENCE_SECONDS: Final = 2.0

Check = Callable[[], Awaitable[str]]
"""Returns ``ok``, or in a word or two what is wrong."""


def readiness_checks(
    database: Database,
    signers: Callable[[], Sequence[RenewedOcspSigner]],
    publishers: Mapping[str, CrlPublisher],
    clock: Callable[[], datetime],
) -> dict[str, Check]:
    """Return what `/readyz` asks."""

    async def store() -> str:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await database.read(revocations.newest)
        except TimeoutError:
            return "slow"
        except Refused:
            return "unavailable"
        return "ok"

    async def ocsp_signer() -> str:
        try:
            for signer in signers():
                signer.current(clock())
        except OcspRefused:
            return "expired"
        return "ok"

    async def crls() -> str:
        now = clock()
        current = [publisher.current for publisher in publishers.values()]
        return "ok" if all(each is not None and now < each.next_update for each in current) else "expired"

    return {"store": store, "ocsp_signer": ocsp_signer, "crls": crls}


def health_routes(checks: Mapping[str, Check]) -> APIRouter:
    """Return the two routes."""
    router = APIRouter(include_in_schema=False)

    @router.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz")
    async def ready() -> JSONResponse:
        found = {name: await check() for name, check in checks.items()}
        is_ready = set(found.values()) == {"ok"}
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse({"ready": is_ready, "checks": found}, status, headers={"Cache-Control": "no-store"})

    return router
