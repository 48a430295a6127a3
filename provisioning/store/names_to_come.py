"""Queries about names that are promised to a device that has not come: who would be whom, in which group.

Whoever ends such a name, because its token was copied or the device stolen on its way, means that nobody gets it. So it
is recorded like a device, with no certificate, and as one that only ever had trials, all of them over: it counts in no
group, and with a token of later it may be somebody else's (`provisioning.enrolment.authorise`).

Rules
-----
1. Promised are names that a token was bound to which is void now, that are on the list of a group which asks its list,
   or that an operator has approved. A request that waits is nobody's promise: strangers may make it. Nor is a
   manufacturer's prefix one of a name: whoever mistypes a device's would end nobody, and believe it done.
2. What is over promises nothing: a token that had expired, an approval that has lapsed. A role does not end with the
   token that it was promised with: whoever revokes the name ends the role.
3. It is asked only of a name that nobody has, under the lock of all writers. Lists and approvals have no index of names
   alone: a statement asks all groups together, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.pki.role import Role
from provisioning.store import approvals, certificates_of_device, groups, listed_devices, operators, tokens
from provisioning.store.devices import Device, DeviceState
from provisioning.store.groups import NewKey, WayName


@dataclass(frozen=True, slots=True)
class Place:
    """The role and group that a name is promised."""

    role: Role
    group: str | None


def promised(connection: Connection, names: Sequence[str], now: datetime) -> dict[str, Place]:
    """Return the places of those of *names* that are promised; of tokens, by those that were voided *now*.

    If there are several, that of the last token counts, or of the first group.
    """
    found = {name: Place(Role(role), group) for name, role, group in tokens.voided_of_each(connection, names, now)}
    for name in operators.with_more_than_reading(connection, names):
        found.setdefault(name, Place(Role.OPERATOR, None))
    left = [name for name in names if name not in found]
    listed, approved = list[str](), list[str]()
    for group in groups.every(connection) if left else ():
        ways = {way for alternative in group.ways for way in alternative}
        if WayName.LISTED in ways:
            listed.append(group.name)
        if WayName.APPROVAL in ways or group.new_key is NewKey.APPROVE:
            approved.append(group.name)
    expected = listed_devices.in_force(connection, listed, left) | approvals.approved(connection, approved, left, now)
    for name, place in sorted(expected):
        found.setdefault(name, Place(Role.DEVICE, place))
    return found


def has_come(connection: Connection, device: Device) -> bool:
    """Whether *device* ever had a certificate."""
    return device.trial_ends_at is None or certificates_of_device.newest(connection, device.id) is not None


def never_came(connection: Connection, device: Device) -> bool:
    """Whether *device* is a name that was revoked before anybody had a certificate of it."""
    return device.state is DeviceState.REVOKED and not has_come(connection, device)
