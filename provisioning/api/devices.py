"""The operators' REST API for devices, and for the state of the whole: list, show, count."""

from __future__ import annotations

from typing import Any, Final

from provisioning.api.operators import DEFAULT_PAGE, Limit, Name, Services, new_router, page_of, rfc3339
from provisioning.errors import Code, Refused
from provisioning.store import devices, inventory, tokens
from provisioning.store.devices import Device, DeviceState

router: Final = new_router()


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
    return page_of([_device_item(device, issued) for device, issued in found], limit)


@router.get("/devices/{name}")
async def show_device(name: str, services: Services) -> dict[str, Any]:
    """Show one device."""
    found = await services.database.read(lambda connection: devices.page(connection, limit=1, after=None, name=name))
    if not found:
        raise Refused(Code.DEVICE_UNKNOWN, f"no device is called {name[:80]!r}")
    return _device_item(*found[0])


@router.get("/status")
async def status(services: Services) -> dict[str, Any]:
    """Count what there is, and say how fresh the CRLs are."""
    now = services.clock()
    device_counts, uncertified, certificate_counts, open_tokens = await services.database.read(
        lambda connection: (
            devices.count(connection),
            devices.count_without_certificate(connection, now),
            inventory.count(connection, now),
            tokens.count_open(connection, now),
        )
    )
    return {
        "devices": device_counts,
        "active_devices_without_certificate": uncertified,
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
