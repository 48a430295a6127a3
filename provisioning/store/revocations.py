"""Queries about revocations: what is revoked now, and the feed's events in commit order without gaps.

Rules
-----
1. Every change writes one event for each certificate, in the transaction that makes it.
2. A certificate is revoked if and only if it has a row in `revocations`, and that row names the event that says so.
3. Every process on the store is notified when the transaction commits (`provisioning.store.announcements`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from sqlalchemy import ColumnElement, Integer, String, bindparam, case, delete, func, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.pki.identity import AUTHORITY_PREFIX
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.quick_values import quickly_made
from provisioning.store import announcements, counters
from provisioning.store.certificates import EXPIRY, StoredRevocation
from provisioning.store.prepared import Columns, Prepared, Same
from provisioning.store.tables import activations, authorities, certificates, devices, revocation_events, revocations
from provisioning.store.utc_date_time import UtcDateTime

_EVENTS: Final = revocation_events.c
_ADD: Final = Prepared(insert(revocations), told_by="sequence")
_ADD_EVENT: Final = Prepared(insert(revocation_events), told_by="sequence")
# An issuing CA's own key, of its event alone. Written so that no other row has the CAs looked at.
_AUTHORITY_KEY: Final = case(
    (
        func.substr(devices.c.name, 1, len(AUTHORITY_PREFIX), type_=String) == AUTHORITY_PREFIX,
        select(authorities.c.key_id)
        .where(
            authorities.c.name == func.substr(devices.c.name, len(AUTHORITY_PREFIX) + 1, type_=String),
            authorities.c.kind == "issuing",
        )
        .scalar_subquery(),
    )
).label("authority_key")
_AFTER: Final = Prepared(
    select(
        _EVENTS.sequence,
        _EVENTS.kind,
        certificates.c.issuer_key_id,
        certificates.c.serial,
        _EVENTS.reason,
        _EVENTS.occurred_at,
        devices.c.name,
        _EVENTS.invalidity_date,
        _AUTHORITY_KEY,
    )
    .select_from(revocation_events.join(certificates).join(devices))
    .where(_EVENTS.sequence > bindparam("position"))
    .order_by(_EVENTS.sequence)
    .limit(bindparam("most", type_=Integer))
)
_PAGE: Final = 1000
# A page of events by their numbers, then those of one issuer: in one query, PostgreSQL without statistics
# reads every certificate of the issuer. It does not push conditions below a LIMIT.
_CHANGED: Final = (
    select(
        _EVENTS.sequence,
        certificates.c.serial,
        certificates.c.not_after,
        _EVENTS.occurred_at,
        revocations.c.revoked_at,
        revocations.c.reason,
        revocations.c.invalidity_date,
        certificates.c.issuer_key_id,
        certificates.c.crl_shard_id,
    )
    .select_from(
        revocation_events.join(certificates).outerjoin(revocations, revocations.c.certificate_id == certificates.c.id)
    )
    .where(_EVENTS.sequence > bindparam("after"), _EVENTS.sequence <= bindparam("through"))
    .order_by(_EVENTS.sequence)
    .limit(_PAGE)
    .subquery()
)
_CHANGES: Final = (
    select(*(column for column in _CHANGED.c if column.name not in {"issuer_key_id", "crl_shard_id"}))
    .where(_CHANGED.c.issuer_key_id == bindparam("issuer"))
    .order_by(_CHANGED.c.sequence)
)
_CHANGES_OF_SHARD: Final = _CHANGES.where(_CHANGED.c.crl_shard_id == bindparam("shard"))


# Not by their indexes: SQLite would read all certificates, or each that has not expired, and not each that is revoked.
_OF_CERTIFICATE: Final = revocations.c.certificate_id + 0
_FINALISE: Final = Prepared(
    update(revocations)
    .where(revocations.c.certificate_id == bindparam("held"))
    .values(
        sequence=bindparam("place"),
        reason=bindparam("final"),
        revoked_by=bindparam("actor"),
        invalidity_date=bindparam("invalid"),
    ),
    at_once=True,
)
_WITHDRAW: Final = Prepared(
    update(activations)
    .where(activations.c.certificate_id == bindparam("held"))
    .values(withdrawn_at=bindparam("since")),
    at_once=True,
)
_HOLD_BY_ITSELF: Final = Prepared(
    update(revocations).where(revocations.c.certificate_id == bindparam("held")).values(by_itself=bindparam("own")),
    at_once=True,
)
_RELEASE: Final = Prepared(delete(revocations).where(revocations.c.certificate_id == bindparam("held")), at_once=True)


class EventKind(StrEnum):
    """What happened to a certificate."""

    REVOKED = "revoked"
    RELEASED = "released"


# An enumeration looks up a value in twenty steps, for each of a thousand events.
_KINDS: Final = {each.value: each for each in EventKind}
_REASONS: Final = {each.value: each for each in RevocationReason}


@quickly_made
@dataclass(frozen=True, slots=True)
class RevocationRecord:
    """One event of the feed. The CRL has *occurred_at* truncated to the second."""

    sequence: int
    kind: EventKind
    issuer_key_id: str
    serial: str
    reason: RevocationReason
    occurred_at: datetime
    device: str
    invalidity_date: datetime | None = None
    authority_key: str | None = None
    """If it is the revocation of an issuing CA: the identifier of that one's own key, in hexadecimal."""


