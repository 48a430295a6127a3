"""Queries about devices: every party that has a certificate, whatever its role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import (
    Case,
    ColumnElement,
    String,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.engine import Connection

from provisioning.pki.role import Role
from provisioning.quick_values import quickly_made
from provisioning.store.prepared import Prepared, Same
from provisioning.store.server_parameters import without_nested_loops
from provisioning.store.tables import certificates, devices, revocations

WIDTH: Final = len(devices.c)
"""Columns that `device_from` reads: they are in the order of `Device`."""

_LONG_AGO: Final = datetime.fromtimestamp(0, UTC)
_NAMED: Final = select(devices).where(devices.c.name == bindparam("wanted"))
_FIND: Final = Prepared(_NAMED, at_once=True)
_LOCK: Final = Prepared(_NAMED.with_for_update(), at_once=True)
_ID_WITH_SERIAL: Final = Prepared(
    select(certificates.c.device_id).where(certificates.c.serial == bindparam("wanted")), at_once=True
)
_NAME: Final = Prepared(select(devices.c.name).where(devices.c.id == bindparam("wanted")), at_once=True)
_ADD: Final = Prepared(insert(devices).returning(devices.c.id), told_by="name")
_SET_STATE: Final = Prepared(
    update(devices)
    .where(devices.c.id == bindparam("wanted"))
    .values({name: bindparam(f"new_{name}") for name in ("suspended_at", "revoked_at", "decommissioned_at")}),
    at_once=True,
)

NOT_REVOKED: Final = ~exists(
    select(revocations.c.certificate_id).where(revocations.c.certificate_id == certificates.c.id)
)
"""Condition: no revocation of a certificate is recorded now."""


class DeviceState(StrEnum):
    """What was decided about a device as a whole; a certificate's state is its own."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    """For a time: no certificate of it is good, and it gets none."""
    REVOKED = "revoked"
    """Its certificates never come back; the device does, with a new token."""
    DECOMMISSIONED = "decommissioned"
    """Gone for ever: its name gets no certificate again."""

    @property
    def is_end(self) -> bool:
        """Whether what certificates a device in this state has had are worthless for ever."""
        return self in {DeviceState.REVOKED, DeviceState.DECOMMISSIONED}


@quickly_made
@dataclass(frozen=True, slots=True)
class Device:
    """One party as the store knows it."""

    id: int
    name: str
    role: Role
    group: str | None
    created_at: datetime
    revoked_at: datetime | None
    suspended_at: datetime | None = None
    decommissioned_at: datetime | None = None
    origin: str | None = None
    """What identified it at its first enrolment, if that can identify it again: its manufacturer's serial number."""
    trial_ends_at: datetime | None = None
    """When the last of its trials ends, if it only ever had trials; None: it is here for good.

    Of a name that was ended before anybody enrolled under it: long ago (`provisioning.store.names_to_come`).
    """

    @property
    def place(self) -> str:
        """Its role and its group, if it has one, as text for refusals."""
        return f"role {self.role}" if self.group is None else f"role {self.role} of group {self.group}"

    @property
    def state(self) -> DeviceState:
        """The state in force: the most final decision."""
        if self.decommissioned_at is not None:
            return DeviceState.DECOMMISSIONED
        if self.revoked_at is not None:
            return DeviceState.REVOKED
        return DeviceState.ACTIVE if self.suspended_at is None else DeviceState.SUSPENDED


def device_from(row: Sequence[Any]) -> Device:
    """Return the device in a row that begins with the columns of `devices`."""
    identifier, name, role, *rest = row[:WIDTH]
    return Device(identifier, name, Role(role), *rest)


