"""Records and ends holds: which certificates of a device they concern, and the facts for the answer.

A certificate is on hold with its device, by itself (by its serial number), or both. It has one revocation for all of
that, which says whether the certificate is held by itself; whether its device holds it is the device's state. It is
good again when neither does (`provisioning.revocation.suspension`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
class StillHeld:
    """One certificate that the call was about, and that stays on hold."""

    serial: str
    device: str
    by_itself: bool
    """False: with its device, which is suspended as a whole."""


@dataclass(frozen=True, slots=True)
class ReleaseOutcome:
    """The released certificates, whether this call has changed anything, and what stays on hold."""

    released: list[Released]
    changed: bool
    still_held: Sequence[StillHeld] = ()


def to_be_held(issued: Changed, expired: Mapping[int, datetime]) -> Changed:
    """Return those that a suspension of their device puts on hold: all unexpired ones without a revocation.

    *expired*: `provisioning.revocation.surely_expired`.
    """
    return [each for each in issued if each.revocation is None and expired[each.device.id] < each.not_after]


def not_by_themselves(named: Changed) -> Changed:
    """Return those of *named*, good or on hold, that are not suspended by themselves yet."""
    return [each for each in named if not each.held_by_itself]


def to_be_released(issued: Changed, trials: Collection[int]) -> Changed:
    """Return those that are good again when their device is resumed.

    Excluded are those suspended by themselves, those on trial, by their ids, and those still to be revoked for their
    key or with their CA.
    """
    held = [each for each in issued if each.on_hold and not each.held_by_itself]
    return [each for each in held if each.ended_above is None and each.id not in trials]


def still_held(issued: Changed, expired: Mapping[int, datetime]) -> list[StillHeld]:
    """Return those that stay on hold when their device is resumed, because they were suspended by themselves.

    What has *expired* is left out: nobody has to resume that (`provisioning.revocation.surely_expired`).
    """
    lasting = [each for each in issued if expired[each.device.id] < each.not_after]
    held = [each for each in lasting if each.held_by_itself and each.ended_above is None]
    return [StillHeld(each.serial, each.device.name, by_itself=True) for each in held]


def entry(serials: object, by_themselves: Sequence[str] = (), still: Sequence[str] = ()) -> dict[str, object]:
    """Return what the audit log says: what was suspended or resumed, and what stays on hold nevertheless.

    *by_themselves* are those of which the own hold has begun or ended.
    """
    facts: dict[str, object] = {"serials": serials}
    facts |= {"by_themselves": [*by_themselves]} if by_themselves else {}
    return facts | ({"still_suspended": [*still]} if still else {})


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


def hold_by_itself(connection: Connection, held: Changed, *, by_itself: bool) -> None:
    """Say of *held*, which are on hold, whether they are so by themselves; otherwise only with their devices."""
    revocations.hold_by_itself(connection, [each.id for each in held], by_itself=by_itself)


def release(connection: Connection, held: Changed, now: datetime, by: str) -> list[Released]:
    """End the hold of *held*."""
    if not held:
        return []
    at = now.replace(microsecond=0)
    sequences = revocations.release(connection, [each.id for each in held], released_at=at, actor=by)
    places = zip(held, sequences, strict=True)
    return [Released(each.serial, each.device.name, at, sequence) for each, sequence in places]
