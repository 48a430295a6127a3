"""Queries about claim certificates and what became of the certificates that were issued for them.

A claim is shared by a production batch. It buys a certificate *on trial*: short-lived, on hold from its first second,
and good only for requesting its successor. That request is the activation. A place of the claim is taken
while a trial lasts, and for good after an activation; a trial that ends unused gives it back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, bindparam, exists, func, insert, or_, select, tuple_, update
from sqlalchemy.engine import Connection, Row

from provisioning.store import claim_places
from provisioning.store.devices import Device
from provisioning.store.prepared import Prepared
from provisioning.store.tables import activations, certificates, claims, devices


@dataclass(frozen=True, slots=True)
class NewClaim:
    """A claim to record."""

    name: str
    group: str
    fingerprint_sha256: str
    der: bytes
    maximum_devices: int
    trial: timedelta
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """A claim as the store knows it; *used* is how many of its places are taken, lost trials among them by `find`."""

    id: int
    name: str
    group: str
    fingerprint_sha256: str
    der: bytes
    maximum_devices: int
    trial: timedelta
    created_at: datetime
    created_by: str
    expires_at: datetime
    ended_at: datetime | None
    used: int


@dataclass(frozen=True, slots=True)
class EndedClaims:
    """What has ended with operators who made it, by their names."""

    names: Mapping[str, Sequence[str]]
    trials: Counter[str]
    """How many devices on trial cannot be activated any more."""


class TrialState(StrEnum):
    """What has become of a certificate that was issued on trial; on hold it is in any case."""

    AWAITED = "awaited"
    """The device may still activate itself with it."""
    ACTIVATED = "activated"
    ENDED = "ended"
    """It has not, and cannot any more."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a certificate on trial was issued for."""

    claim: str
    der: bytes
    """The claim's certificate."""
    withdrawn_at: datetime | None
    """Since when it activates nobody: whoever stole the key of the claim's maker may have made the claim."""


_ADD_TRIAL: Final = insert(activations)
_TRIALS: Final = Prepared(
    select(activations.c.certificate_id).where(activations.c.device_id == bindparam("wanted")), at_once=True
)
_BECAME: Final = Prepared(
    select(
        activations.c.certificate_id, activations.c.expires_at, activations.c.activated_at, activations.c.withdrawn_at
    ).where(activations.c.certificate_id == bindparam("wanted")),
    at_once=True,
)
_PENDING: Final = select(activations.c.certificate_id).where(activations.c.certificate_id == bindparam("wanted"))


def add(connection: Connection, claim: NewClaim, *, by: str, now: datetime) -> None:
    """Record a claim; raise SQLAlchemy's IntegrityError if there is one of that name."""
    row = {
        "name": claim.name,
        "group_name": claim.group,
        "fingerprint_sha256": claim.fingerprint_sha256,
        "der": claim.der,
        "maximum_devices": claim.maximum_devices,
        "trial_seconds": int(claim.trial.total_seconds()),
        "created_at": now,
        "created_by": by,
        "expires_at": claim.expires_at,
    }
    connection.execute(insert(claims), row)


def find(connection: Connection, fingerprint_sha256: str) -> StoredClaim | None:
    """Return the claim with this certificate, locked until the transaction ends: its places are taken one by one.

    Its *used* may have places of trials that have ended: `is_full` frees some where that matters.
    """
    locked = select(claims, claims.c.taken.label("used")).with_for_update()
    row = connection.execute(locked.where(claims.c.fingerprint_sha256 == fingerprint_sha256)).one_or_none()
    return None if row is None else _from_row(row)


def find_named(connection: Connection, name: str, now: datetime) -> StoredClaim | None:
    """Return the claim called *name*."""
    statement = select(claims, claim_places.used(now)).where(claims.c.name == name)
    row = connection.execute(statement).one_or_none()
    return None if row is None else _from_row(row)


