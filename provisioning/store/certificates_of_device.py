"""Queries about one device's certificates: all of them, those it may still use, and those withdrawn.

Whoever has copied a claim certificate may have a name certified on trial again and again. Lost trials are
passed over: if a device only ever had trials, one query tells whether any was withdrawn; otherwise they are
neither loaded into memory nor part of a decision's cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Integer, bindparam, func, or_, select
from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import unfinished_authority_ends
from provisioning.store.certificates import (
    ENDED_ABOVE,
    ENDS_ABOVE,
    EXPIRY,
    FACTS,
    NOT_ENDED_ABOVE,
    NOT_REVOKED,
    REASON,
    REVOCATION_FACTS,
    StoredCertificate,
    from_row,
    with_ends_above,
    with_ids,
)
from provisioning.store.devices import Device
from provisioning.store.prepared import Prepared
from provisioning.store.tables import activations, certificates, devices, revocations
from provisioning.store.utc_date_time import UtcDateTime

_PAGE: Final = 20
_FIRST: Final = 2**62
"""Above every id."""

# Subqueries and not joins: PostgreSQL, when it has no statistics yet, reads every revocation for a join.
_REVOCATION_COLUMNS: Final = [
    select(fact).where(revocations.c.certificate_id == certificates.c.id).scalar_subquery().label(fact.name)
    for fact in REVOCATION_FACTS
]
# Of an EXISTS it makes one look at every trial of the fleet.
_NO_TRIAL: Final = (
    select(activations.c.certificate_id)
    .where(activations.c.certificate_id == certificates.c.id)
    .scalar_subquery()
    .is_(None)
)
_ALL: Final = (
    select(*FACTS, *devices.c, *_REVOCATION_COLUMNS, *ENDS_ABOVE)
    .select_from(with_ends_above(certificates.join(devices)))
    .where(certificates.c.device_id == bindparam("wanted"))
)

_OF_DEVICE: Final = Prepared(_ALL.order_by(certificates.c.id), at_once=True)
_FIRST_OF_DEVICE: Final = Prepared(
    _ALL.order_by(certificates.c.id).limit(bindparam("most", type_=Integer)), at_once=True
)
_FIRST_IDS: Final = Prepared(
    select(certificates.c.id)
    .where(certificates.c.device_id == bindparam("wanted"))
    .order_by(certificates.c.id)
    .limit(bindparam("most", type_=Integer)),
    at_once=True,
)
_IDS_BEFORE: Final = Prepared(
    select(certificates.c.id)
    .where(certificates.c.device_id == bindparam("wanted"), certificates.c.id < bindparam("before"))
    .order_by(certificates.c.id.desc())
    .limit(bindparam("most", type_=Integer))
)
_BEHIND: Final = Prepared(
    select(certificates.c.not_after, _NO_TRIAL.label("counts"))
    .where(certificates.c.device_id == bindparam("wanted"))
    .order_by(certificates.c.id.desc())
    .offset(bindparam("newer", type_=Integer))
    .limit(1)
)
_NEWEST: Final = Prepared(_ALL.order_by(certificates.c.id.desc()).limit(1), at_once=True)
_IN_USE: Final = Prepared(
    _ALL.where(
        bindparam("since", type_=UtcDateTime) < EXPIRY,
        or_(certificates.c.not_after >= bindparam("now"), _NO_TRIAL),
    ).order_by(certificates.c.id)
)
_GOOD_UNTIL: Final = Prepared(
    select(certificates.c.device_id, certificates.c.not_after)
    .select_from(with_ends_above(certificates))
    .where(
        certificates.c.device_id == bindparam("wanted"),
        bindparam("now", type_=UtcDateTime) < EXPIRY,
        REASON.is_(None),
        NOT_ENDED_ABOVE,
    ),
    at_once=True,
)
_NOT_GONE: Final = Prepared(
    select(certificates.c.device_id)
    .select_from(with_ends_above(certificates))
    .where(
        certificates.c.device_id == bindparam("wanted"),
        bindparam("now", type_=UtcDateTime) < EXPIRY,
        NOT_REVOKED,
        NOT_ENDED_ABOVE,
    ),
    at_once=True,
)
_HELD_BY_THEMSELVES: Final = Prepared(
    select(certificates.c.serial)
    .select_from(with_ends_above(certificates))
    .where(
        certificates.c.device_id == bindparam("wanted"),
        bindparam("since", type_=UtcDateTime) < EXPIRY,
        NOT_ENDED_ABOVE,
        select(revocations.c.by_itself)
        .where(
            revocations.c.certificate_id == certificates.c.id,
            revocations.c.reason == RevocationReason.CERTIFICATE_HOLD.value,
        )
        .scalar_subquery(),
    )
    .order_by(certificates.c.id)
    .limit(bindparam("most", type_=Integer))
)
_DECIDED: Final = Prepared(
    select(certificates.c.id, certificates.c.serial, *_REVOCATION_COLUMNS[:3], *ENDS_ABOVE)
    .select_from(with_ends_above(certificates))
    .where(
        certificates.c.device_id == bindparam("wanted"),
        certificates.c.id < bindparam("before"),
        or_(func.coalesce(REASON, "") != RevocationReason.CERTIFICATE_HOLD.value, _NO_TRIAL, ENDED_ABOVE),
    )
    .order_by(certificates.c.id.desc())
    .limit(bindparam("most", type_=Integer)),
    at_once=True,
)
# Not "is not NULL": for that SQLite would look at every trial of the device.
_WITHDRAWN_TRIAL: Final = Prepared(
    select(activations.c.certificate_id)
    .where(
        activations.c.device_id == bindparam("wanted"), activations.c.withdrawn_at > datetime(1970, 1, 1, tzinfo=UTC)
    )
    .limit(1)
)


# By itself: nearly always there is no such CA, and then no trial is looked at.
_TRIAL_OF_ENDED_ISSUER: Final = Prepared(
    select(certificates.c.id)
    .where(
        certificates.c.device_id == bindparam("wanted"),
        certificates.c.issuer_key_id == bindparam("issuer"),
        certificates.c.not_after > bindparam("ended_at", type_=UtcDateTime),
    )
    .order_by(certificates.c.id.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """The certificate that a device had last, and why it was revoked or put on hold."""

    serial: str
    reason: RevocationReason


def every(connection: Connection, device_id: int) -> list[StoredCertificate]:
    """Return every certificate of a device, oldest first."""
    return [from_row(row) for row in _OF_DEVICE.rows(connection, {"wanted": device_id})]


def first(connection: Connection, device_id: int, most: int) -> list[StoredCertificate]:
    """Return the *most* oldest certificates of a device, oldest first, or all if there are fewer."""
    return [from_row(row) for row in _FIRST_OF_DEVICE.rows(connection, {"wanted": device_id, "most": most})]


def first_ids(connection: Connection, device_ids: Sequence[int], most: int) -> list[list[int]]:
    """Return the ids of the *most* oldest certificates of each device."""
    found: list[list[int]] = [[] for _ in device_ids]
    for identifier, place in _FIRST_IDS.placed(connection, device_ids, {"most": most}):
        found[place - 1].append(identifier)
    return [sorted(each) for each in found]


def before(connection: Connection, device_id: int, identifier: int, most: int) -> list[StoredCertificate]:
    """Return the *most* newest certificates of a device with an id below *identifier*, newest first."""
    # In two steps: the index alone says which, and the rest is looked up for those only.
    found = _IDS_BEFORE.rows(connection, {"wanted": device_id, "before": identifier, "most": most})
    return with_ids(connection, {row[0] for row in found})[::-1]


def newest(connection: Connection, device_id: int) -> StoredCertificate | None:
    """Return the device's newest certificate, None if it never had one."""
    row = _NEWEST.first(connection, {"wanted": device_id})
    return None if row is None else from_row(row)


