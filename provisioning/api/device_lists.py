"""The operators' REST API for lists of expected devices."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from provisioning.api.administration import Administration
from provisioning.api.operators import DEFAULT_PAGE, Limit, Name, Operator, new_router, page_of
from provisioning.api.route_roles import for_role
from provisioning.enrolment.device_list import MAXIMUM_BATCH
from provisioning.operator_role import OperatorRole
from provisioning.program.moments import rfc3339
from provisioning.store.listed_devices import ListEntry

router: Final = new_router()


class Expected(BaseModel):
    """A device that is expected; ``key_sha256`` is its public key's SHA-256, if it is known."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=200)]
    key_sha256: Annotated[str, Field(max_length=200)] | None = None


class Batch(BaseModel):
    """Devices to expect; an error in one does not affect the others."""

    model_config = ConfigDict(extra="forbid")

    devices: Annotated[list[Expected], Field(min_length=1, max_length=MAXIMUM_BATCH)]


@router.post("/groups/{group}/listed")
@for_role(OperatorRole.ENROLLER)
async def list_devices(group: str, body: Batch, operator: Operator, administration: Administration) -> dict[str, Any]:
    """Put devices on a group's list. ``errors`` names those that were refused by their place in the request, from 0."""
    batch = [(each.name, each.key_sha256) for each in body.devices]
    outcome = await administration.lists.add(group, batch, by=operator.device.name)
    errors = [{"index": place, "detail": detail} for place, detail in outcome.errors.items()]
    return {"new": outcome.new, "replaced": outcome.replaced, "errors": errors}


@router.get("/groups/{group}/listed")
async def listed_devices(
    group: str, administration: Administration, limit: Limit = DEFAULT_PAGE, after: Name | None = None
) -> dict[str, Any]:
    """List the devices that a group expects, in order of name. ``next`` is the cursor of the page that follows."""
    found = await administration.lists.page(group, limit=limit + 1, after=after)
    return page_of([_item(each) for each in found], limit)


def _item(entry: ListEntry) -> dict[str, Any]:
    key = entry.device.spki_sha256
    return {
        "name": entry.device.name,
        "key_sha256": None if key is None else key.hex(),
        "added_at": rfc3339(entry.added_at),
        "added_by": entry.added_by,
        "also_by": entry.also_by,
        "ended_at": rfc3339(entry.ended_at),
    }


@router.delete("/operators/{name}/listed")
async def end_listed_by(name: str, operator: Operator, administration: Administration) -> dict[str, Any]:
    """End what an operator has put on lists and nobody else has, too: it lets nobody in until another lists it again.

    With keyCompromise that is done by the operator's revocation.
    """
    ended = await administration.lists.end_of(name, by=operator.device.name)
    return {"name": name, "listed_ended": sum(ended.values()), "lists_ended": [*ended]}


@router.delete("/groups/{group}/listed/{name}", status_code=HTTPStatus.NO_CONTENT)
@for_role(OperatorRole.ENROLLER)
async def unlist_device(group: str, name: str, operator: Operator, administration: Administration) -> Response:
    """Take a device off a group's list. If it has enrolled already, it stays enrolled."""
    await administration.lists.remove(group, name, by=operator.device.name)
    return Response(status_code=HTTPStatus.NO_CONTENT)
