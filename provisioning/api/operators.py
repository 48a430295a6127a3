"""The operators' REST API under ``/v1``: enrolment tokens, devices, certificates, revocation, status.

Every route reads, calls a service or the store, and writes; who may call is one dependency, `authorise_operator`, which
closes what nobody has opened: without a mark (`for_role`) auditors may read and only admins change.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from starlette.types import Scope

from provisioning.api.idempotency import AnswerBook, IdempotentRoute
from provisioning.api.operator_checks import OperatorChecks
from provisioning.api.peer import peer_certificate, peer_certificate_der
from provisioning.api.route_roles import asked_of, for_role, needed_role
from provisioning.enrolment.authentication import AuthenticatedOperator
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.enrolment.tokens import DEFAULT_TTL, MAXIMUM_BATCH, IssuedToken, TokenOrder, TokenService
from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.identity import Role
from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.publisher import CrlPublisher
from provisioning.revocation.service import RevocationService, Revoked
from provisioning.revocation.suspension import SuspensionService
from provisioning.store import devices, inventory, tokens
from provisioning.store.database import Database
from provisioning.store.devices import Device, DeviceState

PREFIX: Final = "/v1"
MAXIMUM_PAGE: Final = 1000
MAXIMUM_REVOCATIONS: Final = 1000
"""In one batch: one transaction, which nobody else should have to wait for."""
DEFAULT_PAGE: Final = 100

Limit = Annotated[int, Query(ge=1, le=MAXIMUM_PAGE)]
Name = Annotated[str, Field(max_length=64)]


DONE_BEFORE: Final[dict[int | str, dict[str, Any]]] = {
    HTTPStatus.OK: {"description": "Nothing was left to do; the answer has the facts as they are."}
}
"""For routes that change nothing when they are called again."""


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


Serial = Annotated[str, Field(max_length=64)]


class RevocationRequest(BaseModel):
    """What to revoke: a ``device`` with all its certificates, one certificate by ``serial``, or many in one step."""

    model_config = ConfigDict(extra="forbid")

    device: Name | None = None
    serial: Serial | None = None
    devices: Annotated[list[Name], Field(max_length=MAXIMUM_REVOCATIONS)] = []
    serials: Annotated[list[Serial], Field(max_length=MAXIMUM_REVOCATIONS)] = []
    reason: RevocationReason = RevocationReason.UNSPECIFIED
    invalidity_date: AwareDatetime | None = None
    """Since when it is known or suspected not to be trusted (RFC 5280 §5.3.2)."""

    @model_validator(mode="after")
    def _one_kind(self) -> RevocationRequest:
        many = bool(self.devices or self.serials)
        if (self.device is not None) + (self.serial is not None) + many != 1:
            raise ValueError("give exactly one of device and serial, or lists: devices, serials or both")
        return self


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

    async def authorise(self, request: Request) -> AuthenticatedOperator:
        """Return who calls; raise `Refused` unless it is an operator whose role suffices for the route."""
        return await self.check(request.scope, request.scope["endpoint"])

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
        """Do the same for the route that ends at *endpoint*."""
        operator = await self.checks.operator(peer_certificate(scope), peer_certificate_der(scope) or b"")
        method = scope["method"]
        operator.check(needed_role(method, endpoint), f"{method} {scope['path'][:80]}")
        return operator


async def _services_of(request: Request) -> OperatorServices:
    services: OperatorServices = request.app.state.operator_services
    return services


Services = Annotated[OperatorServices, Depends(_services_of)]


async def authorise_operator(request: Request, services: Services) -> AuthenticatedOperator:
    """Return who calls; raise `Refused` unless it is an operator whose role suffices for the route."""
    return await services.authorise(request)


Operator = Annotated[AuthenticatedOperator, Depends(authorise_operator)]

router: Final = APIRouter(prefix=PREFIX, dependencies=[Depends(authorise_operator)], route_class=IdempotentRoute)
"""Every route here needs an operator certificate; `app.state.operator_services` says what they call."""


@router.post("/tokens", status_code=HTTPStatus.CREATED)
@for_role(OperatorRole.ENROLLER, TokensRequest)
async def create_tokens(body: TokensRequest, operator: Operator, services: Services) -> dict[str, Any]:
    """Make one-time enrolment tokens. They are shown here and never again.

    An enroller makes them for devices; for brokers, services and operators it takes an admin.
    """
    body.check(operator)
    issued = await services.token_service.create(body.order(), by=operator.device.name)
    return {"tokens": [_token_item(each) for each in issued]}


@router.get("/devices")
async def list_devices(
    services: Services,
    limit: Limit = DEFAULT_PAGE,
    after: Name | None = None,
    group: Name | None = None,
    state: DeviceState | None = None,
) -> dict[str, Any]:
    """List devices in order of name. ``next`` is the cursor of the page that follows."""
    found = await services.database.read(
        lambda connection: devices.page(connection, limit=limit + 1, after=after, group=group, state=state)
    )
    items = [_device_item(device, issued) for device, issued in found[:limit]]
    return {"items": items, "next": items[-1]["name"] if len(found) > limit else None}


@router.get("/devices/{name}")
async def show_device(name: str, services: Services) -> dict[str, Any]:
    """Show one device."""
    found = await services.database.read(lambda connection: devices.page(connection, limit=1, after=None, name=name))
    if not found:
        raise Refused(Code.DEVICE_UNKNOWN, f"no device is called {name[:80]!r}")
    return _device_item(*found[0])


@router.post("/revocations", status_code=HTTPStatus.CREATED, responses=DONE_BEFORE)
async def revoke(body: RevocationRequest, operator: Operator, services: Services, response: Response) -> dict[str, Any]:
    """Revoke, finally. 201 if this call did it, 200 with the original facts if it was done before.

    ``devices`` and ``serials`` are revoked in one transaction: all of them, or none if one is unknown.
    """
    by, since = operator.device.name, body.invalidity_date
    if body.devices or body.serials:
        serials = [normal_serial(each) for each in body.serials]
        outcome = await services.revocation.revoke_batch(
            body.devices, serials, body.reason, by=by, invalidity_date=since
        )
    elif body.device is not None:
        outcome = await services.revocation.revoke_device(body.device, body.reason, by=by, invalidity_date=since)
    else:
        outcome = await services.revocation.revoke_serial(
            normal_serial(body.serial or ""), body.reason, by=by, invalidity_date=since
        )
    if not outcome.changed:
        response.status_code = HTTPStatus.OK
    return {"revoked": [revoked_item(each) for each in outcome.revoked]}


@router.get("/status")
async def status(services: Services) -> dict[str, Any]:
    """Count what there is, and say how fresh the CRLs are."""
    now = services.clock()
    device_counts, certificate_counts, open_tokens = await services.database.read(
        lambda connection: (
            devices.count(connection),
            inventory.count(connection, now),
            tokens.count_open(connection, now),
        )
    )
    return {
        "devices": device_counts,
        "certificates": certificate_counts,
        "tokens": {"open": open_tokens},
        "feed": {"sequence": services.feed.newest, "subscribers": await services.followers()},
        "crls": {
            name: {
                "number": crl.number,
                "entries": crl.entries,
                "this_update": rfc3339(crl.this_update),
                "next_update": rfc3339(crl.next_update),
            }
            for name, publisher in services.publishers.items()
            if (crl := publisher.current) is not None
        },
    }


def normal_serial(text: str) -> str:
    """Return a serial number as the store writes it, from any usual spelling; raise `Refused` if it is none."""
    digits = text.replace(":", "").lower().removeprefix("0x")
    if not digits or len(digits) > 40 or any(digit not in "0123456789abcdef" for digit in digits):  # noqa: PLR2004 - 20 octets
        raise Refused(Code.INVALID_REQUEST, f"serial {text[:80]!r} is not a serial number in hexadecimal")
    return digits.lstrip("0") or "0"


def rfc3339(moment: datetime) -> str:
    """Return *moment* in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(number: int) -> timedelta:
    # A number of seconds that no timedelta holds is refused like any other that is too large.
    return timedelta(seconds=max(-1, min(number, 10**9)))


def _token_item(issued: IssuedToken) -> dict[str, Any]:
    return {
        "device": issued.grant.device,
        "group": issued.grant.group,
        "role": issued.grant.role,
        "token": issued.token,
        "id": issued.number,
        "expires_at": rfc3339(issued.expires_at),
    }


def _device_item(device: Device, issued: int) -> dict[str, Any]:
    return {
        "name": device.name,
        "role": device.role,
        "group": device.group,
        "state": device.state,
        "created_at": rfc3339(device.created_at),
        **{
            name: None if moment is None else rfc3339(moment)
            for name, moment in (
                ("suspended_at", device.suspended_at),
                ("revoked_at", device.revoked_at),
                ("decommissioned_at", device.decommissioned_at),
            )
        },
        "certificates": issued,
    }


def revoked_item(revoked: Revoked) -> dict[str, Any]:
    """Return a revocation as an answer tells it."""
    return {
        "serial": revoked.serial,
        "device": revoked.device,
        "reason": revoked.reason,
        "revoked_at": rfc3339(revoked.revoked_at),
        "sequence": revoked.sequence,
        "invalidity_date": None if revoked.invalidity_date is None else rfc3339(revoked.invalidity_date),
    }
