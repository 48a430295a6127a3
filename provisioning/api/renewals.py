"""Renewal information for everybody, and the operators' order to renew before the time."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from provisioning.api.administration import Administration
from provisioning.api.operators import PREFIX, Name, Operator, new_router
from provisioning.program.moments import rfc3339

public_router: Final = APIRouter(prefix=PREFIX)
"""For everybody: whoever has a certificate may know when to renew it."""

router: Final = new_router()


class HastenRequest(BaseModel):
    """Whose certificates to renew now: those of ``group`` or of ``every_group``; spread over ``spread_seconds``."""

    model_config = ConfigDict(extra="forbid")

    group: Name | None = None
    every_group: bool = False
    spread_seconds: Annotated[int, Field(ge=0, le=10**12)] = 0

    @model_validator(mode="after")
    def _exactly_one(self) -> HastenRequest:
        if (self.group is None) != self.every_group:
            raise ValueError("give either group or every_group")
        return self


@public_router.get("/renewal-info/{identifier}")
async def renewal_info(
    identifier: Annotated[str, PathParameter(max_length=200)], administration: Administration, response: Response
) -> dict[str, Any]:
    """Show when a certificate should be renewed (RFC 9773 §4.2); ask again after ``Retry-After``."""
    info = await administration.renewals.info(identifier)
    response.headers["Retry-After"] = str(int(info.retry_after.total_seconds()))
    return {"suggestedWindow": {"start": rfc3339(info.start), "end": rfc3339(info.end)}}


@router.post("/renewals/hasten", status_code=HTTPStatus.CREATED)
async def hasten(body: HastenRequest, operator: Operator, administration: Administration) -> dict[str, Any]:
    """Move the renewal windows of all certificates issued until now into the past, spread over ``spread_seconds``."""
    outcome = await administration.renewals.hasten(
        group=body.group, spread=timedelta(seconds=body.spread_seconds), by=operator.device.name
    )
    return {
        "group": outcome.group,
        "at": rfc3339(outcome.at),
        "spread_seconds": int(outcome.spread.total_seconds()),
        "certificates": outcome.certificates,
    }
