"""The operators' REST API for tokens that exist: list, show, void. A token itself is shown nowhere here."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from fastapi import Path as PathParameter

from provisioning.api.idempotency import IdempotentRoute
from provisioning.api.moment import utc_of
from provisioning.api.operators import (
    DEFAULT_PAGE,
    PREFIX,
    Limit,
    Name,
    Operator,
    Services,
    authorise_operator,
    rfc3339,
)
from provisioning.api.route_roles import for_role
from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.identity import Role
from provisioning.store import token_inventory
from provisioning.store.token_inventory import KnownToken, TokenFilter, TokenState

router: Final = APIRouter(prefix=PREFIX, dependencies=[Depends(authorise_operator)], route_class=IdempotentRoute)
"""Every route here needs an operator certificate, as those of `provisioning.api.operators`."""

Number = Annotated[int, PathParameter(ge=1, le=2**63 - 1)]
After = Annotated[int, Query(ge=0, le=2**63 - 1)]


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
    """List tokens, oldest first. ``next`` is the cursor of the page that follows."""
    wanted = TokenFilter(state, group, device, utc_of(expires_before))
    found = await services.database.read(
        lambda connection: token_inventory.page(connection, wanted, limit=limit + 1, after=after, now=services.clock())
    )
    items = [_item(each) for each in found[:limit]]
    return {"items": items, "next": str(items[-1]["id"]) if len(found) > limit else None}


@router.get("/tokens/{number}")
async def show_token(number: Number, services: Services) -> dict[str, Any]:
    """Show what became of one token. Those that ended long ago are removed (``token_retention``)."""
    found = await services.database.read(lambda connection: token_inventory.find(connection, number, services.clock()))
    if found is None:
        raise Refused(Code.TOKEN_NUMBER_UNKNOWN, f"there is no token {number}, or it was removed after its end")
    return _item(found)


@router.delete("/tokens/{number}")
@for_role(OperatorRole.ENROLLER)
async def void_token(number: Number, operator: Operator, services: Services) -> dict[str, Any]:
    """Make a token worthless. Again, or after its time: nothing changes. 409 if it has bought a certificate.

    An enroller may void those of devices; for brokers, services and operators it takes an admin.
    """

    def check(token: KnownToken) -> None:
        if token.role is not Role.DEVICE:
            operator.check(OperatorRole.ADMIN, f"voiding a token with role {token.role}")

    return _item(await services.token_service.void(number, check, by=operator.device.name))


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
        "voided_at": _moment(token.voided_at),
        "used_at": _moment(token.used_at),
        "serial": token.serial,
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)