def add(
    connection: Connection,
    certificate_ids: Sequence[int],
    *,
    reason: RevocationReason,
    revoked_at: datetime,
    revoked_by: str,
    invalidity_date: datetime | None = None,
) -> range:
    """Record revocations and return their sequence numbers, in the order of *certificate_ids*.

    Their revocation date is *revoked_at* truncated to the second, as a CRL has it (RFC 5280 §5.1.2.6); their
    events keep the exact time. *invalidity_date* is since when they were not to be trusted (RFC 5280 §5.3.2).
    """
    if not certificate_ids:
        return range(0)
    since = Same(invalidity_date)
    sequences = _append(
        connection, EventKind.REVOKED, certificate_ids, Same(revoked_at), since, reason=reason, actor=revoked_by
    )
    columns: Columns = {
        "sequence": sequences,
        "certificate_id": certificate_ids,
        "reason": Same(reason.value),
        "revoked_at": Same(revoked_at.replace(microsecond=0)),
        "revoked_by": Same(revoked_by),
        "invalidity_date": since,
        "by_itself": Same(False),
    }
    _ADD.run_columns(connection, columns)
    return sequences


def finalise(
    connection: Connection,
    held: Mapping[int, StoredRevocation],
    *,
    reason: RevocationReason,
    revoked_by: str,
    invalidity_date: datetime | None = None,
    replaced: bool = False,
) -> range:
    """Turn holds, or revocations for another reason, into those for *reason*; return their sequence numbers.

    *held* has the certificates' current revocations, by certificate id. Their dates stay: they have been distrusted
    since then. So do their invalidity dates, if no other is given. *replaced*: another certificate replaces them now.
    """
    if not held:
        return range(0)
    identifiers = list(held)
    revoked_at = [before.revoked_at for before in held.values()]
    invalid = [invalidity_date or before.invalidity_date for before in held.values()]
    sequences = _append(
        connection, EventKind.REVOKED, identifiers, revoked_at, invalid, reason=reason, actor=revoked_by
    )
    columns: Columns = {
        "held": identifiers,
        "place": sequences,
        "final": Same(reason.value),
        "actor": Same(revoked_by),
        "invalid": invalid,
    }
    _FINALISE.run_columns(connection, columns)
    if not replaced:  # Trials are on hold from their first second, so every end of one passes here.
        _WITHDRAW.run_columns(connection, {"held": identifiers, "since": revoked_at})
    return sequences


def hold_by_itself(connection: Connection, certificate_ids: Sequence[int], *, by_itself: bool) -> None:
    """Say of certificates on hold whether they are so by themselves, or only with their devices.

    That is no event: to a relying party they are on hold either way.
    """
    if certificate_ids:
        _HOLD_BY_ITSELF.run_columns(connection, {"held": certificate_ids, "own": Same(by_itself)})


def release(connection: Connection, certificate_ids: Sequence[int], *, released_at: datetime, actor: str) -> range:
    """End holds; return the sequence numbers of the releases."""
    if not certificate_ids:
        return range(0)
    sequences = _append(
        connection,
        EventKind.RELEASED,
        certificate_ids,
        Same(released_at),
        Same(None),
        reason=RevocationReason.CERTIFICATE_HOLD,
        actor=actor,
    )
    _RELEASE.run_columns(connection, {"held": certificate_ids})
    return sequences


def _append(
    connection: Connection,
    kind: EventKind,
    certificate_ids: Sequence[int],
    occurred_at: Sequence[datetime] | Same,
    invalidity_dates: Sequence[datetime | None] | Same,
    *,
    reason: RevocationReason,
    actor: str,
) -> range:
    """Record an event for each of *certificate_ids*, which are different."""
    sequences = counters.take(connection, counters.REVOCATION, len(certificate_ids))
    columns: Columns = {
        "sequence": sequences,
        "certificate_id": certificate_ids,
        "kind": Same(kind.value),
        "reason": Same(reason.value),
        "occurred_at": occurred_at,
        "actor": Same(actor),
        "invalidity_date": invalidity_dates,
    }
    _ADD_EVENT.run_columns(connection, columns)
    announcements.announce(connection)
    return sequences


def after(connection: Connection, sequence: int, limit: int) -> list[RevocationRecord]:
    """Return the events after *sequence*, in order, *limit* at most."""
    rows = _AFTER.rows(connection, {"position": sequence, "most": limit})
    return [
        RevocationRecord(number, _KINDS[kind], issuer, serial, _REASONS[reason], *rest)
        for number, kind, issuer, serial, reason, *rest in rows
    ]


def last(connection: Connection) -> RevocationRecord | None:
    """Return the newest event, None if there is none."""
    return next(iter(after(connection, newest(connection) - 1, 1)), None)


