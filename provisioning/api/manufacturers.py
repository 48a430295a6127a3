"""The operators' REST API for manufacturers: the CAs whose device certificates open a group."""

from __future__ import annotations

import ssl
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
    rfc3339,
)
from provisioning.store.manufacturers import StoredManufacturer

router: Final = new_router()


class NewManufacturer(BaseModel):
    """A CA (PEM) whose device certificates open ``group``; a device is called ``name_prefix`` + its serialNumber."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    group: Name
    certificate: Annotated[str, Field(max_length=64 * 1024)]
    name_prefix: Annotated[str, Field(max_length=64)] = ""


@router.post("/manufacturers", status_code=HTTPStatus.CREATED)
async def add_manufacturer(body: NewManufacturer, operator: Operator, administration: Administration) -> dict[str, Any]:
    """Register a manufacturer's CA."""
    stored = await administration.manufacturers.add(
        name=body.name,
        group=body.group,
        name_prefix=body.name_prefix,
        pem=body.certificate,
        by=operator.device.name,
    )
    return _item(stored)


@router.get("/manufacturers")
async def list_manufacturers(
    administration: Administration, limit: Limit = DEFAULT_PAGE, after: Name | None = None
) -> dict[str, Any]:
    """List manufacturers in order of name. ``next`` is the cursor of the page that follows."""
    found = await administration.manufacturers.page(limit=limit + 1, after=after)
    items = [_item(each) for each in found[:limit]]
    return {"items": items, "next": items[-1]["name"] if len(found) > limit else None}


@router.delete("/manufacturers/{name}")
async def end_manufacturer(name: str, operator: Operator, administration: Administration) -> dict[str, Any]:
    """End the trust in a manufacturer: its certificates let nobody in any more. It stays in the list."""
    return _item(await administration.manufacturers.end(name, by=operator.device.name))


def _item(manufacturer: StoredManufacturer) -> dict[str, Any]:
    return {
        "name": manufacturer.name,
        "group": manufacturer.group,
        "name_prefix": manufacturer.name_prefix,
        "ended_at": None if manufacturer.ended_at is None else rfc3339(manufacturer.ended_at),
        "fingerprint_sha256": manufacturer.fingerprint_sha256,
        "certificate": ssl.DER_cert_to_PEM_cert(manufacturer.der),
        "created_at": rfc3339(manufacturer.created_at),
        "created_by": manufacturer.created_by,
    }
