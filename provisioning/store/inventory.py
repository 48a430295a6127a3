"""Queries over all certificates: search, count, expiry."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, case, exists, false, func, or_, select, true
from sqlalchemy.engine import Connection

from provisioning.pki.revocation import RevocationReason
from provisioning.store.certificates import (
    ENDED_ABOVE,
    NOT_ENDED_ABOVE,
    CertificateState,
    StoredCertificate,
    from_row,
    selected,
    with_ends_above,
)
from provisioning.store.tables import (
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

    def conditions(self, now: datetime, *, above: bool = True) -> list[ColumnElement[bool]]:
        """Return the search as SQL conditions; for *above* see `_in_state`."""
        equal = (
            (devices.c.name, self.device),
            (devices.c.group_name, self.group),
            (certificates.c.serial, self.serial),
            (certificates.c.issuer_key_id, self.issuer),
            (certificates.c.fingerprint_sha256, self.fingerprint),
        )
        found: list[ColumnElement[bool]] = [column == value for column, value in equal if value is not None]
        if self.expires_from is not None:
            found.append(certificates.c.not_after >= self.expires_from)
        if self.expires_before is not None:
            found.append(certificates.c.not_after < self.expires_before)
        if self.state is not None:
            found.append(_in_state(self.state, now, above=above))
        return found


def _in_state(state: CertificateState, now: datetime, *, above: bool) -> ColumnElement[bool]:
    """Return the state as an SQL condition.

    *above* includes the ends of keys and CAs, over `with_ends_above`: some are not recorded for all certificates yet.
    """
    ended, stands = (ENDED_ABOVE, NOT_ENDED_ABOVE) if above else (false(), true())
    unrevoked = revocations.c.sequence.is_(None) & stands
    match state:
        case CertificateState.REVOKED:  # In SQL a comparison with NULL is not true.
            return or_(revocations.c.reason != RevocationReason.CERTIFICATE_HOLD.value, ended)
        case CertificateState.SUSPENDED:
            return (revocations.c.reason == RevocationReason.CERTIFICATE_HOLD.value) & stands
        case CertificateState.ACTIVE:
            return unrevoked & (certificates.c.not_after > now)
        case CertificateState.EXPIRED:
            return unrevoked & (certificates.c.not_after <= now)


def page(
    connection: Connection, search: CertificateSearch, *, limit: int, after: int | None, now: datetime
) -> list[StoredCertificate]:
    """Return certificates in order of issuance, after the row id *after*."""
    statement = selected().where(*search.conditions(now)).order_by(certificates.c.id).limit(limit)
    if after is not None:
        statement = statement.where(certificates.c.id > after)
    return [from_row(row) for row in connection.execute(statement)]


def count(
    connection: Connection, now: datetime, search: CertificateSearch | None = None
) -> dict[CertificateState, int]:
    """Return how many certificates there are in each state *now*."""
    above = _something_is_left(connection)
    state = case(
        *(
            (_in_state(each, now, above=above), each.value)
            for each in CertificateState
            if each is not CertificateState.EXPIRED
        ),
        else_=CertificateState.EXPIRED.value,
    )
    conditions = () if search is None else search.conditions(now, above=above)
    of_devices = search is not None and (search.device is not None or search.group is not None)
    # Not joined in vain: all certificates of years are counted.
    source = (certificates.join(devices) if of_devices else certificates).outerjoin(revocations)
    if above:  # Including them doubles the cost.
        source = with_ends_above(source)
    statement = select(state, func.count()).select_from(source).where(*conditions).group_by(state)
    found = {CertificateState(name): number for name, number in connection.execute(statement)}
    return {state: found.get(state, 0) for state in CertificateState}


def _something_is_left(connection: Connection) -> bool:
    """Whether there are certificates still to be recorded as revoked because of their key or CA."""
    tables = unfinished_key_ends, unfinished_authority_ends
    return any(connection.execute(select(exists(select(1).select_from(each)))).scalar_one() for each in tables)
