"""Queries about manufacturers' CRLs: what each CA has revoked, list by list.

A list covers all of its CA's certificates or a part of them (`Scope`); the newest of each scope is stored. A
certificate is looked up by one index, however long the lists are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, delete, exists, func, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.pki.crl import Scope
from provisioning.pki.revocation import Entries
from provisioning.pki.serial_number import serial_text
from provisioning.store import groups
from provisioning.store.groups import WayName
from provisioning.store.manufacturer_tables import manufacturer_lists, manufacturer_revocations, manufacturers
from provisioning.store.manufacturers import LapsedLists
from provisioning.store.prepared import Prepared

MAXIMUM_SCOPE: Final = 2000
"""Maximum length of `scope_text`, in characters."""
_AUTHORITIES: Final = "authorities_only"
"""In the `scope_text` of lists about CAs only, and of no others."""
_LISTS: Final = manufacturer_lists.c
_REVOCATIONS: Final = manufacturer_revocations.c
_ADD: Final = Prepared(insert(manufacturer_revocations), told_by="serial")
_REMOVE: Final = Prepared(
    delete(manufacturer_revocations).where(
        _REVOCATIONS.list_id == bindparam("of_list"), _REVOCATIONS.serial == bindparam("wanted")
    ),
    at_once=True,
)
_OF: Final = Prepared(
    select(manufacturer_lists).where(_LISTS.manufacturer_id == bindparam("wanted")).order_by(_LISTS.id)
)
_ENTRY: Final = (
    select(_REVOCATIONS.entry)
    .where(_REVOCATIONS.list_id == _LISTS.id, _REVOCATIONS.serial == bindparam("wanted"))
    .scalar_subquery()
)
"""Looks each list up by the index; for a join, either database may read all that was ever revoked."""
_NAMING: Final = Prepared(select(_ENTRY).where(_LISTS.manufacturer_id == bindparam("of")))


@dataclass(frozen=True, slots=True)
class StoredList:
    """A manufacturer's newest list about *scope*, without its entries; it is valid until *next_update*."""

    id: int
    scope: Scope
    number: int
    this_update: datetime
    next_update: datetime
    sha256: bytes
    entries: int
    taken_at: datetime
    taken_by: str

    @property
    def place(self) -> tuple[int, datetime]:
        """The sort key of the lists of one scope."""
        return self.number, self.this_update

    @property
    def is_about_devices(self) -> bool:
        """Whether a device's certificate may be on it."""
        return not self.scope.authorities_only


def scope_text(scope: Scope) -> str:
    """Return *scope* as stored."""
    said: dict[str, Any] = {"names": sorted(scope.names), "users_only": scope.users_only}
    return json.dumps(said | {_AUTHORITIES: True} if scope.authorities_only else said)


def of_manufacturer(connection: Connection, manufacturer_id: int) -> Sequence[StoredList]:
    """Return a manufacturer's lists."""
    return [_from_row(row) for row in _OF.rows(connection, {"wanted": manufacturer_id})]


def of_manufacturers(connection: Connection, manufacturer_ids: Sequence[int]) -> Mapping[int, Sequence[StoredList]]:
    """Return the lists of each of many manufacturers that has any."""
    found: dict[int, list[StoredList]] = {}
    statement = select(manufacturer_lists).where(_LISTS.manufacturer_id.in_(manufacturer_ids)).order_by(_LISTS.id)
    for row in connection.execute(statement):
        found.setdefault(row.manufacturer_id, []).append(_from_row(row))
    return found


@dataclass(frozen=True, slots=True)
class KeptLists:
    """The lists about devices of a manufacturer that is in force, and whose lists must not lapse."""

    manufacturer: str
    lists: Sequence[StoredList]
    awaited: bool
    """Whether devices depend on the next list: its group admits manufacturers' devices."""


def awaited(connection: Connection) -> Mapping[str, Sequence[StoredList]]:
    """Return the lists of the manufacturers whose devices depend on the next one, by manufacturer name."""
    return {each.manufacturer: each.lists for each in kept(connection) if each.awaited}