def newest_but_trials(connection: Connection, device_id: int) -> StoredCertificate | None:
    """Return the newest that is no trial on hold, None if there is none."""
    found = next(_decided(connection, device_id), None)
    return None if found is None else with_ids(connection, {found[0]})[0]


def end_behind(connection: Connection, device_id: int, newer: int) -> datetime | None:
    """Return the expiry of the certificate before a device's *newer* newest ones; None: there is none, or a trial."""
    row = _BEHIND.first(connection, {"wanted": device_id, "newer": newer})
    end: datetime | None = row[0] if row is not None and row[1] else None
    return end


def in_use(connection: Connection, device_id: int, now: datetime, grace: timedelta) -> list[StoredCertificate]:
    """Return the device's certificates that are still usable, oldest first.

    Those revoked for ever are not, nor those still to be for their key or with their CA.
    An expired certificate may be renewed for up to *grace*; a trial that has ended is not usable.
    """
    found = _IN_USE.rows(connection, {"wanted": device_id, "since": now - grace, "now": now})
    every = map(from_row, found)
    return [
        each
        for each in every
        if each.ended_above is None and (each.revocation is None or not each.revocation.reason.final)
    ]


def held_by_themselves(connection: Connection, device_id: int, since: datetime, most: int) -> list[str]:
    """Return the serial numbers of the *most* oldest certificates of a device that are suspended by themselves.

    Those are left out that had expired *since*, and those still to be revoked for their key or with their CA.
    """
    found = _HELD_BY_THEMSELVES.rows(connection, {"wanted": device_id, "since": since, "most": most})
    return [row[0] for row in found]