def page(connection: Connection, *, limit: int, after: str | None, now: datetime) -> Sequence[StoredClaim]:
    """Return claims in order of name, after the name *after*."""
    statement = select(claims, claim_places.used(now)).order_by(claims.c.name).limit(limit)
    if after is not None:
        statement = statement.where(claims.c.name > after)
    return [_from_row(row) for row in connection.execute(statement)]


def end(connection: Connection, name: str, now: datetime) -> bool:
    """End a claim; return False if it had ended before."""
    statement = update(claims).where(claims.c.name == name, claims.c.ended_at.is_(None)).values(ended_at=now)
    return connection.execute(statement).rowcount == 1


def end_made_by(connection: Connection, makers: Mapping[str, datetime | None], now: datetime) -> EndedClaims:
    """End the claims that *makers* have made and that go on, and the trials of all that they have made.

    A maker's moment: what was made later, goes on.
    """
    ended: dict[str, list[str]] = {}
    trials = Counter[str]()
    for until in dict.fromkeys(makers.values()):
        names = [name for name, each in makers.items() if each == until]
        made: list[ColumnElement[bool]] = [claims.c.created_by.in_(names)]
        made += [] if until is None else [claims.c.created_at <= until]
        going_on = claims.c.ended_at.is_(None), claims.c.expires_at > now
        statement = update(claims).where(*made, *going_on).values(ended_at=now)
        for maker, name in connection.execute(statement.returning(claims.c.created_by, claims.c.name)):
            ended.setdefault(maker, []).append(name)
        trials += _end_trials(connection, made, now)
    return EndedClaims({maker: sorted(ended[maker]) for maker in sorted(ended)}, trials)


def _end_trials(connection: Connection, made: Sequence[ColumnElement[bool]], now: datetime) -> Counter[str]:
    """Withdraw the trials of claims *made* so; return how many devices that are, by the claims' maker."""
    on_trial = claim_places.on_trial(now).where(*made)  # Of lost trials there may be any number.
    if connection.execute(on_trial.limit(1)).first() is None:
        return Counter()
    maker = (
        select(claims.c.created_by)
        .where(claims.c.id == activations.c.claim_id)
        .correlate(activations)
        .scalar_subquery()
    )
    statement = (
        update(activations)
        .where(
            tuple_(activations.c.claim_id, activations.c.device_id).in_(on_trial),
            activations.c.activated_at.is_(None),
            activations.c.withdrawn_at.is_(None),
        )
        .values(withdrawn_at=now)
        .returning(activations.c.device_id, maker)
    )
    return Counter(row[1] for row in {tuple(row) for row in connection.execute(statement)})


def places_taken_of(connection: Connection, maker: str) -> int:
    """Return how many places of claims that *maker* has made are taken."""
    statement = select(func.coalesce(func.sum(claims.c.taken), 0)).where(claims.c.created_by == maker)
    return int(connection.execute(statement).scalar_one())


def anchors(connection: Connection, now: datetime) -> list[bytes]:
    """Return the certificates of claims that can still be used, as DER."""
    statement = select(claims.c.der).where(claims.c.ended_at.is_(None), claims.c.expires_at > now).order_by(claims.c.id)
    return list(connection.execute(statement).scalars())


def ever_made(connection: Connection) -> list[tuple[str, bytes]]:
    """Return the name and the certificate, as DER, of each claim, ended or not."""
    return [
        (row.name, row.der) for row in connection.execute(select(claims.c.name, claims.c.der).order_by(claims.c.id))
    ]


def is_full(connection: Connection, claim: StoredClaim, device_name: str, now: datetime) -> bool:
    """Whether a claim that `find` returned has no place for the device called *device_name*, nor that one already."""
    if claim.used < claim.maximum_devices:
        return False
    left = claim.used - claim_places.free_lost(connection, claim.id, now)
    # What it holds is not lost, then: one that was would have been freed.
    return left >= claim.maximum_devices and not claim_places.holds(connection, claim.id, device_name)