def kept(connection: Connection) -> Sequence[KeptLists]:
    """Return the lists that need successors, in order of the manufacturers' names."""
    statement = (
        select(manufacturers.c.name, manufacturers.c.group_name, *manufacturer_lists.c)
        .select_from(manufacturer_lists.join(manufacturers))
        .where(manufacturers.c.ended_at.is_(None), manufacturers.c.lapsed_lists == LapsedLists.REFUSE.value)
        .order_by(manufacturers.c.name, _LISTS.id)
    )
    found: dict[tuple[str, str], list[StoredList]] = {}
    for name, group, *row in connection.execute(statement):
        if (stored := _from_row(row)).is_about_devices:
            found.setdefault((name, group), []).append(stored)
    opened = {
        group: any(WayName.MANUFACTURER in ways for ways in groups.rules_of(connection, group).ways)
        for group in {group for _, group in found}
    }
    return [KeptLists(name, lists, opened[group]) for (name, group), lists in found.items()]


def entry_of(connection: Connection, manufacturer_id: int, serial: int) -> int | None:
    """Return reason and time, as `pack` encodes them, if a list of the manufacturer names the certificate."""
    rows = _NAMING.rows(connection, {"of": manufacturer_id, "wanted": serial_text(serial)})
    return next((entry for (entry,) in rows if entry is not None), None)


def put(
    connection: Connection, manufacturer_id: int, facts: Mapping[str, Any], scope: Scope, entries: Entries
) -> tuple[int, int]:
    """Record a list, replacing the previous one about *scope*; return how many it newly revokes, and releases.

    *facts* are the other columns of `StoredList`. Entries that both lists share are not written again.
    """
    known = _LISTS.manufacturer_id == manufacturer_id, _LISTS.scope == scope_text(scope)
    row = {**facts, "number": str(facts["number"]), "entries": len(entries)}
    list_id = connection.execute(select(_LISTS.id).where(*known)).scalar_one_or_none()
    if list_id is None:
        connection.execute(
            insert(manufacturer_lists), {**row, "manufacturer_id": manufacturer_id, "scope": scope_text(scope)}
        )
        list_id = connection.execute(select(_LISTS.id).where(*known)).scalar_one()
    else:
        connection.execute(update(manufacturer_lists).where(_LISTS.id == list_id).values(row))
    said = select(_REVOCATIONS.serial, _REVOCATIONS.entry).where(_REVOCATIONS.list_id == list_id)
    before: dict[str, int] = {row.serial: row.entry for row in connection.execute(said)}
    after = {serial_text(serial): entry for serial, entry in entries.items()}
    gone = [serial for serial, entry in before.items() if after.get(serial) != entry]
    come = [serial for serial, entry in after.items() if before.get(serial) != entry]
    _REMOVE.run_each(connection, [{"of_list": list_id, "wanted": serial} for serial in gone])
    _ADD.run_each(connection, [{"list_id": list_id, "serial": each, "entry": after[each]} for each in sorted(come)])
    return sum(each not in before for each in come), sum(each not in after for each in gone)


def remove(connection: Connection, stored: StoredList, others: Sequence[StoredList]) -> int:
    """Remove a list and its entries; return how many certificates no list of *others*, its CA's, names any more."""
    named_by_others = manufacturer_revocations.alias()
    only_here = (
        select(func.count())
        .select_from(manufacturer_revocations)
        .where(
            _REVOCATIONS.list_id == stored.id,
            ~exists().where(
                named_by_others.c.list_id.in_([each.id for each in others]),
                named_by_others.c.serial == _REVOCATIONS.serial,
            ),
        )
    )
    released: int = connection.execute(only_here).scalar_one()
    connection.execute(delete(manufacturer_revocations).where(_REVOCATIONS.list_id == stored.id))
    connection.execute(delete(manufacturer_lists).where(_LISTS.id == stored.id))
    return released


def _from_row(row: Sequence[Any]) -> StoredList:
    identifier, _manufacturer, scope, number, *rest = row
    said = json.loads(scope)
    about = Scope(frozenset(said["names"]), said["users_only"], said.get(_AUTHORITIES, False))
    return StoredList(identifier, about, int(number), *rest)
