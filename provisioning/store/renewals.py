"""Queries about renewals that an operator has hastened."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, insert, or_, select
from sqlalchemy.engine import Connection

from provisioning.pki.role import Role
from provisioning.store.tables import certificates, devices, hastened_renewals, revocations

_ASK: Final = (Role.DEVICE.value, Role.SERVICE.value)


@dataclass(frozen=True, slots=True)
class Hastened:
    """An order to renew the certificates issued before *at*, spread over a time."""

    at: datetime
    spread: timedelta


def add(connection: Connection, group: str | None, order: Hastened, *, by: str) -> None:
    """Record an order for *group*; None: for all groups."""
    row = {
        "group_name": group,
        "hastened_at": order.at,
        "spread_seconds": int(order.spread.total_seconds()),
        "hastened_by": by,
    }
    connection.execute(insert(hastened_renewals), row)


def concerned(connection: Connection, group: str | None, at: datetime) -> int:
    """Return how many certificates an order at that time concerns; reads all of *group*, or of the fleet.

    Brokers, operators and the service itself do not ask when to renew: theirs are not counted.
    """
    statement = (
        select(func.count())
        .select_from(certificates.join(devices, devices.c.id == certificates.c.device_id).outerjoin(revocations))
        .where(
            certificates.c.issued_at <= at,
            certificates.c.not_after > at,
            revocations.c.sequence.is_(None),
            devices.c.role.in_(_ASK),
        )
    )
    if group is not None:
        statement = statement.where(devices.c.group_name == group)
    number: int = connection.execute(statement).scalar_one()
    return number


def concerning(connection: Connection, group: str | None, issued_at: datetime) -> list[Hastened]:
    """Return the orders that concern a certificate of *group* issued at *issued_at*: of each spread the first."""
    orders = hastened_renewals.c
    statement = (
        select(func.min(orders.hastened_at), orders.spread_seconds)
        .where(or_(orders.group_name.is_(None), orders.group_name == group), orders.hastened_at >= issued_at)
        .group_by(orders.spread_seconds)
    )
    return [Hastened(at, timedelta(seconds=spread)) for at, spread in connection.execute(statement)]