def has(connection: Connection, record: RevocationRecord | None) -> bool:
    """Whether *record* is still the event with its number: not if the store has lost its last commits."""
    return record is None or after(connection, record.sequence - 1, 1) == [record]


@dataclass(frozen=True, slots=True)
class ListedChange:
    """A certificate's current state for a CRL, and the newest event about it; *revoked_at* is None if released."""

    sequence: int
    serial: int
    not_after: datetime
    occurred_at: datetime
    revoked_at: datetime | None
    reason: RevocationReason | None
    invalidity_date: datetime | None = None


_LISTED: Final = (
    revocations.c.sequence,
    certificates.c.serial,
    certificates.c.not_after,
    revocations.c.revoked_at,
    revocations.c.reason,
    revocations.c.invalidity_date,
)
"""What a list says of a certificate that is revoked now, in the order of `ListedChange`'s making."""


def listed(connection: Connection, issuer_key_id: bytes, shard_id: int | None, since: datetime) -> list[ListedChange]:
    """Return all certificates of an issuer, or of one shard, revoked now that had not expired at *since*."""
    statement = (
        select(*_LISTED)
        .select_from(revocations.join(certificates, certificates.c.id == _OF_CERTIFICATE))
        .where(*_scope(issuer_key_id, shard_id), since < EXPIRY)
        .order_by(revocations.c.sequence)
    )
    return [
        ListedChange(sequence, int(serial, 16), not_after, at, at, RevocationReason(reason), invalid)
        for sequence, serial, not_after, at, reason, invalid in connection.execute(statement)
    ]


_EACH: Final = (
    select(certificates.c.issuer_key_id, certificates.c.crl_shard_id, *_LISTED)
    .select_from(revocations.join(certificates, certificates.c.id == _OF_CERTIFICATE))
    .where(bindparam("since", type_=UtcDateTime) < EXPIRY)
    .order_by(revocations.c.sequence)
)
_RELEASED: Final = (
    select(
        certificates.c.issuer_key_id,
        certificates.c.crl_shard_id,
        _EVENTS.sequence,
        certificates.c.serial,
        certificates.c.not_after,
        _EVENTS.occurred_at,
    )
    .select_from(
        revocation_events.join(certificates).outerjoin(revocations, revocations.c.certificate_id == certificates.c.id)
    )
    .where(
        _EVENTS.sequence > bindparam("after"),
        _EVENTS.sequence <= bindparam("through"),
        _EVENTS.kind == EventKind.RELEASED.value,
        revocations.c.sequence.is_(None),
    )
    .order_by(_EVENTS.sequence)
)
Scope = tuple[str, int | None]
"""An issuer's key identifier and a shard: which lists a certificate is on."""


def listed_of_each(connection: Connection, since: datetime) -> Iterator[tuple[Scope, ListedChange]]:
    """Yield what `listed` returns, of every issuer and shard, in the order of the feed."""
    # In portions: a driver keeps a whole result, which may be all revocations of a fleet.
    rows = connection.execution_options(yield_per=_PAGE).execute(_EACH, {"since": since})
    for issuer, shard, sequence, serial, not_after, at, reason, invalid in rows:
        yield (issuer, shard), ListedChange(sequence, int(serial, 16), not_after, at, at, _REASONS[reason], invalid)


def released_of_each(connection: Connection, after: int, through: int) -> Iterator[tuple[Scope, ListedChange]]:
    """Yield the certificates that were released after the event *after*, up to *through*, and are not revoked now."""
    for start in range(after, through, _PAGE):
        part = {"after": start, "through": min(start + _PAGE, through)}
        for issuer, shard, sequence, serial, not_after, occurred_at in connection.execute(_RELEASED, part):
            yield (issuer, shard), ListedChange(sequence, int(serial, 16), not_after, occurred_at, None, None)


def changes(
    connection: Connection, issuer_key_id: bytes, shard_id: int | None, after: int, through: int
) -> list[ListedChange]:
    """Return the current state of certificates with events after *after*, up to *through*."""
    found: list[ListedChange] = []
    wanted = {"issuer": issuer_key_id.hex(), "shard": shard_id}
    statement = _CHANGES if shard_id is None else _CHANGES_OF_SHARD
    for start in range(after, through, _PAGE):
        rows = connection.execute(statement, wanted | {"after": start, "through": min(start + _PAGE, through)})
        found += [
            ListedChange(
                place, int(serial, 16), not_after, at, revoked_at, reason and RevocationReason(reason), invalid
            )
            for place, serial, not_after, at, revoked_at, reason, invalid in rows
        ]
    return found


def _scope(issuer_key_id: bytes, shard_id: int | None) -> list[ColumnElement[bool]]:
    scope = [certificates.c.issuer_key_id == issuer_key_id.hex()]
    if shard_id is not None:
        scope.append(certificates.c.crl_shard_id == shard_id)
    return scope


def newest(connection: Connection) -> int:
    """Return the sequence number of the newest event, 0 if there is none."""
    number: int = connection.execute(select(func.coalesce(func.max(revocation_events.c.sequence), 0))).scalar_one()
    return number
