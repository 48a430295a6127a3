"""The operators' REST API for manufacturers: the CAs whose device certificates open a group, and what they revoke."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from provisioning.api.administration import Administration
from provisioning.api.operators import (
    DEFAULT_PAGE,
    DONE_BEFORE,
    Limit,
    Name,
    Operator,
    new_router,
    page_of,
)
from provisioning.enrolment.manufacturer_fetch import MAXIMUM_URLS
from provisioning.enrolment.manufacturers import ManufacturerChange
from provisioning.pki.revocation import unpack
from provisioning.program.moments import rfc3339
from provisioning.store.manufacturer_list_urls import StoredUrl
from provisioning.store.manufacturer_lists import StoredList
from provisioning.store.manufacturers import LapsedLists, RevokedDevices, StoredManufacturer
from provisioning.store.recalls import RecalledDevice

router: Final = new_router()

_BYTES: Final = {"schema": {"type": "string", "format": "binary"}}
_LIST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "One complete CRL (no delta), signed by the registered CA, in DER or PEM.",
        "content": {"application/pkix-crl": _BYTES, "application/octet-stream": _BYTES},
    }
}
"""The body is taken as it is, whatever its media type."""


class NewManufacturer(BaseModel):
    """A CA (PEM) whose devices may enrol in ``group``; a device's name is ``name_prefix`` + its serialNumber."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    group: Name
    certificate: Annotated[str, Field(max_length=64 * 1024)]
    name_prefix: Annotated[str, Field(max_length=64)] = ""


class ManufacturerTerms(BaseModel):
    """Terms to change.

    ``lapsed_lists``: ``refuse`` or ``accept`` devices for which the manufacturer has no list that is still current.
    ``revoked_devices``: ``report``, ``suspend`` or ``revoke`` enrolled devices whose own certificate it revokes.
    ``list_urls``: all URLs that its lists are fetched from; empty: none are fetched.
    """

    model_config = ConfigDict(extra="forbid")

    lapsed_lists: LapsedLists | None = None
    revoked_devices: RevokedDevices | None = None
    list_urls: Annotated[list[str], Field(max_length=MAXIMUM_URLS)] | None = None


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
    return await _item(administration, stored)


@router.get("/manufacturers")
async def list_manufacturers(
    administration: Administration, limit: Limit = DEFAULT_PAGE, after: Name | None = None
) -> dict[str, Any]:
    """List manufacturers in order of name. ``next`` is the cursor of the page that follows."""
    found = await administration.manufacturers.page(limit=limit + 1, after=after)
    return page_of(await _items(administration, found), limit)


@router.get("/manufacturers/{name}")
async def show_manufacturer(name: str, administration: Administration) -> dict[str, Any]:
    """Show one manufacturer, with its CRLs."""
    return await _item(administration, await administration.manufacturers.find(name))


@router.patch("/manufacturers/{name}")
async def change_manufacturer(
    name: str, body: ManufacturerTerms, operator: Operator, administration: Administration
) -> dict[str, Any]:
    """Change a manufacturer's terms. A device on a CRL is always refused, even if the CRL has expired."""
    change = ManufacturerChange(body.lapsed_lists, body.revoked_devices, body.list_urls)
    return await _item(administration, await administration.manufacturers.change(name, change, by=operator.device.name))


@router.get("/manufacturers/{name}/revoked")
async def revoked_devices(
    name: str, administration: Administration, limit: Limit = DEFAULT_PAGE, after: Name | None = None
) -> dict[str, Any]:
    """List devices, in order of name, whose manufacturer has revoked the certificate that they enrolled with.

    ``next`` is the cursor of the page that follows.
    """
    found = await administration.manufacturers.revoked(name, limit=limit + 1, after=after)
    return page_of([_recalled_item(each) for each in found], limit, cursor="device")


