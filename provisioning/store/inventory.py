"""Queries over all certificates: search, count, expiry.

One that was issued on trial stays on hold for ever. After its end it counts as expired, not as suspended: nobody has
suspended it, and a batch of thousands of devices has thousands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Join, Table, exists, false, func, not_, or_, select, true
from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import stretches
from provisioning.store.certificates import (
    ENDED_ABOVE,
    EXPIRY,
    NOT_ENDED_ABOVE,
    REASON,
    CertificateState,
    StoredCertificate,
    from_row,
    selected,
    with_ends_above,
    with_ids,
)
from provisioning.store.devices import NOT_REVOKED
from provisioning.store.tables import (
    activations,
    certificates,
    devices,
    revocations,
    unfinished_authority_ends,
    unfinished_key_ends,
)


@dataclass(frozen=True, slots=True)
class CertificateSearch:
    """Which certificates; None: any. The bounds of notAfter are inclusive below and exclusive above."""

    device: str | None = None
    group: str | None = None
    serial: str | None = None
    fingerprint: str | None = None
    issuer: str | None = None
    """The issuer's key identifier."""
    state: CertificateState | None = None
    expires_from: datetime | None = None
    expires_before: datetime | None = None

    @property
    def narrows(self) -> bool:
        """Whether it says something that no index answers in the order of issuance."""
        said = self.group, self.fingerprint, self.issuer, self.state, self.expires_from, self.expires_before
        return any(each is not None for each in said)

    def indexed(self) -> list[ColumnElement[bool]]:
        """Return what an index answers, as SQL conditions on certificates alone."""
        found: list[ColumnElement[bool]] = []
        if self.device is not None:
            owner = select(devices.c.id).where(devices.c.name == self.device).scalar_subquery()
            found.append(certificates.c.device_id == owner)
        if self.serial is not None:
            found.append(certificates.c.serial == self.serial)
        return found

    def conditions(self, state_of: _StateOf) -> Iterator[ColumnElement[bool]]:
        """Yield the rest but for the group, as SQL conditions on certificates."""
        if self.issuer is not None:
            yield certificates.c.issuer_key_id == self.issuer
        if self.fingerprint is not None:
            yield certificates.c.fingerprint_sha256 == self.fingerprint
        if self.expires_from is not None:
            yield state_of.ends >= self.expires_from
        if self.expires_before is not None:
            yield state_of.ends < self.expires_before
        if self.state is not None:
            yield state_of.is_(self.state)


@dataclass(frozen=True, slots=True)
class _StateOf:
    """The columns that a certificate's state follows from *now*."""

    now: datetime
    reason: ColumnElement[str | None]
    """Why it is revoked now, NULL if it is not."""
    ends: ColumnElement[datetime]
    on_trial: ColumnElement[bool]
    """Whether it was issued on trial."""
    above: bool
    """Include the ends of keys and CAs, over `with_ends_above`: some are not recorded for all certificates yet."""

    def is_(self, state: CertificateState) -> ColumnElement[bool]:
        """Return the state as an SQL condition."""
        ended, stands = (ENDED_ABOVE, NOT_ENDED_ABOVE) if self.above else (false(), true())
        unrevoked = self.reason.is_(None) & stands
        over = (self.reason == _HOLD) & (self.ends <= self.now) & self.on_trial
        match state:
            case CertificateState.REVOKED:  # In SQL a comparison with NULL is not true.
                return or_(self.reason != _HOLD, ended)
            case CertificateState.SUSPENDED:
                return (self.reason == _HOLD) & stands & not_(over)
            case CertificateState.ACTIVE:
                return unrevoked & (self.ends > self.now)
            case CertificateState.EXPIRED:
                return or_(unrevoked & (self.ends <= self.now), over & stands)


_HOLD: Final = RevocationReason.CERTIFICATE_HOLD.value
_OF_TRIAL: Final = activations.c.certificate_id == certificates.c.id
# Subqueries and not joins, and the expiry not by its index: a page looks at the rows of one stretch, and PostgreSQL
# without statistics would read all devices, revocations or expiries for it.


