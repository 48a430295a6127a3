"""Queries about revocations: the feed's events, in commit order and without a gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, insert, select
from sqlalchemy.engine import Connection

from provisioning.pki.revocation import RevocationReason
from provisioning.store import counters
from provisioning.store.counters import Counter
from provisioning.store.tables import certificates, devices, revocations


@dataclass(frozen=True, slots=True)
class RevocationRecord:
    """One event of the feed."""

    sequence: int
    issuer_key_id: str
    serial: str
    reason: RevocationReason
    revoked_at: datetime
    device: str


def add(
    connection: Connection,
    certificate_ids: Sequence[int],
    *,
    reason: RevocationReason,
    revoked_at: datetime,
    revoked_by: str,
) -> range:
    """Record revocations and return their sequence numbers, in the order of *certificate_ids*."""
    sequences = counters.take(connection, Counter.REVOCATION, len(certificate_ids))
    rows = [
        {
            "sequence": sequence,
            "certificate_id": certificate_id,
            "reason": reason.value,
            "revoked_at": revoked_at,
            "revoked_by": revoked_by,
        }
        for sequence, certificate_id in zip(sequences, certificate_ids, strict=True)
    ]
    connection.execute(insert(revocations), rows)
    return sequences


def after(connection: Connection, sequence: int, limit: int) -> list[RevocationRecord]:
    """Return the revocations that follow *sequence*, in order, *limit* at most."""
    statement = (
        select(
            revocations.c.sequence,
            certificates.c.issuer_key_id,
            certificates.c.serial,
            revocations.c.reason,
            revocations.c.revoked_at,
            devices.c.name,
        )
        .select_from(revocations.join(certificates).join(devices))
        .where(revocations.c.sequence > sequence)
        .order_by(revocations.c.sequence)
        .limit(limit)
    )
    rows = connection.execute(statement)
    return [
        RevocationRecord(number, issuer, serial, RevocationReason(reason), revoked_at, name)
        for number, issuer, serial, reason, revoked_at, name in rows
    ]


def for_crl(
    connection: Connection, issuer_key_id: bytes, previous_update: datetime
) -> list[tuple[str, datetime, RevocationReason]]:
    """Return what an issuer's next CRL lists: serial, time and reason.

    A certificate leaves the list only after a list that was issued past its end (RFC 5280 §3.3), so what had not
    expired at *previous_update* is still there.
    """
    statement = (
        select(certificates.c.serial, revocations.c.revoked_at, revocations.c.reason)
        .select_from(revocations.join(certificates))
        .where(certificates.c.issuer_key_id == issuer_key_id.hex(), certificates.c.not_after > previous_update)
        .order_by(revocations.c.sequence)
    )
    return [(serial, at, RevocationReason(reason)) for serial, at, reason in connection.execute(statement)]


def newest(connection: Connection) -> int:
    """Return the sequence number of the newest revocation, 0 if there is none."""
    number: int = connection.execute(select(func.coalesce(func.max(revocations.c.sequence), 0))).scalar_one()
    return number
