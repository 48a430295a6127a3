"""The operators' REST API for enrolment tokens: make, list, show, void. A token is shown once, to its maker."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Path as PathParameter
from fastapi import Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from provisioning.api.idempotency import repeatable
from provisioning.api.moment import utc_of
from provisioning.api.operators import (
    DEFAULT_PAGE,
    DONE_BEFORE,
    Limit,
    Name,
    Operator,
    Services,
    new_router,
    stretch_of,
)
from provisioning.api.revocations import MAXIMUM_TOGETHER
from provisioning.api.route_roles import for_role
from provisioning.enrolment.authentication import AuthenticatedOperator
from provisioning.enrolment.tokens import DEFAULT_TTL, MAXIMUM_BATCH, IssuedToken, TokenOrder
from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.role import Role
from provisioning.program.moments import rfc3339
from provisioning.store import token_inventory
from provisioning.store.token_inventory import KnownToken, TokenFilter, TokenState

router: Final = new_router()

_LARGEST: Final = 2**63 - 1
Number = Annotated[int, PathParameter(ge=1, le=_LARGEST)]
After = Annotated[int, Query(ge=0, le=_LARGEST)]


class TokensRequest(BaseModel):
    """Which enrolment tokens to make: for ``device``, for each of ``devices``, or for new devices of ``group``."""

    model_config = ConfigDict(extra="forbid")

    device: Name | None = None
    devices: Annotated[list[Name], Field(min_length=1, max_length=MAXIMUM_BATCH)] | None = None
    group: Name | None = None
    role: Role = Role.DEVICE
    operator_role: OperatorRole | None = None
    ttl_seconds: int = int(DEFAULT_TTL.total_seconds())
    lifetime_seconds: int | None = None
    count: int = 1
    dns_names: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=32)] = []
    ip_addresses: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=32)] = []

    @model_validator(mode="after")
    def _one_of_device_and_devices(self) -> TokensRequest:
        if self.device is not None and self.devices is not None:
            raise ValueError("give device or devices, not both")
        return self

    def check(self, operator: AuthenticatedOperator) -> None:
        """Raise `Refused` unless *operator* may make them: an enroller for devices, an admin for everybody."""
        if self.role is not Role.DEVICE:
            operator.check(OperatorRole.ADMIN, f"a token with role {self.role}")

    def order(self) -> TokenOrder:
        """Return what the token service makes of it."""
        named = self.devices or ([self.device] if self.device is not None else [])
        ttl, lifetime = _seconds(self.ttl_seconds), None
        if self.lifetime_seconds is not None:
            lifetime = _seconds(self.lifetime_seconds)
        return TokenOrder(
            named,
            self.group,
            self.role,
            ttl,
            self.count,
            self.dns_names,
            self.ip_addresses,
            lifetime,
            self.operator_role,
        )


@router.post("/tokens", status_code=HTTPStatus.CREATED)
@for_role(OperatorRole.ENROLLER, TokensRequest)
async def create_tokens(body: TokensRequest, operator: Operator, services: Services) -> dict[str, Any]:
    """Make one-time enrolment tokens. They are shown only in this answer.

    An enroller may make them for devices; those for brokers, services and operators need an admin. ``device_state`` is
    that of a device that is here already, which the token admits again, also after a revocation, with any key.
    """
    body.check(operator)
    issued = await services.token_service.create(body.order(), by=operator.device.name)
    return {"tokens": [_token_item(each) for each in issued]}


@router.get("/tokens")
async def list_tokens(
    services: Services,
    limit: Limit = DEFAULT_PAGE,
    after: After = 0,
    state: TokenState | None = None,
    group: Name | None = None,
    device: Name | None = None,
    expires_before: datetime | None = None,
) -> dict[str, Any]:
    """List tokens, oldest first. ``next`` is the cursor of the page that follows.

    With a filter a page may be shorter than ``limit``, or empty, even if ``next`` is not null.
    """
    wanted = TokenFilter(state, group, device, utc_of(expires_before))
    found, following = await services.database.page(
        lambda connection: token_inventory.page(connection, wanted, limit=limit, after=after, now=services.clock())
    )
    return stretch_of([_item(each) for each in found], following)


@router.get("/tokens/{number}")
async def show_token(number: Number, services: Services) -> dict[str, Any]:
    """Show one token and its state. Tokens that ended long ago are removed (``token_retention``)."""
    found = await services.database.read(lambda connection: token_inventory.find(connection, number, services.clock()))
    if found is None:
        raise Refused(Code.TOKEN_NUMBER_UNKNOWN, f"no token has the number {number}, or it was removed after its end")
    return _item(found)


@router.delete("/tokens/{number}")
@for_role(OperatorRole.ENROLLER)
async def void_token(number: Number, operator: Operator, services: Services) -> dict[str, Any]:
    """Void a token. If it is void or expired already, nothing changes. 409 if a certificate was issued for it.

    An enroller may void tokens of devices; those of brokers, services and operators need an admin.
    """
    return _item(await services.token_service.void(number, _may_void(operator), by=operator.device.name))


class VoidingRequest(BaseModel):
    """Which tokens to void, by their numbers."""

    model_config = ConfigDict(extra="forbid")

    tokens: Annotated[
        list[Annotated[int, Field(strict=True, ge=1, le=_LARGEST)]], Field(min_length=1, max_length=MAXIMUM_TOGETHER)
    ]


@router.post("/voidings", status_code=HTTPStatus.CREATED, responses=DONE_BEFORE)
@for_role(OperatorRole.ENROLLER)
@repeatable
async def void_tokens(
    body: VoidingRequest, operator: Operator, services: Services, response: Response
) -> dict[str, Any]:
    """Void tokens, together. 201 if this call voided any, 200 if none could be used any more.

    If one is unknown, or the caller may not void it, none is voided; ``items`` of the problem document lists each of
    those. A token that was used is returned with the state ``used`` and its certificate's ``serial``.
    """
    check = _may_void(operator)
    told, changed = await services.token_service.void_batch(body.tokens, check, by=operator.device.name)
    if not changed:
        response.status_code = HTTPStatus.OK
    return {"tokens": [_item(each) for each in told]}


def _may_void(operator: AuthenticatedOperator) -> Callable[[KnownToken], None]:
    """Return what raises `Refused` where *operator* may not void a token."""

    def check(token: KnownToken) -> None:
        if token.role is not Role.DEVICE:
            operator.check(OperatorRole.ADMIN, f"voiding a token with role {token.role}")

    return check


def _seconds(number: int) -> timedelta:
    # A number of seconds that no timedelta holds is refused like any other that is too large.
    return timedelta(seconds=max(-1, min(number, 10**12)))


def _token_item(issued: IssuedToken) -> dict[str, Any]:
    return {
        "device": issued.grant.device,
        "group": issued.grant.group,
        "role": issued.grant.role,
        "token": issued.token,
        "id": issued.number,
        "device_state": issued.device_state,
        "expires_at": rfc3339(issued.expires_at),
    }


def _item(token: KnownToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "device": token.device,
        "group": token.group,
        "role": token.role,
        "state": token.state,
        "created_at": rfc3339(token.created_at),
        "created_by": token.created_by,
        "expires_at": rfc3339(token.expires_at),
        "voided_at": rfc3339(token.voided_at),
        "used_at": rfc3339(token.used_at),
        "serial": token.serial,
    }
