"""Queries about keys that were reported as compromised, until all their certificates are revoked for that reason.

All certificates for such a key are reported as revoked (`provisioning.store.certificates`). Nothing more
is certified for it, so the remaining work only decreases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import LargeBinary, bindparam, delete, insert, select
from sqlalchemy.engine import Connection

from provisioning.store import announcements
from provisioning.store.certificates_of_key import DeviceKey
from provisioning.store.prepared import Prepared
from provisioning.store.tables import devices, unfinished_key_ends

_ENDS: Final = unfinished_key_ends.c
_OF_KEY: Final = (
    _ENDS.device_id == bindparam("of"),
    _ENDS.spki_sha256 == bindparam("wanted", type_=LargeBinary),
)
_FIND: Final = Prepared(
    select(_ENDS.invalidity_date, _ENDS.ended_by, devices.c.name)
    .select_from(unfinished_key_ends.join(devices))
    .where(*_OF_KEY),
    at_once=True,
)
_BEGIN: Final = Prepared(insert(unfinished_key_ends), told_by="spki_sha256")
_FINISH: Final = Prepared(delete(unfinished_key_ends).where(*_OF_KEY), at_once=True)


@dataclass(frozen=True, slots=True)
class UnfinishedKeyEnd:
    """How a key was reported as compromised."""

    invalidity_date: datetime | None
    ended_by: str
    device: str


def begin(
    connection: Connection,
    keys: Sequence[DeviceKey],
    *,
    invalidity_date: datetime | None,
    ended_at: datetime,
    ended_by: str,
) -> None:
    """Record that all certificates for *keys*, none of which has such a record, are to be revoked."""
    common = {"invalidity_date": invalidity_date, "ended_at": ended_at, "ended_by": ended_by}
    _BEGIN.run_each(
        connection, [{"device_id": each.device_id, "spki_sha256": each.spki_sha256, **common} for each in keys]
    )
    if keys:
        announcements.announce(connection)  # Caches of their states must be cleared.


def of_key(connection: Connection, key: DeviceKey) -> UnfinishedKeyEnd | None:
    """Return how *key* was reported, None if nothing is left to do for it."""
    row = _FIND.first(connection, _named(key))
    return None if row is None else UnfinishedKeyEnd(*row)


def of_each(connection: Connection, keys: Sequence[DeviceKey]) -> set[DeviceKey]:
    """Return those of *keys* with something left to do."""
    answers = _FIND.answers(connection, [_named(each) for each in keys]) if keys else ()
    return {key for key, answer in zip(keys, answers, strict=True) if answer.rows}


def finish(connection: Connection, key: DeviceKey) -> None:
    """Note that nothing is left to do."""
    _FINISH.run(connection, _named(key))


def every(connection: Connection) -> list[DeviceKey]:
    """Return the keys with something left to do, the earliest first."""
    statement = select(_ENDS.device_id, _ENDS.spki_sha256).order_by(_ENDS.ended_at, _ENDS.device_id, _ENDS.spki_sha256)
    return [DeviceKey(*row) for row in connection.execute(statement)]


def _named(key: DeviceKey) -> dict[str, object]:
    return {"of": key.device_id, "wanted": key.spki_sha256}
