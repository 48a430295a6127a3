"""Queries about decisions not yet applied to all certificates of a device: ends, holds and releases.

A device that was ended or suspended has its new state already, and all its certificates are reported as revoked, or on
hold. One that was resumed gets its new state when all are released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import announcements
from provisioning.store.prepared import Prepared
from provisioning.store.tables import devices, unfinished_authority_ends, unfinished_ends, unfinished_key_ends

_ENDS: Final = unfinished_ends.c
_ABOVE_EVERY_ID: Final = 2**62
RELEASE: Final = "removeFromCRL"
"""A decision's reason for the end of a hold (RFC 5280 §5.3.1)."""
_OF_DEVICE: Final = Prepared(select(*_ENDS).where(_ENDS.device_id == bindparam("wanted")), at_once=True)
_BEGIN: Final = Prepared(insert(unfinished_ends), told_by="device_id")
_FINISH: Final = Prepared(delete(unfinished_ends).where(_ENDS.device_id == bindparam("wanted")), at_once=True)


@dataclass(frozen=True, slots=True)
class UnfinishedEnd:
    """What was decided for a device, and how far it is done."""

    reason: RevocationReason | None
    """certificateHold: the device was suspended; None: it was resumed."""
    invalidity_date: datetime | None
    ended_at: datetime
    ended_by: str
    before: int
    """Certificates with lower ids are still to be processed."""

    @property
    def final(self) -> bool:
        """Whether the device was ended."""
        return self.reason is not None and self.reason.final


def begin(
    connection: Connection,
    device_ids: Sequence[int],
    *,
    reason: RevocationReason | None,
    invalidity_date: datetime | None = None,
    ended_at: datetime,
    ended_by: str,
) -> None:
    """Record that all certificates of devices are to be revoked, or released (*reason* None).

    This replaces an earlier, unfinished decision: every certificate is processed again.
    """
    if not device_ids:
        return
    _FINISH.run_each(connection, [{"wanted": each} for each in device_ids])
    common = {
        "reason": RELEASE if reason is None else reason.value,
        "invalidity_date": invalidity_date,
        "ended_at": ended_at,
        "ended_by": ended_by,
        "before_id": _ABOVE_EVERY_ID,
    }
    _BEGIN.run_each(connection, [{"device_id": each, **common} for each in device_ids])
    announcements.announce(connection)  # Caches of its certificates' states must be cleared.


def of_device(connection: Connection, device_id: int) -> UnfinishedEnd | None:
    """Return what is left to do for a device's certificates, None if nothing is."""
    row = _OF_DEVICE.first(connection, {"wanted": device_id})
    return None if row is None else _from_row(row)


def of_each(connection: Connection, device_ids: Sequence[int]) -> dict[int, UnfinishedEnd]:
    """Return what is left to do for the certificates of devices, by device id."""
    return {row[0]: _from_row(row[:-1]) for row in _OF_DEVICE.placed(connection, device_ids)}


def _from_row(row: Sequence[Any]) -> UnfinishedEnd:
    _, reason, *rest = row
    return UnfinishedEnd(None if reason == RELEASE else RevocationReason(reason), *rest)


def go_on(connection: Connection, device_id: int, before: int) -> None:
    """Note that certificates from the id *before* on are done."""
    connection.execute(update(unfinished_ends).where(_ENDS.device_id == device_id).values(before_id=before))


def finish(connection: Connection, device_id: int) -> None:
    """Note that nothing is left to do."""
    _FINISH.run(connection, {"wanted": device_id})


def names(connection: Connection) -> list[str]:
    """Return the names of devices with something left to do, the earliest first."""
    # Not joined: SQLite would scan all devices and look each up here.
    name = select(devices.c.name).where(devices.c.id == _ENDS.device_id).scalar_subquery()
    statement = select(name).select_from(unfinished_ends).order_by(_ENDS.ended_at, _ENDS.device_id)
    return list(connection.execute(statement).scalars())


def shut_out(connection: Connection) -> frozenset[tuple[int | str, datetime]]:
    """Return the devices that were ended or suspended, or had a key that was, with something left to do, and when.

    Also the CAs that were revoked, by their key identifiers.
    """
    of_keys = select(unfinished_key_ends.c.device_id, unfinished_key_ends.c.ended_at)
    statement = select(_ENDS.device_id, _ENDS.ended_at).where(_ENDS.reason != RELEASE).union_all(of_keys)
    of_cas = select(unfinished_authority_ends.c.issuer_key_id, unfinished_authority_ends.c.ended_at)
    return frozenset((which, at) for asked in (statement, of_cas) for which, at in connection.execute(asked))