def begin_trial(
    connection: Connection, claim_id: int, device_id: int, certificate_id: int, expires_at: datetime
) -> None:
    """Record that a certificate is on trial, and how long its device counts in its group if that is all it ever has."""
    row = {"certificate_id": certificate_id, "claim_id": claim_id, "device_id": device_id, "expires_at": expires_at}
    connection.execute(_ADD_TRIAL, row)
    claim_places.take(connection, claim_id, device_id, expires_at)
    another = exists().where(certificates.c.device_id == device_id, certificates.c.id != certificate_id)
    first = devices.c.trial_ends_at.is_(None) & ~another
    statement = update(devices).where(devices.c.id == device_id, or_(first, devices.c.trial_ends_at < expires_at))
    connection.execute(statement.values(trial_ends_at=expires_at))


def on_trial(connection: Connection, certificate_id: int) -> bool:
    """Whether this certificate was issued on trial; its end is its own."""
    return connection.execute(_PENDING, {"wanted": certificate_id}).one_or_none() is not None


def became(connection: Connection, certificate_ids: Iterable[int], now: datetime) -> dict[int, TrialState]:
    """Return what has become, by *now*, of those of the certificates with these ids that were issued on trial."""
    return {
        number: _became(expires_at, activated_at, withdrawn_at, now)
        for number, expires_at, activated_at, withdrawn_at, _ in _BECAME.placed(connection, list(certificate_ids))
    }


def _became(
    expires_at: datetime, activated_at: datetime | None, withdrawn_at: datetime | None, now: datetime
) -> TrialState:
    if activated_at is not None:
        return TrialState.ACTIVATED
    return TrialState.AWAITED if withdrawn_at is None and now < expires_at else TrialState.ENDED


def of_trial(connection: Connection, certificate_id: int) -> Trial | None:
    """Return what a certificate on trial was issued for, None of another."""
    statement = (
        select(claims.c.name, claims.c.der, activations.c.withdrawn_at)
        .select_from(activations.join(claims, claims.c.id == activations.c.claim_id))
        .where(activations.c.certificate_id == certificate_id)
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else Trial(*row)


def has_activated(connection: Connection, certificate_id: int) -> bool:
    """Whether this certificate, which was issued on trial, has activated its device."""
    statement = select(activations.c.activated_at).where(activations.c.certificate_id == certificate_id)
    return connection.execute(statement).scalar_one_or_none() is not None


def activate(connection: Connection, certificate_id: int, now: datetime) -> None:
    """Record the activation, whose place is for good; nothing if there was one before."""
    statement = (
        update(activations)
        .where(activations.c.certificate_id == certificate_id, activations.c.activated_at.is_(None))
        .values(activated_at=now)
        .returning(activations.c.claim_id, activations.c.device_id)
    )
    row = connection.execute(statement).one_or_none()
    if row is not None:
        claim_places.take(connection, row.claim_id, row.device_id, None)


def never_activated(device: Device, now: datetime) -> bool:
    """Whether all that the device ever had are trials that ended without an activation: its name is free again."""
    return device.trial_ends_at is not None and device.trial_ends_at <= now


def trials_of(connection: Connection, *device_ids: int) -> frozenset[int]:
    """Return the ids of the devices' certificates that were issued on trial."""
    answers = _TRIALS.answers(connection, [{"wanted": each} for each in device_ids]) if device_ids else ()
    return frozenset(row[0] for answer in answers for row in answer.rows)


def _from_row(row: Row[Any]) -> StoredClaim:
    return StoredClaim(
        row.id,
        row.name,
        row.group_name,
        row.fingerprint_sha256,
        row.der,
        row.maximum_devices,
        timedelta(seconds=row.trial_seconds),
        row.created_at,
        row.created_by,
        row.expires_at,
        row.ended_at,
        row.used,
    )
