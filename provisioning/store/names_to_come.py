"""Queries about names that are promised to a device that has not come: who would be whom, in which group.

Whoever ends such a name, because its token was copied or the device stolen on its way, means that nobody gets it. So it
is recorded like a device, with no certificate, and as one that only ever had trials, all of them over: it counts in no
group, and with a token of later it may be somebody else's (`provisioning.enrolment.authorise`).

Rules
-----
1. Promised are names that a token was bound to which is void now, that are on the list of a group which asks its list,
   or that an operator has approved. A request that waits is nobody's promise: strangers may make it. Nor is a
   manufacturer's prefix one of a name: whoever mistypes a device's would end nobody, and believe it done.
2. It is asked only of a name that nobody has. Lists and approvals have no index of names alone, so each group that asks
   them is asked by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.pki.role import Role
from provisioning.store import approvals, certificates_of_device, groups, listed_devices, tokens
from provisioning.store.devices import Device, DeviceState
from provisioning.store.groups import NewKey, WayName


@dataclass(frozen=True, slots=True)
class Place:
    """The role and group that a name is promised."""

    role: Role
    group: str | None


def promised(connection: Connection, names: Sequence[str], voided_at: datetime) -> dict[str, Place]:
    """Return the places of those of *names* that are promised; of tokens, by those that were voided at that moment.

    If there are several, that of the last token counts, or of the first group.
    """
    found = {
        name: Place(Role(role), group) for name, role, group in tokens.voided_of_each(connection, names, voided_at)
    }
    left = [name for name in names if name not in found]
    for group in groups.every(connection) if left else ():
        ways = {way for alternative in group.ways for way in alternative}
        expected = set[str]()
        if WayName.LISTED in ways:
            expected |= listed_devices.in_force(connection, group.name, left)
        if WayName.APPROVAL in ways or group.new_key is NewKey.APPROVE:
            expected |= approvals.approved(connection, group.name, left)
        found |= {name: Place(Role.DEVICE, group.name) for name in expected if name not in found}
    return found


def never_came(connection: Connection, device: Device) -> bool:
    """Whether *device* is a name that was revoked before anybody had a certificate of it."""
    if device.trial_ends_at is None or device.state is not DeviceState.REVOKED:
        return False
    return certificates_of_device.newest(connection, device.id) is None