@router.delete("/manufacturers/{name}")
async def end_manufacturer(name: str, operator: Operator, administration: Administration) -> dict[str, Any]:
    """Stop trusting a manufacturer: no device can enrol with its certificates any more. It stays in the list."""
    return await _item(administration, await administration.manufacturers.end(name, by=operator.device.name))


@router.post("/manufacturers/{name}/lists", status_code=HTTPStatus.CREATED, responses=DONE_BEFORE, openapi_extra=_LIST)
async def take_list(
    name: str,
    request: Request,
    response: Response,
    operator: Operator,
    administration: Administration,
    *,
    renumbered: bool = False,
    fewer: bool = False,
) -> dict[str, Any]:
    """Take a manufacturer's CRL: devices on it are refused. 201 if it is new, 200 if it is in use already.

    Its thisUpdate must be later than that of the list in use, and its number not lower unless ``renumbered``. One that
    names far fewer certificates is accepted only with ``fewer``.
    """
    taken = await administration.manufacturer_lists.take(
        name, await request.body(), by=operator.device.name, renumbered=renumbered, fewer=fewer
    )
    if not taken.changed:
        response.status_code = HTTPStatus.OK
    return {**_list_item(taken.stored), "revoked": taken.revoked, "released": taken.released}


@router.delete("/manufacturers/{name}/lists/{sha256}")
async def remove_list(
    name: str,
    sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")],
    operator: Operator,
    administration: Administration,
) -> dict[str, Any]:
    """Remove a list that the manufacturer no longer issues. Devices that no other list names may enrol again."""
    removed = await administration.manufacturer_lists.remove(name, bytes.fromhex(sha256), by=operator.device.name)
    return {**_list_item(removed.stored), "released": removed.released}


async def _item(administration: Administration, manufacturer: StoredManufacturer) -> dict[str, Any]:
    (item,) = await _items(administration, [manufacturer])
    return item


async def _items(administration: Administration, found: Sequence[StoredManufacturer]) -> list[dict[str, Any]]:
    lists, urls = await administration.manufacturer_lists.of(found)
    return [_with_lists(each, lists.get(each.id, ()), urls.get(each.id, ())) for each in found]


def _with_lists(
    manufacturer: StoredManufacturer, lists: Iterable[StoredList], urls: Iterable[StoredUrl]
) -> dict[str, Any]:
    return {
        "name": manufacturer.name,
        "group": manufacturer.group,
        "name_prefix": manufacturer.name_prefix,
        "ended_at": rfc3339(manufacturer.ended_at),
        "fingerprint_sha256": manufacturer.fingerprint_sha256,
        "certificate": ssl.DER_cert_to_PEM_cert(manufacturer.der),
        "created_at": rfc3339(manufacturer.created_at),
        "created_by": manufacturer.created_by,
        "lapsed_lists": manufacturer.lapsed_lists,
        "revoked_devices": manufacturer.revoked_devices,
        "list_urls": [
            {
                "url": each.url,
                "fetched_at": rfc3339(each.fetched_at),
                "problem": each.problem or None,
                "due_at": rfc3339(each.due_at),
            }
            for each in urls
        ],
        "lists": [_list_item(each) for each in lists],
    }


def _recalled_item(recalled: RecalledDevice) -> dict[str, Any]:
    said = unpack((b"", int(recalled.serial, 16)), recalled.entry)
    return {
        "device": recalled.device.name,
        "group": recalled.device.group,
        "state": recalled.device.state,
        "idevid": recalled.serial,
        "reason": said.reason,
        "revoked_at": rfc3339(said.revoked_at),
        "found_at": rfc3339(recalled.found_at),
    }


def _list_item(stored: StoredList) -> dict[str, Any]:
    return {
        "number": stored.number,
        "this_update": rfc3339(stored.this_update),
        "next_update": rfc3339(stored.next_update),
        "about": sorted(stored.scope.names),
        "entries": stored.entries,
        "sha256": stored.sha256.hex(),
        "taken_at": rfc3339(stored.taken_at),
        "taken_by": stored.taken_by,
    }
