"""Queries about devices whose manufacturer has revoked the certificate (IDevID) with which they enrolled.

`idevids` has the IDevID with which each device enrolled last; `recalls`, for those found revoked, the manufacturer's
entry and that it was acted on. A device that enrols again, with another certificate or on an operator's word, starts
afresh.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.pki.serial_number import serial_text
from provisioning.store.devices import WIDTH, Device, device_from
from provisioning.store.manufacturer_tables import idevids, manufacturer_lists, manufacturer_revocations, recalls
from provisioning.store.prepared import Prepared
from provisioning.store.tables import devices

PAGE: Final = 500
"""Rows of a list, or of the devices found, per query."""

_MOVE: Final = Prepared(
    update(idevids)
    .where(idevids.c.device_id == bindparam("of"))
    .values(manufacturer_id=bindparam("by"), serial=bindparam("number"))
)
_ADD: Final = Prepared(insert(idevids), told_by="device_id")
_FORGET: Final = Prepared(delete(idevids).where(idevids.c.device_id == bindparam("of")))
_DONE: Final = Prepared(delete(recalls).where(recalls.c.device_id == bindparam("of")))
_CAME_BY: Final = Prepared(
    select(idevids.c.device_id, idevids.c.manufacturer_id, idevids.c.serial).where(
        idevids.c.serial == bindparam("wanted")
    ),
    at_once=True,
)
_SAID: Final = (
    select(manufacturer_revocations.c.entry)
    .where(
        manufacturer_revocations.c.list_id == manufacturer_lists.c.id,
        manufacturer_revocations.c.serial == bindparam("wanted"),
    )
    .scalar_subquery()
)
_NAMING: Final = Prepared(select(_SAID).where(manufacturer_lists.c.manufacturer_id == bindparam("of")))


@dataclass(frozen=True, slots=True)
class CameIn:
    """The manufacturer's certificate with which a device enrolled."""

    device_id: int
    manufacturer_id: int
    serial: str


@dataclass(frozen=True, slots=True)
class RecalledDevice:
    """A device whose manufacturer's certificate, *serial*, is revoked, as *entry* says (`unpack`)."""

    device: Device
    serial: str
    entry: int
    found_at: datetime


def came_in(connection: Connection, device_id: int, manufacturer_id: int, serial: int) -> None:
    """Record the manufacturer's certificate with which the device has enrolled now."""
    if _MOVE.run(connection, {"of": device_id, "by": manufacturer_id, "number": serial_text(serial)}):
        _DONE.run(connection, {"of": device_id})
        return
    _ADD.run(connection, {"device_id": device_id, "manufacturer_id": manufacturer_id, "serial": serial_text(serial)})


def forget(connection: Connection, device_id: int) -> None:
    """Record that the device has enrolled by other means."""
    _FORGET.run(connection, {"of": device_id})
    _DONE.run(connection, {"of": device_id})


def forget_of(connection: Connection, manufacturer_id: int) -> None:
    """Forget all findings about a manufacturer's devices, so that they are found again."""
    ours = select(idevids.c.device_id).where(idevids.c.manufacturer_id == manufacturer_id)
    connection.execute(delete(recalls).where(recalls.c.device_id.in_(ours)))


def came_in_by(connection: Connection, serials: Iterable[str]) -> list[CameIn]:
    """Return the devices that enrolled with certificates of these serial numbers, of any manufacturer."""
    answers = _CAME_BY.answers(connection, [{"wanted": each} for each in serials])
    return [CameIn(*row) for answer in answers for row in answer.rows]


def one(connection: Connection, device_id: int) -> CameIn | None:
    """Return the manufacturer's certificate with which the device enrolled, if it did with one."""
    row = connection.execute(select(idevids).where(idevids.c.device_id == device_id)).one_or_none()
    return None if row is None else CameIn(*row)


def named(connection: Connection, list_id: int, after: str) -> list[str]:
    """Return serial numbers that a list names, in stored order, after *after*."""
    said = manufacturer_revocations.c
    statement = select(said.serial).where(said.list_id == list_id, said.serial > after).order_by(said.serial)
    return list(connection.execute(statement.limit(PAGE)).scalars())


def entries_of(connection: Connection, manufacturer_ids: Iterable[int], serial: str) -> list[int]:
    """Return the entries for a certificate in these manufacturers' lists, as `pack` encodes them."""
    rows = [row for each in manufacturer_ids for row in _NAMING.rows(connection, {"of": each, "wanted": serial})]
    return [entry for (entry,) in rows if entry is not None]


def entry_followed(connection: Connection, device_id: int) -> int | None:
    """Return the entry that was last acted on for the device."""
    return connection.execute(select(recalls.c.entry).where(recalls.c.device_id == device_id)).scalar_one_or_none()


def followed(connection: Connection, device_id: int, entry: int, now: datetime) -> None:
    """Record that the manufacturer's entry for the device was acted on. Its row in `devices` is locked."""
    values = {"entry": entry, "found_at": now}
    known = update(recalls).where(recalls.c.device_id == device_id).values(values)
    if connection.execute(known).rowcount == 0:
        connection.execute(insert(recalls), {"device_id": device_id, **values})


def released(connection: Connection, device_id: int) -> None:
    """Record that the manufacturer's lists no longer name the device."""
    _DONE.run(connection, {"of": device_id})


def found(connection: Connection, after: int) -> list[CameIn]:
    """Return devices found revoked, in order of their ids, after the id *after*."""
    statement = (
        select(idevids)
        .join_from(recalls, idevids, recalls.c.device_id == idevids.c.device_id)
        .where(recalls.c.device_id > after)
        .order_by(recalls.c.device_id)
        .limit(PAGE)
    )
    return [CameIn(*row) for row in connection.execute(statement)]


def page(connection: Connection, manufacturer_id: int, *, limit: int, after: str | None) -> Sequence[RecalledDevice]:
    """Return a manufacturer's devices found revoked, in order of name, after the name *after*."""
    statement = (
        select(*devices.c, idevids.c.serial, recalls.c.entry, recalls.c.found_at)
        .select_from(recalls.join(idevids, recalls.c.device_id == idevids.c.device_id))
        .join(devices, devices.c.id == recalls.c.device_id)
        .where(idevids.c.manufacturer_id == manufacturer_id)
        .order_by(devices.c.name)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(devices.c.name > after)
    return [RecalledDevice(device_from(row), *row[WIDTH:]) for row in connection.execute(statement)]


def count_in(connection: Connection) -> Mapping[int, int]:
    """Return how many of each manufacturer's devices found revoked are still in, by its id; without zeros."""
    # Not joined: it runs every few seconds, and SQLite would scan all devices for the few that were found.
    still_in = (
        select(devices.c.id)
        .where(
            devices.c.id == recalls.c.device_id,
            devices.c.suspended_at.is_(None),
            devices.c.revoked_at.is_(None),
            devices.c.decommissioned_at.is_(None),
        )
        .scalar_subquery()
    )
    statement = (
        select(idevids.c.manufacturer_id, func.count().label("number"))
        .select_from(recalls.join(idevids, recalls.c.device_id == idevids.c.device_id))
        .where(still_in.is_not(None))
        .group_by(idevids.c.manufacturer_id)
    )
    return {row.manufacturer_id: row.number for row in connection.execute(statement)}
