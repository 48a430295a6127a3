"""The operators' API, assembled: its services, its routes, and the document that describes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse

from provisioning.api.administration import EnrolmentAdministration
from provisioning.api.application import error_handlers
from provisioning.api.approvals import router as approval_router
from provisioning.api.asked_for import no_such_field
from provisioning.api.claims import router as claim_router
from provisioning.api.device_lists import router as device_list_router
from provisioning.api.devices import router as device_router
from provisioning.api.est import Answer
from provisioning.api.feed import feed_routes
from provisioning.api.groups import router as group_router
from provisioning.api.head import HeadAsGet
from provisioning.api.health import Check
from provisioning.api.idempotency import AnswerBook
from provisioning.api.inventory import router as inventory_router
from provisioning.api.known_authorities import known_authority_routes
from provisioning.api.lifecycle import router as lifecycle_router
from provisioning.api.manufacturers import router as manufacturer_router
from provisioning.api.operator_checks import OperatorChecks
from provisioning.api.operator_roles import router as operator_role_router
from provisioning.api.operators import OperatorServices
from provisioning.api.renewals import public_router as renewal_info_router
from provisioning.api.renewals import router as renewal_router
from provisioning.api.revocations import router as revocation_router
from provisioning.api.tokens import router as token_router
from provisioning.ca.profile import Profile
from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.claims import ClaimService
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.groups import GroupService
from provisioning.enrolment.left_behind import LeftBehindService
from provisioning.enrolment.manufacturer_lists import RELEASED_SHARE, ManufacturerListService
from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.enrolment.renewal_info import RenewalService
from provisioning.enrolment.tokens import TokenService
from provisioning.errors import Code, Refused
from provisioning.program.shielded import shielded
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.publisher import CrlPublisher
from provisioning.revocation.service import RevocationService
from provisioning.revocation.suspension import SuspensionService
from provisioning.store.database import Database

DOCUMENT: Final = "/v1/openapi.json"
_PART: Final = 16 * 1024
"""Octets."""


def new_framework(version: str, answer: Answer) -> FastAPI:
    """Return the framework's application, without routes; refusals are answered by *answer*."""

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request.url.path, Refused(Code.INVALID_REQUEST, _fields(error, request.scope.get("route"))), None)

    async def passed_on(_request: Request, error: Exception) -> Response:
        raise error  # Whoever stands before it tells of faults, and would do so again: answered faults go on as well.

    framework = FastAPI(
        title="Fleetgate provisioning",
        version=version,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # `_describe` makes another one.
        redirect_slashes=False,  # As `new_application`.
        responses={each: {"description": ""} for each in ("4XX", "5XX")},
        exception_handlers=error_handlers(answer) | {RequestValidationError: invalid, Exception: passed_on},
    )
    framework.add_middleware(HeadAsGet)
    return framework


def new_operator_application(
    version: str,
    answer: Answer,
    *,
    database: Database,
    clock: Callable[[], datetime],
    audit_key: bytes,
    profiles: Mapping[str, Profile],
    revocation: RevocationService,
    suspension: SuspensionService,
    feed: RevocationFeed,
    stall_seconds: float,
    publishers: dict[str, CrlPublisher],
    followers: Callable[[], Awaitable[int]],
    readiness: Mapping[str, Check],
    trust_changed: Callable[[], Awaitable[object]],
    released_share: float = RELEASED_SHARE,
) -> FastAPI:
    """Return the API. *stall_seconds*: `feed_routes`; *trust_changed* is awaited when TLS is to let others through.

    *released_share*: `ManufacturerListService`.
    """
    app = new_framework(version, answer)
    app.state.operator_services = OperatorServices(
        database,
        TokenService(database, clock, profiles),
        revocation,
        suspension,
        OperatorRoleService(database, clock),
        feed,
        publishers,
        clock,
        AnswerBook(database, audit_key, clock),
        OperatorChecks(database, clock),
        followers,
        readiness,
    )
    app.state.enrolment_services = EnrolmentAdministration(
        GroupService(database, profiles, clock),
        ClaimService(database, clock, trust_changed),
        ManufacturerService(database, clock, trust_changed),
        ManufacturerListService(database, clock, released_share),
        DeviceListService(database, clock),
        ApprovalService(database, clock),
        RenewalService(database, clock),
        LeftBehindService(database, clock),
    )
    routers = (
        feed_routes(database, feed, clock, stall_seconds),
        known_authority_routes(database, clock),
        token_router,
        device_router,
        revocation_router,
        operator_role_router,
        lifecycle_router,
        inventory_router,
        group_router,
        claim_router,
        manufacturer_router,
        device_list_router,
        approval_router,
        renewal_router,
        renewal_info_router,
    )
    for router in routers:
        # As they were made with their modules. `include_router` would make all anew, at the first request of each
        # process: a twentieth of a second. What it would add to them only the document shows.
        app.routes.extend(router.routes)
    _describe(app, routers)
    return app


def _describe(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Give *app*, which has the routes of *routers*, the document that describes them: to whoever asks."""
    made: asyncio.Task[bytes] | None = None

    def make() -> bytes:
        from provisioning.api.document import document_of  # With what nobody needs who does not ask.

        return json.dumps(document_of(app, routers)).encode()

    @app.get(DOCUMENT, include_in_schema=False)
    async def document() -> Response:
        nonlocal made
        if made is None or (made.done() and made.exception() is not None):
            made = asyncio.create_task(asyncio.to_thread(make))
        content = await shielded(made)
        headers = {"Content-Length": str(len(content))}
        return StreamingResponse(_parts(content), headers=headers, media_type="application/json")


async def _parts(content: bytes) -> AsyncIterator[bytes]:
    """Give *content* away in parts: whoever asks for it and reads nothing has no copy of his own kept for him."""
    for begin in range(0, len(content), _PART):
        yield content[begin : begin + _PART]
        await asyncio.sleep(0)  # It is encrypted, and if it is not taken the next one waits.


def _fields(error: RequestValidationError, route: object) -> str:
    found = []
    for each in error.errors()[:10]:
        if each["type"] == "json_invalid":
            return f"the body is not valid JSON: {each['ctx']['error']} at character {each['loc'][-1]}"
        where = ".".join(str(part) for part in each["loc"] if part not in ("body", "query", "path"))
        said = no_such_field(route, each["loc"]) if each["type"] == "extra_forbidden" else each["msg"]
        found.append(f"{where or 'the body'}: {said}")
    return "; ".join(found)
