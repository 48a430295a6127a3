"""Queries about how many devices a group with a maximum has: a number that is never too low, in place of a count.

Theory
------
Who counts the devices of a group for each newcomer reads them all, while nobody else can write: 2.5 ms for 15,000. So a
row says how many there were at the last count, plus all that were let in since. Decommissioned devices and lost trials
are subtracted only when that number has reached the maximum: then they are counted, and the row says what was found.

Rules
-----
1. The number is never below that of the devices that count: whatever makes one count in the group takes a place here.
2. A group whose rules change is counted again: without a maximum nobody has taken a place.

Does not handle: who may come in (`provisioning.enrolment.authorise`). The caller has locked the group.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.store import groups
from provisioning.store.prepared import Prepared
from provisioning.store.tables import group_rooms

_FIND: Final = Prepared(select(group_rooms.c.taken).where(group_rooms.c.group_name == bindparam("wanted")))
_CHANGE: Final = Prepared(update(group_rooms).where(group_rooms.c.group_name == bindparam("wanted")))
_ADD: Final = Prepared(insert(group_rooms))
_FORGET: Final = delete(group_rooms).where(group_rooms.c.group_name == bindparam("wanted"))


def take(connection: Connection, group: str, maximum: int, now: datetime) -> bool:
    """Take a place for a device in the group, which may have *maximum*; return False if it has them."""
    row = _FIND.first(connection, {"wanted": group})
    taken = None if row is None else int(row[0])
    if taken is None or taken >= maximum:
        taken = groups.count_devices(connection, group, now, maximum)
    if taken >= maximum:
        return False
    if row is None:
        _ADD.run(connection, {"group_name": group, "taken": taken + 1})
    else:
        _CHANGE.run(connection, {"wanted": group, "taken": taken + 1})
    return True


def is_full(connection: Connection, group: str, maximum: int, now: datetime) -> bool:
    """Whether the group, which may have *maximum* devices, has them; nothing is locked, and no place is taken."""
    row = _FIND.first(connection, {"wanted": group})
    if row is not None and int(row[0]) < maximum:
        return False
    return groups.count_devices(connection, group, now, maximum) >= maximum


def forget(connection: Connection, group: str) -> None:
    """Have the next newcomer of the group counted with all others."""
    connection.execute(_FORGET, {"wanted": group})
