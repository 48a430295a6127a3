"""The operators' REST API for devices, and for the state of the whole: list, show, count."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.engine import Connection

from provisioning.api.operators import DEFAULT_PAGE, Limit, Name, Services, new_router
from provisioning.program.build import build_identity
from provisioning.program.moments import rfc3339
from provisioning.program.version import product_version
from provisioning.store import device_inventory, devices, inventory, known_authorities, tokens
from provisioning.store.device_inventory import DeviceSearch, ShownDevice, Standing
from provisioning.store.devices import DeviceState
from provisioning.store.near_devices import no_such_device

router: Final = new_router()


@router.get("/devices")
async def list_devices(
    services: Services,
    limit: Limit = DEFAULT_PAGE,
    after: Name | None = None,
    group: Name | None = None,
    state: DeviceState | None = None,
    certificate: Standing | None = None,
    name_part: Name | None = None,
    claim: Name | None = None,
    manufacturer: Name | None = None,
) -> dict[str, Any]:
    """List devices in order of name. ``next`` is the cursor of the page that follows.

    ``name_part`` is found anywhere in a name, in capitals or not. With it, ``state``, ``certificate``, ``claim`` or
    ``manufacturer`` a page may be shorter than ``limit``, or empty, even if ``next`` is not null.
    """
    search, now = DeviceSearch(group, state, certificate, name_part, claim, manufacturer), services.clock()
    found, following = await services.database.page(
        lambda connection: device_inventory.page(connection, search, limit=limit, after=after, now=now)
    )
    return {"items": [_device_item(each) for each in found], "next": following}


@router.get("/devices/{name}")
async def show_device(name: str, services: Services) -> dict[str, Any]:
    """Show one device."""
    now = services.clock()

    def look(connection: Connection) -> ShownDevice:
        found = device_inventory.find(connection, name, now)
        if found is None:
            raise no_such_device(connection, name)
        return found

    return _device_item(await services.database.read(look))


@router.get("/status")
async def status(services: Services) -> dict[str, Any]:
    """Show whether the service is ready, counts by state and how recent the CRLs are."""
    now = services.clock()
    checks = {name: await check() for name, check in services.readiness.items()}
    device_counts, certified, certificate_counts, open_tokens, unknown = await services.database.survey(
        lambda connection: (
            devices.count(connection),
            devices.count_certified(connection, now),
            inventory.count(connection, now),
            tokens.count_open(connection, now),
            known_authorities.unknown(connection),
        )
    )
    return {
        "version": product_version(),
        "build": build_identity(),
        "checks": checks,
        "devices": device_counts,
        "active_devices_without_certificate": device_counts[DeviceState.ACTIVE] - certified,
        "certificates": certificate_counts,
        "tokens": {"open": open_tokens},
        "feed": {"sequence": services.feed.newest, "subscribers": await services.followers()},
        "unknown_authorities": [
            {
                "authority": each.authority,
                "state": each.state,
                "broker": each.broker,
                "said_at": rfc3339(each.said_at),
            }
            for each in unknown
        ],
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


def _device_item(shown: ShownDevice) -> dict[str, Any]:
    device = shown.device
    return {
        "name": device.name,
        "role": device.role,
        "group": device.group,
        "state": device.state,
        "created_at": rfc3339(device.created_at),
        **{
            name: rfc3339(moment)
            for name, moment in (
                ("suspended_at", device.suspended_at),
                ("revoked_at", device.revoked_at),
                ("decommissioned_at", device.decommissioned_at),
                ("certificate_not_after", shown.not_after),
            )
        },
        "certificate": shown.certificate,
        "certificates": shown.issued,
        "claims": shown.admission.claims,
        "manufacturer": shown.admission.manufacturer,
    }
