"""Queries about all certificates of a revoked CA: perhaps a hundred thousand.

There is no index of issuers: each of these queries scans every unexpired certificate, so it runs outside the
store's one writer, and never in a transaction that others wait for.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, func, or_, select
from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store.certificates import StoredCertificate, from_row, selected
from provisioning.store.tables import certificates, devices, revocations

_HOLD: Final = RevocationReason.CERTIFICATE_HOLD.value


def count_good(connection: Connection, issuer_key_id: bytes, now: datetime) -> int:
    """Return the number of those neither expired nor revoked for ever, including those on hold."""
    found = _not_final(select(func.count()), issuer_key_id.hex(), now)
    number: int = connection.execute(found).scalar_one()
    return number


def not_revoked(connection: Connection, issuer_key_id: str, ended_at: datetime) -> list[int]:
    """Return the ids of those that have not expired at *ended_at* and are not revoked for ever.

    First those of devices, good ones before those on hold and newer before older: relying parties would accept those.
    Then all others, including brokers: a subscriber's feed ends with its own certificate.
    """
    columns = select(certificates.c.id, devices.c.role, revocations.c.reason)
    rows = connection.execute(_not_final(columns, issuer_key_id, ended_at)).all()
    ordered = sorted(rows, key=lambda row: (row[1] != Role.DEVICE.value, row[2] is not None, -row[0]))
    return [row[0] for row in ordered]


def revoked_since(connection: Connection, issuer_key_id: str, sequence: int) -> list[StoredCertificate]:
    """Return those that were revoked after the sequence number *sequence* of the feed, in its order."""
    statement = (
        selected()
        .where(certificates.c.issuer_key_id == issuer_key_id, revocations.c.sequence > sequence)
        .order_by(revocations.c.sequence)
    )
    return [from_row(row) for row in connection.execute(statement)]


def _not_final(columns: Select[Any], issuer_key_id: str, now: datetime) -> Select[Any]:
    return columns.select_from(certificates.join(devices).outerjoin(revocations)).where(
        certificates.c.issuer_key_id == issuer_key_id,
        certificates.c.not_after > now,
        or_(revocations.c.reason.is_(None), revocations.c.reason == _HOLD),
    )
