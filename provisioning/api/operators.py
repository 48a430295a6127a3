"""The operators' REST API under ``/v1``: what all its routes share. The routes are in the neighbouring modules.

Every route reads, calls a service or the store, and writes; authorisation is one dependency, `authorise_operator`,
which is closed by default: without a mark (`for_role`) auditors may read and only admins change. An operator who is
authorised for a change must still be so when it is made: that is checked in each transaction of the request
(`provisioning.store.conditions`), for every route and service.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.types import Scope

from provisioning.api.health import Check
from provisioning.api.idempotency import AnswerBook, IdempotentRoute
from provisioning.api.operator_checks import OperatorChecks
from provisioning.api.peer import peer_certificate, peer_certificate_der, vouch
from provisioning.api.route_roles import asked_of, changes, needed_role
from provisioning.enrolment.authentication import AuthenticatedOperator, check_still
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.enrolment.tokens import TokenService
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.publisher import CrlPublisher
from provisioning.revocation.service import RevocationService
from provisioning.revocation.suspension import SuspensionService
from provisioning.store import conditions
from provisioning.store.database import Database

PREFIX: Final = "/v1"
MAXIMUM_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100

Limit = Annotated[int, Query(ge=1, le=MAXIMUM_PAGE)]
Name = Annotated[str, Field(max_length=64)]


DONE_BEFORE: Final[dict[int | str, dict[str, Any]]] = {
    HTTPStatus.OK: {"description": "Nothing was left to do; the answer has the facts as they are."}
}
"""For routes that change nothing when they are called again."""


@dataclass(frozen=True, slots=True)
class OperatorServices:
    """What the routes call."""

    database: Database
    token_service: TokenService
    revocation: RevocationService
    suspension: SuspensionService
    operator_roles: OperatorRoleService
    feed: RevocationFeed
    publishers: dict[str, CrlPublisher]
    clock: Callable[[], datetime]
    answers: AnswerBook
    checks: OperatorChecks
    followers: Callable[[], Awaitable[int]]
    """Returns how many follow the feed, at every worker."""
    readiness: Mapping[str, Check]
    """What `/readyz` asks."""

    async def authorise(self, request: Request) -> AuthenticatedOperator:
        """Return who calls; raise `Refused` unless it is an operator whose role suffices for the route.

        It is found out once for a request.
        """
        found: AuthenticatedOperator | None = getattr(request.state, "operator", None)
        if found is None:
            found = request.state.operator = await self.check(request.scope, request.scope["endpoint"])
        return found

    async def authorise_whole(self, request: Request) -> AuthenticatedOperator:
        """Do the same, and ask the request's body as well where the route's role depends on that.

        A body that cannot be read is left to the route, which says what is wrong with it.
        """
        operator = await self.authorise(request)
        asked = asked_of(request.scope["endpoint"])
        if asked is not None:
            with contextlib.suppress(ValueError, RecursionError):  # As the framework reads it; a refusal is neither.
                asked.model_validate(json.loads(await request.body())).check(operator)
        return operator

    async def check(self, scope: Scope, endpoint: object) -> AuthenticatedOperator:
        """Do the same for the route that ends at *endpoint*; it must still hold where something is changed."""
        operator = await self.checks.operator(peer_certificate(scope), peer_certificate_der(scope) or b"")
        vouch(scope, operator.device.name)
        method = scope["method"]
        operator.check(needed_role(method, endpoint), f"{method} {scope['path'][:80]}")
        if changes(method):
            conditions.require(lambda connection: check_still(connection, operator, self.clock()))
        return operator


async def _services_of(request: Request) -> OperatorServices:
    services: OperatorServices = request.app.state.operator_services
    return services


Services = Annotated[OperatorServices, Depends(_services_of)]


async def authorise_operator(request: Request, services: Services) -> AuthenticatedOperator:
    """Return who calls; raise `Refused` unless it is an operator whose role suffices for the route."""
    return await services.authorise(request)


Operator = Annotated[AuthenticatedOperator, Depends(authorise_operator)]


def new_router() -> APIRouter:
    """Return a router of the operators' API, all of whose routes need an operator certificate."""
    return APIRouter(prefix=PREFIX, dependencies=[Depends(authorise_operator)], route_class=IdempotentRoute)


def page_of(items: Sequence[dict[str, Any]], limit: int, *, cursor: str = "name") -> dict[str, Any]:
    """Return a page of a list: *limit* of *items*, which are one more if the list goes on, behind the last *cursor*."""
    shown = items[:limit]
    return {"items": shown, "next": str(shown[-1][cursor]) if len(items) > limit else None}


def stretch_of(items: Sequence[dict[str, Any]], following: int | None) -> dict[str, Any]:
    """Return a page of a list of which a stretch was looked at: all of *items*, and where the next page begins."""
    return {"items": items, "next": None if following is None else str(following)}
