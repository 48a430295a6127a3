"""Queries over all certificates: search, count, expiry."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, case, func, or_, select
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
from provisioning.store.tables import certificates, devices, revocations


@dataclass(frozen=True, slots=True)
class CertificateSearch:
    """Which certificates; None: any. The bounds of notAfter are inclusive below and exclusive above."""

    device: str | None = None
    group: str | None = None
    serial: str | None = None
    fingerprint: str | None = None
    issuer: str | None = None
    """Its key identifier."""
    state: CertificateState | None = None
    expires_from: datetime | None = None
    expires_before: datetime | None = None

    def conditions(self, now: datetime) -> list[ColumnElement[bool]]:
        """Return the search as SQL."""
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
            found.append(_in_state(self.state, now))
        return found


def _in_state(state: CertificateState, now: datetime) -> ColumnElement[bool]:
    unrevoked = revocations.c.sequence.is_(None) & NOT_ENDED_ABOVE
    match state:
        case CertificateState.REVOKED:  # Of NULL it is not known whether it is different.
            return or_(revocations.c.reason != RevocationReason.CERTIFICATE_HOLD.value, ENDED_ABOVE)
        case CertificateState.SUSPENDED:
            return (revocations.c.reason == RevocationReason.CERTIFICATE_HOLD.value) & NOT_ENDED_ABOVE
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
    state = case(
        *((_in_state(each, now), each.value) for each in CertificateState if each is not CertificateState.EXPIRED),
        else_=CertificateState.EXPIRED.value,
    )
    conditions = () if search is None else search.conditions(now)
    source = with_ends_above(certificates.join(devices).outerjoin(revocations))
    statement = select(state, func.count()).select_from(source).where(*conditions).group_by(state)
    found = {CertificateState(name): number for name, number in connection.execute(statement)}
    return {state: found.get(state, 0) for state in CertificateState}
