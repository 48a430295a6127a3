"""Queries about how many certificates a group may still get now: one row for each group that has a pace."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.store.prepared import Prepared
from provisioning.store.tables import group_paces

_WHOLE: Final = 1000
_LOCK: Final = Prepared(
    select(group_paces.c.thousandths, group_paces.c.at)
    .where(group_paces.c.group_name == bindparam("wanted"))
    .with_for_update()
)
_CHANGE: Final = Prepared(update(group_paces).where(group_paces.c.group_name == bindparam("wanted")))
_ADD: Final = Prepared(insert(group_paces))


def held(connection: Connection, group: str) -> tuple[float, datetime] | None:
    """Return the level of the group's bucket and its time, locked until the transaction ends; None: never used."""
    row = _LOCK.first(connection, {"wanted": group})
    return None if row is None else (row[0] / _WHOLE, row[1])


def leave(connection: Connection, group: str, level: float, at: datetime, *, new: bool) -> None:
    """Record the level of the group's bucket."""
    left = round(level * _WHOLE)
    if new:
        _ADD.run(connection, {"group_name": group, "thousandths": left, "at": at})
    else:
        _CHANGE.run(connection, {"wanted": group, "thousandths": left, "at": at})
