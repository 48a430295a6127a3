"""Queries about devices: every party that has a certificate, whatever its role."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from sqlalchemy import Row, bindparam, func, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.pki.identity import Role
from provisioning.store.tables import certificates, devices

# Enrolment's statements are built once: building one costs more than running it.
_FIND: Final = select(devices).where(devices.c.name == bindparam("wanted"))
_LOCK: Final = _FIND.with_for_update()
_ADD: Final = insert(devices).returning(devices.c.id)


class DeviceState(StrEnum):
    """Whether a device was revoked as a whole; a certificate's state is its own."""

    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Device:
    """One party as the store knows it."""

    id: int
    name: str
    role: Role
    group: str | None
    created_at: datetime
    revoked_at: datetime | None

    @property
    def state(self) -> DeviceState:
        """Active until revoked; a new enrolment with a new token makes it active again."""
        return DeviceState.ACTIVE if self.revoked_at is None else DeviceState.REVOKED


def device_from(row: Row[tuple[object, ...]]) -> Device:
    """Return the device in a row that holds the columns of `devices`."""
    columns = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    return Device(
        columns[devices.c.id],
        columns[devices.c.name],
        Role(columns[devices.c.role]),
        columns[devices.c.group_name],
        columns[devices.c.created_at],
        columns[devices.c.revoked_at],
    )


def find(connection: Connection, name: str, *, for_update: bool = False) -> Device | None:
    """Return the device called *name*; with *for_update* nobody else decides about it until the transaction ends."""
    row = connection.execute(_LOCK if for_update else _FIND, {"wanted": name}).one_or_none()
    return None if row is None else device_from(row)


def add(connection: Connection, name: str, role: Role, group: str | None, now: datetime) -> Device:
    """Record a new device; raise SQLAlchemy's IntegrityError if the name was taken in the meantime."""
    values = {"name": name, "role": role.value, "group_name": group, "created_at": now}
    identifier: int = connection.execute(_ADD, values).scalar_one()
    return Device(identifier, name, role, group, now, None)


def set_revoked(connection: Connection, device_id: int, revoked_at: datetime | None) -> None:
    """Mark a device as revoked as a whole, or, with None, as active again."""
    connection.execute(update(devices).where(devices.c.id == device_id).values(revoked_at=revoked_at))


def page(
    connection: Connection,
    *,
    limit: int,
    after: str | None,
    group: str | None = None,
    state: DeviceState | None = None,
    name: str | None = None,
) -> list[tuple[Device, int]]:
    """Return devices in order of name, after the name *after*, each with how many certificates it has had."""
    issued = (
        select(func.count()).where(certificates.c.device_id == devices.c.id).scalar_subquery().label("certificates")
    )
    statement = select(devices, issued).order_by(devices.c.name).limit(limit)
    if after is not None:
        statement = statement.where(devices.c.name > after)
    if name is not None:
        statement = statement.where(devices.c.name == name)
    if group is not None:
        statement = statement.where(devices.c.group_name == group)
    match state:
        case DeviceState.ACTIVE:
            statement = statement.where(devices.c.revoked_at.is_(None))
        case DeviceState.REVOKED:
            statement = statement.where(devices.c.revoked_at.is_not(None))
        case None:
            pass
    rows = connection.execute(statement)
    return [(device_from(row), row.certificates) for row in rows]


def count(connection: Connection) -> dict[DeviceState, int]:
    """Return how many devices there are in each state."""
    statement = select(func.count(), func.count(devices.c.revoked_at)).select_from(devices)
    everyone, revoked = connection.execute(statement).one()
    return {DeviceState.ACTIVE: everyone - revoked, DeviceState.REVOKED: revoked}