def good_until(connection: Connection, device_ids: Sequence[int], now: datetime) -> dict[int, datetime]:
    """Return when the last certificate that is good *now* expires, of those of the devices that have one."""
    ends: dict[int, datetime] = {}
    for device_id, not_after, _place in _GOOD_UNTIL.placed(connection, device_ids, {"now": now}):
        ends[device_id] = max(not_after, ends.get(device_id, not_after))
    return ends


def not_gone(connection: Connection, device_ids: Sequence[int], now: datetime) -> set[int]:
    """Return those of the devices that have a certificate which is good *now*, or is on hold and may be again."""
    return {row[0] for row in _NOT_GONE.placed(connection, device_ids, {"now": now})}


def withdrawn(connection: Connection, device: Device, since: int = 0) -> Withdrawal | None:
    """Return the withdrawal of the device's latest certificate, None if it was not withdrawn *since* that event.

    Trials that wait for their activation are passed over, except those of a revoked CA, and so are certificates revoked
    as superseded by one that replaced them. One that was revoked for that reason without a replacement counts as
    withdrawn.
    """
    if device.trial_ends_at is not None and not _trial_was_withdrawn(connection, device.id):
        return None  # Trials are all that it ever had, and nobody has ended one.
    last = newest(connection, device.id)
    if last is None:
        return None
    for identifier, serial, reason, revoked_at, sequence in _decided(connection, device.id):
        if reason is None or (sequence is not None and sequence < since):
            return None
        replaced = identifier != last.id and revoked_at <= last.issued_at
        if reason is not RevocationReason.SUPERSEDED or not replaced:
            return Withdrawal(serial, reason)
    return None


def _trial_was_withdrawn(connection: Connection, device_id: int) -> bool:
    """Whether a trial of the device was revoked for ever, or is still to be with its CA."""
    if _WITHDRAWN_TRIAL.first(connection, {"wanted": device_id}) is not None:
        return True
    return any(
        _TRIAL_OF_ENDED_ISSUER.first(connection, {"wanted": device_id, "issuer": key_id, "ended_at": ended_at})
        is not None
        for key_id, ended_at in unfinished_authority_ends.since(connection)
    )


def _decided(
    connection: Connection, device_id: int
) -> Iterator[tuple[int, str, RevocationReason | None, datetime, int | None]]:
    """Yield the device's certificates but for trials on hold, newest first.

    That is id, serial number, and the revocation's reason, date and number; it has none if it is still to be recorded.
    """
    before, most = _FIRST, 1  # The newest mostly decides: for a page, trials of any number would be passed over.
    while rows := _DECIDED.rows(connection, {"wanted": device_id, "before": before, "most": most}):
        for identifier, serial, sequence, reason, revoked_at, key_ended_at, issuer_ended_at in rows:
            if key_ended_at is not None:  # It is revoked for that, or still to be.
                yield identifier, serial, RevocationReason.KEY_COMPROMISE, key_ended_at, None
            elif reason is None and issuer_ended_at is not None:  # It is still to be revoked with its CA.
                yield identifier, serial, RevocationReason.UNSPECIFIED, issuer_ended_at, None
            elif reason == RevocationReason.CERTIFICATE_HOLD.value and issuer_ended_at is not None:  # No hold any more.
                yield identifier, serial, RevocationReason.UNSPECIFIED, revoked_at, sequence
            else:
                yield identifier, serial, None if reason is None else RevocationReason(reason), revoked_at, sequence
        before, most = rows[-1][0], _PAGE
