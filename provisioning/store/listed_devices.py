"""Queries about the devices that operators expect: a name in a group, with its key if that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Delete, bindparam, delete, insert, select
from sqlalchemy.engine import Connection

from provisioning.store.tables import listed_devices

_FIND: Final = select(listed_devices.c.spki_sha256, listed_devices.c.added_by).where(
    listed_devices.c.group_name == bindparam("in_group"), listed_devices.c.name == bindparam("wanted")
)


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """An expected device; *spki_sha256* is its public key's SHA-256 if known."""

    name: str
    spki_sha256: bytes | None

    def __str__(self) -> str:
        """Return its name, and its key if it is known, for the audit log."""
        return self.name if self.spki_sha256 is None else f"{self.name} {self.spki_sha256.hex()}"


def find(connection: Connection, group: str, name: str) -> tuple[ListedDevice, str] | None:
    """Return the entry for *name* in the group's list, and who has put it there."""
    row = connection.execute(_FIND, {"in_group": group, "wanted": name}).one_or_none()
    return None if row is None else (ListedDevice(name, row.spki_sha256), row.added_by)


def put(
    connection: Connection, group: str, entries: Sequence[ListedDevice], *, by: str, now: datetime
) -> tuple[int, int, list[ListedDevice]]:
    """Record *entries*, each replacing an older one of its name.

    Return how many were new, how many were there with another key or none, and which of them were not on the list with
    the same key, put there by the same one.
    """
    if not entries:
        return 0, 0, []
    removing = _removing(group, [each.name for each in entries])
    columns = listed_devices.c.name, listed_devices.c.spki_sha256, listed_devices.c.added_by
    before = {row.name: (row.spki_sha256, row.added_by) for row in connection.execute(removing.returning(*columns))}
    rows = [
        {"group_name": group, "name": each.name, "spki_sha256": each.spki_sha256, "added_at": now, "added_by": by}
        for each in entries
    ]
    connection.execute(insert(listed_devices), rows)
    changed = [each for each in entries if before.get(each.name) != (each.spki_sha256, by)]
    replaced = sum(before.get(each.name, (each.spki_sha256,))[0] != each.spki_sha256 for each in entries)
    return len(entries) - len(before), replaced, changed


def remove(connection: Connection, group: str, names: Sequence[str]) -> int:
    """Remove *names* from the list; return how many were on it."""
    return connection.execute(_removing(group, names)).rowcount


def _removing(group: str, names: Sequence[str]) -> Delete:
    return delete(listed_devices).where(listed_devices.c.group_name == group, listed_devices.c.name.in_(names))


def page(connection: Connection, group: str, *, limit: int, after: str | None) -> list[ListedDevice]:
    """Return a group's entries in order of name, after the name *after*."""
    statement = (
        select(listed_devices.c.name, listed_devices.c.spki_sha256)
        .where(listed_devices.c.group_name == group)
        .order_by(listed_devices.c.name)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(listed_devices.c.name > after)
    return [ListedDevice(row.name, row.spki_sha256) for row in connection.execute(statement)]