def of_roles(*roles: Role) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Return the conditions for one of *roles*, none of which is `Role.DEVICE`: the index of those finds it.

    SQLite uses the index for its own condition only, in these words; PostgreSQL without statistics only for a list.
    """
    no_device, *words = (literal_column(f"'{each.value}'", String) for each in (Role.DEVICE, *roles))
    return devices.c.role != no_device, devices.c.role.in_(words)


def find(connection: Connection, name: str, *, for_update: bool = False) -> Device | None:
    """Return the device called *name*; with *for_update* nobody else decides about it until the transaction ends."""
    row = (_LOCK if for_update else _FIND).first(connection, {"wanted": name})
    return None if row is None else device_from(row)


def find_all(connection: Connection, names: Sequence[str]) -> list[Device]:
    """Return the devices with these names, as far as there are any."""
    return [device_from(row) for row in _each(connection, _FIND, names)]


def lock_all(connection: Connection, names: Sequence[str], serials: Sequence[str]) -> list[Device]:
    """Return the devices with these names and those whose certificates have these serial numbers, locked.

    Several devices are always locked in the order of their names, or two transactions could deadlock.
    """
    # Each is looked up by an index: without statistics PostgreSQL would read all devices for a list.
    owners = {row[0] for row in _ID_WITH_SERIAL.placed(connection, serials)}
    wanted = {*names, *(row[0] for row in _NAME.placed(connection, sorted(owners)))}
    return sorted(map(device_from, _LOCK.placed(connection, sorted(wanted))), key=attrgetter("name"))


def _each(connection: Connection, prepared: Prepared, wanted: Sequence[object]) -> list[tuple[Any, ...]]:
    """Return the rows that are found for each that is *wanted*, in that order."""
    if not wanted:
        return []
    return [
        row for answer in prepared.answers(connection, [{"wanted": each} for each in wanted]) for row in answer.rows
    ]


def add(
    connection: Connection, name: str, role: Role, group: str | None, now: datetime, origin: str | None = None
) -> Device:
    """Record a new device; raise SQLAlchemy's IntegrityError if the name was taken in the meantime."""
    values = {"name": name, "role": role.value, "group_name": group, "created_at": now, "origin": origin}
    (identifier,) = _ADD.one(connection, values)
    return Device(identifier, name, role, group, now, None, origin=origin)


def add_name(connection: Connection, name: str, role: Role, group: str | None, now: datetime) -> Device:
    """Record a name under which nobody has enrolled, as if its trials were long over: the clock may be ahead."""
    device = add(connection, name, role, group, now)
    connection.execute(update(devices).where(devices.c.id == device.id).values(trial_ends_at=_LONG_AGO))
    return replace(device, trial_ends_at=_LONG_AGO)


def move(connection: Connection, device: Device, role: Role, group: str | None, origin: str | None) -> Device:
    """Give a device that was never activated another role and group; return it."""
    changed = {"role": role.value, "group_name": group, "origin": origin}
    connection.execute(update(devices).where(devices.c.id == device.id).values(changed))
    return replace(device, role=role, group=group, origin=origin)


def stay(connection: Connection, device: Device) -> None:
    """Record that the device has a certificate that is no trial, or has activated one: it is here for good."""
    if device.trial_ends_at is not None:
        connection.execute(update(devices).where(devices.c.id == device.id).values(trial_ends_at=None))


def set_state(connection: Connection, device_ids: Sequence[int], state: DeviceState, since: datetime) -> None:
    """Say what holds of devices as a whole, *since* when."""
    columns = {
        "new_suspended_at": DeviceState.SUSPENDED,
        "new_revoked_at": DeviceState.REVOKED,
        "new_decommissioned_at": DeviceState.DECOMMISSIONED,
    }
    if device_ids:
        values = {column: Same(since if each is state else None) for column, each in columns.items()}
        _SET_STATE.run_columns(connection, {"wanted": device_ids, **values})


def state() -> Case[str]:
    """Return a device's state as an SQL expression."""
    return case(
        (devices.c.decommissioned_at.is_not(None), DeviceState.DECOMMISSIONED.value),
        (devices.c.revoked_at.is_not(None), DeviceState.REVOKED.value),
        (devices.c.suspended_at.is_not(None), DeviceState.SUSPENDED.value),
        else_=DeviceState.ACTIVE.value,
    )


def count(connection: Connection) -> dict[DeviceState, int]:
    """Return how many devices there are in each state."""
    # Each by itself: to group them, SQLite would keep a row of each device in memory.
    numbers = [func.count().filter(state() == each.value) for each in DeviceState]
    return dict(zip(DeviceState, connection.execute(select(*numbers).select_from(devices)).one(), strict=True))


def count_certified(connection: Connection, now: datetime) -> int:
    """Return how many active devices have a certificate that is good *now*; no other can connect.

    It reads the index of those that have not expired, and none of the certificates themselves.
    """
    good = select(certificates.c.device_id).where(certificates.c.not_after > now, NOT_REVOKED)
    ends = devices.c.decommissioned_at, devices.c.revoked_at, devices.c.suspended_at
    # Not by `state`: PostgreSQL would expect few active devices, and look up the certificates of each by itself.
    # Nor those that have none: it would search the list of the others for each.
    statement = (
        select(func.count()).select_from(devices).where(*(end.is_(None) for end in ends), devices.c.id.in_(good))
    )
    with without_nested_loops(connection):
        return int(connection.execute(statement).scalar_one())


def with_id(connection: Connection, identifier: int) -> Device:
    """Return the device with this id, which must exist."""
    return device_from(connection.execute(select(devices).where(devices.c.id == identifier)).one())
