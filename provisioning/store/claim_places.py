"""Places of a claim: which device has one, until when, and how many are taken.

Theory
------
A claim admits a limited number of devices. A trial takes a place until it ends, an activation for good. Whoever has
copied a claim certificate may waste any number of trials, so the cost of an attempt must not depend on how many
there were: the claim's row has the number of its taken places, updated in the transaction that changes them, and a
place whose trial has ended stays among them until it is needed::

    trial ─► place until its end ─ activation ─► place for good
                     └─ end, and the claim is full ─► freed, a few per request

Rules
-----
1. A claim's `taken` is the number of its rows here; both change in one transaction, under the lock on the claim's row
   or on the device's.
2. A device has one place of a claim, however many of its trials it had.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Label, Select, delete, func, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.store.tables import claim_places, claims, devices

_FREED_AT_ONCE: Final = 16
"""One is what the present request needs; with some more, not each request has to free one."""


def used(now: datetime) -> Label[int]:
    """Return the column that says how many places of a claim are taken now, for a statement about `claims`."""
    lost = (
        select(func.count())
        .select_from(claim_places)
        .where(claim_places.c.claim_id == claims.c.id, claim_places.c.ends_at <= now)
        .scalar_subquery()
    )
    return (claims.c.taken - lost).label("used")


def on_trial(now: datetime) -> Select[tuple[int, int]]:
    """Return the statement about `claims` for the claim and the device of each place that a trial has *now*."""
    held = claim_places.join(claims, claims.c.id == claim_places.c.claim_id)
    this = claim_places.c.claim_id, claim_places.c.device_id
    return select(*this).select_from(held).where(claim_places.c.ends_at > now)


def holds(connection: Connection, claim_id: int, device_name: str) -> bool:
    """Whether the device called *device_name* has a place of the claim already, lost or not."""
    statement = (
        select(claim_places.c.device_id)
        .select_from(claim_places.join(devices, devices.c.id == claim_places.c.device_id))
        .where(devices.c.name == device_name, claim_places.c.claim_id == claim_id)
    )
    return connection.execute(statement).one_or_none() is not None


def take(connection: Connection, claim_id: int, device_id: int, ends_at: datetime | None) -> None:
    """Give a device a place of the claim until *ends_at*, for good if that is None; one that it has lasts as long."""
    this = _of(claim_id, device_id)
    row = connection.execute(select(claim_places.c.ends_at).where(*this)).one_or_none()
    if row is None:
        values = {"claim_id": claim_id, "device_id": device_id, "ends_at": ends_at}
        connection.execute(insert(claim_places), values)
        _add(connection, claim_id, 1)
    elif row.ends_at is not None and (ends_at is None or ends_at > row.ends_at):
        connection.execute(update(claim_places).where(*this).values(ends_at=ends_at))


def free_lost(connection: Connection, claim_id: int, now: datetime) -> int:
    """Free some places whose trials have ended, if there are any; return how many."""
    statement = (
        select(claim_places.c.device_id)
        .where(claim_places.c.claim_id == claim_id, claim_places.c.ends_at <= now)
        .order_by(claim_places.c.ends_at)
        .limit(_FREED_AT_ONCE)
    )
    lost = list(connection.execute(statement).scalars())
    for device_id in lost:
        connection.execute(delete(claim_places).where(*_of(claim_id, device_id)))
    if lost:
        _add(connection, claim_id, -len(lost))
    return len(lost)


def _of(claim_id: int, device_id: int) -> tuple[ColumnElement[bool], ...]:
    return claim_places.c.device_id == device_id, claim_places.c.claim_id == claim_id


def _add(connection: Connection, claim_id: int, number: int) -> None:
    changed: dict[str, Any] = {"taken": claims.c.taken + number}
    connection.execute(update(claims).where(claims.c.id == claim_id).values(changed))
