"""The operators' REST API for claim certificates."""

from __future__ import annotations

import ssl
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from provisioning.api.administration import Administration
from provisioning.api.operators import (
    DEFAULT_PAGE,
    Limit,
    Name,
    Operator,
    new_router,
    page_of,
)
from provisioning.enrolment.claims import DEFAULT_TRIAL, ClaimOrder
from provisioning.program.moments import rfc3339
from provisioning.store.claims import StoredClaim

router: Final = new_router()

Seconds = Annotated[int, Field(ge=0, le=10**12)]
"""What a timedelta holds: how long each may be, the services know, and say with units."""


class NewClaim(BaseModel):
    """A claim certificate to make, for ``maximum_devices`` new devices of ``group``."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    group: Name
    maximum_devices: Annotated[int, Field(ge=0, le=10**9)]
    life_seconds: Seconds
    activation_seconds: Seconds = int(DEFAULT_TRIAL.total_seconds())


@router.post("/claims", status_code=HTTPStatus.CREATED)
async def create_claim(body: NewClaim, operator: Operator, administration: Administration) -> dict[str, Any]:
    """Make a claim certificate. Its private key is only in this answer; the service does not keep it."""
    order = ClaimOrder(
        body.name,
        body.group,
        body.maximum_devices,
        timedelta(seconds=body.life_seconds),
        timedelta(seconds=body.activation_seconds),
    )
    issued = await administration.claims.create(order, by=operator.device.name)
    return _item(issued.claim) | {"private_key": issued.key_pem.decode()}


@router.get("/claims")
async def list_claims(
    administration: Administration, limit: Limit = DEFAULT_PAGE, after: Name | None = None
) -> dict[str, Any]:
    """List claims in order of name. ``next`` is the cursor of the page that follows."""
    found = await administration.claims.page(limit=limit + 1, after=after)
    return page_of([_item(each) for each in found], limit)


@router.get("/claims/{name}")
async def show_claim(name: str, administration: Administration) -> dict[str, Any]:
    """Show one claim."""
    return _item(await administration.claims.find(name))


@router.delete("/claims/{name}")
async def end_claim(name: str, operator: Operator, administration: Administration) -> dict[str, Any]:
    """End a claim: no device can enrol with it any more. It stays in the list."""
    return _item(await administration.claims.end(name, by=operator.device.name))


def _item(claim: StoredClaim) -> dict[str, Any]:
    return {
        "name": claim.name,
        "group": claim.group,
        "maximum_devices": claim.maximum_devices,
        "used": claim.used,
        "activation_seconds": int(claim.trial.total_seconds()),
        "expires_at": rfc3339(claim.expires_at),
        "ended_at": rfc3339(claim.ended_at),
        "fingerprint_sha256": claim.fingerprint_sha256,
        "certificate": ssl.DER_cert_to_PEM_cert(claim.der),
        "created_at": rfc3339(claim.created_at),
        "created_by": claim.created_by,
    }
