"""The operators' REST API to suspend, resume and decommission: one, or many in one step."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from provisioning.api.idempotency import repeatable
from provisioning.api.operators import (
    DONE_BEFORE,
    Name,
    Operator,
    Services,
    new_router,
)
from provisioning.api.revocations import MAXIMUM_TOGETHER, Target, ended_answer, named_serial, revoked_item
from provisioning.program.moments import rfc3339
from provisioning.revocation.holds import Released
from provisioning.revocation.others_for_key import others_for_keys

router: Final = new_router()


class DeviceTarget(BaseModel):
    """A ``device`` as a whole, or many ``devices`` in one step."""

    model_config = ConfigDict(extra="forbid")

    device: Name | None = None
    devices: Annotated[list[Name], Field(max_length=MAXIMUM_TOGETHER)] = []

    keep_tokens: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> DeviceTarget:
        if (self.device is not None) + bool(self.devices) != 1:
            raise ValueError("give either device or devices")
        return self


@router.post("/suspensions", status_code=HTTPStatus.CREATED, responses=DONE_BEFORE)
@repeatable
async def suspend(body: Target, operator: Operator, services: Services, response: Response) -> dict[str, Any]:
    """Suspend until resumed. 201 if this call did it, 200 with the original record if it was done before.

    ``devices`` and ``serials`` are suspended together. If one cannot be, none is; ``items`` of the problem document
    lists each one that cannot. Tokens that an operator has made are void while that is suspended as a whole, by
    ``device`` or ``devices``. A ``serial`` is one certificate: others for the same key stay good, and ``same_key``
    tells which, a hundred at most.
    """
    by = operator.device.name
    serials = body.normal_serials if body.serial is None else [named_serial(body.serial)]
    if body.devices or body.serials:
        outcome = await services.suspension.suspend_batch(body.devices, serials, by=by)
    elif body.device is not None:
        outcome = await services.suspension.suspend_device(body.device, by=by)
    else:
        outcome = await services.suspension.suspend_serial(*serials, by=by)
    if not outcome.changed:
        response.status_code = HTTPStatus.OK
    others = await others_for_keys(services.database, services.clock, serials)
    return {
        "suspended": [revoked_item(each) for each in outcome.revoked],
        "same_key": [{"serial": each.serial, "device": each.device} for each in others],
    }


@router.post("/resumptions", status_code=HTTPStatus.CREATED, responses=DONE_BEFORE)
async def resume(body: Target, operator: Operator, services: Services, response: Response) -> dict[str, Any]:
    """End a suspension. 201 if this call did it, 200 if nothing was suspended in that way.

    A device as a whole and a certificate by itself (``serial``) are suspended independently of each other. If both are,
    the certificate stays suspended until both are resumed: it is in ``still_suspended`` then, with ``by_itself`` true
    if its own suspension is left, and false if its device's is.
    ``devices`` and ``serials`` are resumed together. If one cannot be, none is; ``items`` of the problem document lists
    each one that cannot.
    """
    by = operator.device.name
    if body.devices or body.serials:
        outcome = await services.suspension.resume_batch(body.devices, body.normal_serials, by=by)
    elif body.device is not None:
        outcome = await services.suspension.resume_device(body.device, by=by)
    else:
        outcome = await services.suspension.resume_serial(named_serial(body.serial or ""), by=by)
    if not outcome.changed:
        response.status_code = HTTPStatus.OK
    still = [{"serial": each.serial, "device": each.device, "by_itself": each.by_itself} for each in outcome.still_held]
    return {"resumed": [_released_item(each) for each in outcome.released], "still_suspended": still}


@router.post("/decommissions", status_code=HTTPStatus.CREATED, responses=DONE_BEFORE)
@repeatable
async def decommission(
    body: DeviceTarget, operator: Operator, services: Services, response: Response
) -> dict[str, Any]:
    """Revoke a device with cessationOfOperation and never certify its name again. 200 if it was done before.

    ``devices`` are decommissioned together. If one cannot be, none is; ``items`` of the problem document lists each one
    that cannot. Of operators ``keep_tokens`` keeps what they have promised, as in a revocation,
    until a later call without it.
    """
    by, keep = operator.device.name, body.keep_tokens
    if body.device is not None:
        outcome = await services.revocation.decommission(body.device, by=by, keep_tokens=keep)
    else:
        outcome = await services.revocation.decommission_batch(body.devices, by=by, keep_tokens=keep)
    if not outcome.changed:
        response.status_code = HTTPStatus.OK
    return ended_answer(outcome)


def _released_item(released: Released) -> dict[str, Any]:
    return {
        "serial": released.serial,
        "device": released.device,
        "released_at": rfc3339(released.released_at),
        "sequence": released.sequence,
    }
