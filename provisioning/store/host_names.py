"""Whose host name it is: a name that a device has asked for is in no other device's certificate.

Rules
-----
1. Claiming and issuing are one transaction: an issuance that fails claims nothing.
2. A name is its device's for as long as that has, or may have again, a certificate with it. It is free when the device
   was revoked or decommissioned, and when all that it ever had were trials that ended without an activation.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.store.claims import never_activated
from provisioning.store.devices import DeviceState, device_from
from provisioning.store.prepared import Prepared
from provisioning.store.tables import devices, host_names

_HOLDER: Final = Prepared(
    select(devices).select_from(host_names.join(devices)).where(host_names.c.name == bindparam("wanted")), at_once=True
)
_ADD: Final = Prepared(insert(host_names), told_by="name")
_MOVE: Final = Prepared(
    update(host_names).where(host_names.c.name == bindparam("wanted")).values(device_id=bindparam("new_device")),
    at_once=True,
)
_OVER: Final = frozenset({DeviceState.REVOKED, DeviceState.DECOMMISSIONED})


def claim(connection: Connection, name: str, device_id: int, now: datetime) -> bool:
    """Make the host name the device's; return False if it is another's *now*."""
    row = _HOLDER.first(connection, {"wanted": name})
    if row is None:
        _ADD.run(connection, {"name": name, "device_id": device_id})
        return True
    holder = device_from(row)
    if holder.id == device_id:
        return True
    if holder.state not in _OVER and not never_activated(holder, now):
        return False
    _MOVE.run(connection, {"wanted": name, "new_device": device_id})
    return True
