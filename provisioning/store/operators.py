"""Queries about operators: what each of them may do.

Rules
-----
1. The certificate says that its holder is an operator, this table what the operator may do: that can be changed without
   a new certificate, and takes effect with the next request.
2. An operator who is not in the table may only read.
3. Only `usable_admins` says whether somebody is an admin now: for what an admin does, and for promises made earlier.
4. Each operator's certificates are looked up by themselves: PostgreSQL without statistics, as after a restore, joins
   every certificate of the fleet with its device for them (docs/decisions/0085-index-look-ups-without-statistics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.role import Role
from provisioning.store import certificates_of_device
from provisioning.store.devices import Device, DeviceState, device_from, find_all, of_roles
from provisioning.store.prepared import Prepared
from provisioning.store.tables import devices, operators


@dataclass(frozen=True, slots=True)
class OperatorGrant:
    """The role that an operator was granted, and by whom; None if by nobody."""

    name: str
    role: OperatorRole
    granted_at: datetime | None
    granted_by: str | None


@dataclass(frozen=True, slots=True)
class ShownOperator:
    """An operator in a list; *state* is None before enrolment.

    *good_until* is when the last currently good certificate expires; None: the operator has no access now.
    """

    grant: OperatorGrant
    state: DeviceState | None
    good_until: datetime | None


_ROLE_OF: Final = Prepared(select(operators.c.role).where(operators.c.name == bindparam("wanted")))
_GRANTER: Final = select(operators.c.granted_by).where(operators.c.name == bindparam("wanted"))
_GRANT: Final = (
    update(operators)
    .where(operators.c.name == bindparam("wanted"))
    .values(role=bindparam("new_role"), granted_at=bindparam("now"), granted_by=bindparam("by"))
)

_ADMINS: Final = select(operators.c.name).where(operators.c.role == OperatorRole.ADMIN.value)


def role_of(connection: Connection, name: str) -> OperatorRole:
    """Return what the operator called *name* may do."""
    row = _ROLE_OF.first(connection, {"wanted": name})
    return OperatorRole.AUDITOR if row is None else OperatorRole(row[0])


def has_role(connection: Connection, name: str) -> bool:
    """Return whether somebody was granted a role under *name*, enrolled or not."""
    return _ROLE_OF.first(connection, {"wanted": name}) is not None


def with_more_than_reading(connection: Connection, names: Sequence[str]) -> list[str]:
    """Return those of *names* that were granted a role in which one may do more than read, enrolled or not."""
    more = operators.c.name.in_(names), operators.c.role != OperatorRole.AUDITOR.value
    return list(connection.execute(select(operators.c.name).where(*more)).scalars())


def granter(connection: Connection, name: str) -> str | None:
    """Return who has granted the operator called *name* a role, None if nobody has."""
    found: str | None = connection.execute(_GRANTER, {"wanted": name}).scalar_one_or_none()
    return found


def grant(connection: Connection, name: str, role: OperatorRole, *, by: str, now: datetime) -> None:
    """Set what the operator called *name* may do from now on."""
    if not connection.execute(_GRANT, {"wanted": name, "new_role": role.value, "now": now, "by": by}).rowcount:
        connection.execute(insert(operators).values(name=name, role=role.value, granted_at=now, granted_by=by))


def every(connection: Connection, now: datetime) -> list[ShownOperator]:
    """Return every operator that has, or had, a certificate, and those that were granted a role before enrolment."""
    grants = {
        name: OperatorGrant(name, OperatorRole(role), at, by)
        for name, role, at, by in connection.execute(
            select(operators.c.name, operators.c.role, operators.c.granted_at, operators.c.granted_by)
        )
    }
    enrolled = {
        device.name: device
        for device in map(device_from, connection.execute(select(devices).where(*of_roles(Role.OPERATOR))).all())
    }
    ends = certificates_of_device.good_until(connection, [each.id for each in enrolled.values()], now)
    return [
        _shown(grants.get(name) or OperatorGrant(name, OperatorRole.AUDITOR, None, None), enrolled.get(name), ends)
        for name in sorted(grants.keys() | enrolled.keys())
    ]


def _shown(grant: OperatorGrant, device: Device | None, ends: dict[int, datetime]) -> ShownOperator:
    if device is None:
        return ShownOperator(grant, None, None)
    # An ended one may have certificates that are still to be revoked.
    good_until = ends.get(device.id) if device.state is DeviceState.ACTIVE else None
    return ShownOperator(grant, device.state, good_until)


def ends(connection: Connection, now: datetime) -> dict[OperatorRole, datetime]:
    """Return until when somebody of each role has a certificate that is good *now*; a role of nobody's is absent."""
    last = dict[OperatorRole, datetime]()
    for each in every(connection, now):
        if each.good_until is not None:
            last[each.grant.role] = max(each.good_until, last.get(each.grant.role, each.good_until))
    return last


def usable_admins(connection: Connection, now: datetime, *, for_update: bool = False) -> set[str]:
    """Return the admins who have a certificate that is good *now*.

    With *for_update* their grants are locked until the transaction ends.
    """
    held = connection.execute(_ADMINS.with_for_update() if for_update else _ADMINS).scalars()
    those = [
        each
        for each in find_all(connection, list(held))
        # An ended one may have certificates that are still to be revoked.
        if each.role is Role.OPERATOR and each.state is DeviceState.ACTIVE
    ]
    good = certificates_of_device.good_until(connection, [each.id for each in those], now)
    return {each.name for each in those if each.id in good}


def no_admins(connection: Connection, now: datetime) -> list[str]:
    """Return the operators who are here, or were, and of whom `usable_admins` knows nothing."""
    enrolled = connection.execute(select(devices.c.name).where(*of_roles(Role.OPERATOR))).scalars()
    return sorted({*enrolled} - usable_admins(connection, now))


@dataclass(frozen=True, slots=True)
class Absent:
    """Operators whose promises do not count now, though nothing records that of each promise."""

    no_admins: Sequence[str]
    """Those who are here, or were, and could promise nothing now that only an admin may."""
    suspended: Sequence[str]
    """Those who are suspended as a whole, and could promise nothing."""

    def promise(self, role: str, made_by: str) -> bool:
        """Whether a token for *role* that *made_by* has made does not count."""
        return made_by in self.suspended or (role != Role.DEVICE.value and made_by in self.no_admins)


def absent(connection: Connection, now: datetime) -> Absent:
    """Return whose promises do not count *now*."""
    suspended = select(devices.c.name).where(*of_roles(Role.OPERATOR), devices.c.suspended_at.is_not(None))
    return Absent(no_admins(connection, now), sorted(connection.execute(suspended).scalars()))


def last_admin_stays(name: str) -> Refused:
    """Return the refusal of what would leave no admin, which undoes the transaction."""
    return Refused(Code.LAST_ADMIN, f"{name} is the last admin with a good certificate: make another admin first")