def _of_group(name: str) -> ColumnElement[bool]:
    return select(devices.c.group_name).where(devices.c.id == certificates.c.device_id).scalar_subquery() == name


def page(
    connection: Connection, search: CertificateSearch, *, limit: int, after: int | None, now: datetime
) -> tuple[list[StoredCertificate], int | None]:
    """Return up to *limit* certificates in order of issuance, after the row id *after*, and where the next page begins.

    Without a next page that is None. A page may be shorter though there is a next one (`provisioning.store.stretches`).
    """
    start, indexed = after or 0, search.indexed()
    if not search.narrows:
        behind = certificates.c.id > start
        statement = selected().where(*indexed, behind).order_by(certificates.c.id).limit(limit + 1)
        found = [from_row(row) for row in connection.execute(statement)]
        return found[:limit], found[limit - 1].id if len(found) > limit else None
    conditions = [*indexed, *search.conditions(_StateOf(now, REASON, EXPIRY, exists().where(_OF_TRIAL), above=True))]
    if search.group is not None:
        conditions.append(_of_group(search.group))
    wanted = select(certificates.c.id).select_from(with_ends_above(certificates)).where(*conditions)

    def find(behind: int, last: int, most: int) -> list[StoredCertificate]:
        part = wanted.where(certificates.c.id > behind, certificates.c.id <= last)
        return with_ids(connection, set(connection.execute(part.order_by(certificates.c.id).limit(most)).scalars()))

    return stretches.page(connection, select(certificates.c.id).where(*indexed), find, limit=limit, after=start)


def count(
    connection: Connection, now: datetime, search: CertificateSearch | None = None
) -> dict[CertificateState, int]:
    """Return how many certificates there are in each state *now*; without *search* by indexes alone, mostly."""
    above = _something_is_left(connection)
    if search in (None, CertificateSearch()) and not above:
        return _count_all(connection, now)
    on_trial = activations.c.certificate_id.is_not(None)
    state_of = _StateOf(now, revocations.c.reason, certificates.c.not_after, on_trial, above)
    conditions: list[ColumnElement[bool]] = []
    source: Table | Join = certificates
    if search is not None:
        conditions += [*search.indexed(), *search.conditions(state_of)]
        if search.group is not None:  # Not joined in vain: all certificates of years are counted.
            source = certificates.join(devices)
            conditions.append(devices.c.group_name == search.group)
    source = source.outerjoin(revocations).outerjoin(activations, _OF_TRIAL)
    if above:  # Including them doubles the cost.
        source = with_ends_above(source)
    # Each state by itself: to group them, SQLite would keep a row of each certificate in memory.
    numbers = [func.count().filter(state_of.is_(each)) for each in CertificateState]
    row = connection.execute(select(*numbers).select_from(source).where(*conditions)).one()
    return dict(zip(CertificateState, row, strict=True))


def _count_all(connection: Connection, now: datetime) -> dict[CertificateState, int]:
    """Count without a look at any certificate: a million take a gigabyte, the indexes of them a twentieth."""
    every = connection.execute(select(func.count()).select_from(certificates)).scalar_one()
    held = func.count().filter(revocations.c.reason == _HOLD)
    revoked, on_hold = connection.execute(select(func.count(), held).select_from(revocations)).one()
    unrevoked = select(func.count()).select_from(certificates).where(certificates.c.not_after > now, NOT_REVOKED)
    active = connection.execute(unrevoked).scalar_one()
    of_trial = activations.join(revocations, revocations.c.certificate_id == activations.c.certificate_id)
    ended = select(func.count()).select_from(of_trial)
    over = connection.execute(ended.where(activations.c.expires_at <= now, revocations.c.reason == _HOLD)).scalar_one()
    return {
        CertificateState.ACTIVE: active,
        CertificateState.SUSPENDED: on_hold - over,
        CertificateState.REVOKED: revoked - on_hold,
        CertificateState.EXPIRED: every - active - revoked + over,
    }


def _something_is_left(connection: Connection) -> bool:
    """Whether there are certificates still to be recorded as revoked because of their key or CA."""
    tables = unfinished_key_ends, unfinished_authority_ends
    return any(connection.execute(select(exists(select(1).select_from(each)))).scalar_one() for each in tables)
