"""Records and ends holds: which certificates of a device they concern, and the facts for the answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.recording import Changed, Revoked
from provisioning.store import revocations

_HOLD: Final = RevocationReason.CERTIFICATE_HOLD


@dataclass(frozen=True, slots=True)
class Released:
    """One certificate that is good again."""

    serial: str
    device: str
    released_at: datetime
    sequence: int


@dataclass(frozen=True, slots=True)
class ReleaseOutcome:
    """The released certificates, and whether this call released them."""

    released: list[Released]
    changed: bool


def to_be_held(issued: Changed, expired: Mapping[int, datetime]) -> Changed:
    """Return those that a suspension of their device puts on hold: all unexpired ones without a revocation.

    *expired*: `provisioning.revocation.surely_expired`.
    """
    return [each for each in issued if each.revocation is None and expired[each.device.id] < each.not_after]


def to_be_released(issued: Changed, trials: Collection[int]) -> Changed:
    """Return those that are good again when their device is resumed.

    Excluded are those on trial, by their ids, and those still to be revoked for their key or with their CA.
    """
    return [each for each in issued if each.on_hold and each.ended_above is None and each.id not in trials]


def hold(connection: Connection, fresh: Changed, now: datetime, by: str) -> list[Revoked]:
    """Put *fresh* on hold."""
    if not fresh:
        return []
    at = now.replace(microsecond=0)  # RFC 5280 §5.1.2.6
    identifiers = [each.id for each in fresh]
    sequences = revocations.add(connection, identifiers, reason=_HOLD, revoked_at=now, revoked_by=by)
    return [
        Revoked(each.serial, each.device.name, _HOLD, at, sequence)
        for each, sequence in zip(fresh, sequences, strict=True)
    ]


def release(connection: Connection, held: Changed, now: datetime, by: str) -> list[Released]:
    """End the hold of *held*."""
    if not held:
        return []
    at = now.replace(microsecond=0)
    sequences = revocations.release(connection, [each.id for each in held], released_at=at, actor=by)
    places = zip(held, sequences, strict=True)
    return [Released(each.serial, each.device.name, at, sequence) for each, sequence in places]
