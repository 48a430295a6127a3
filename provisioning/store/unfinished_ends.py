"""Queries about ends of devices that are decided and not done: some of their certificates are still to be revoked.

Such a device has its new state already, and whoever asks about one of its certificates is told that it is revoked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.pki.revocation import RevocationReason
from provisioning.store.prepared import Prepared
from provisioning.store.tables import devices, unfinished_ends

_ENDS: Final = unfinished_ends.c
_ABOVE_EVERY_ID: Final = 2**62
_OF_DEVICE: Final = Prepared(select(*_ENDS).where(_ENDS.device_id == bindparam("wanted")))


@dataclass(frozen=True, slots=True)
class UnfinishedEnd:
    """What was decided of a device, and how far it is done."""

    device_id: int
    reason: RevocationReason
    invalidity_date: datetime | None
    ended_at: datetime
    ended_by: str
    before: int
    """Certificates with lower ids are still to be looked at."""


def begin(
    connection: Connection,
    device_id: int,
    *,
    reason: RevocationReason,
    invalidity_date: datetime | None,
    ended_at: datetime,
    ended_by: str,
) -> None:
    """Record that all certificates of a device, which has no unfinished end, are to be revoked."""
    row = {
        "device_id": device_id,
        "reason": reason.value,
        "invalidity_date": invalidity_date,
        "ended_at": ended_at,
        "ended_by": ended_by,
        "before_id": _ABOVE_EVERY_ID,
    }
    connection.execute(insert(unfinished_ends), row)


def of_device(connection: Connection, device_id: int) -> UnfinishedEnd | None:
    """Return what is left to do of a device's end, None if nothing is."""
    row = _OF_DEVICE.first(connection, {"wanted": device_id})
    if row is None:
        return None
    identifier, reason, *rest = row
    return UnfinishedEnd(identifier, RevocationReason(reason), *rest)


def go_on(connection: Connection, device_id: int, before: int) -> None:
    """Note that certificates from the id *before* on are done."""
    connection.execute(update(unfinished_ends).where(_ENDS.device_id == device_id).values(before_id=before))


def finish(connection: Connection, device_id: int) -> None:
    """Note that nothing is left to do."""
    connection.execute(delete(unfinished_ends).where(_ENDS.device_id == device_id))


def names(connection: Connection) -> list[str]:
    """Return the names of devices whose ends are unfinished, the earliest first."""
    statement = select(devices.c.name).select_from(unfinished_ends.join(devices)).order_by(_ENDS.ended_at, devices.c.id)
    return list(connection.execute(statement).scalars())
