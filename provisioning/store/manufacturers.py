"""Queries about manufacturers: the CAs whose device certificates (IDevIDs) open a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection

from provisioning.store.tables import manufacturers


class LapsedLists(StrEnum):
    """What becomes of devices about whom no list of their manufacturer's holds, though it has lists."""

    REFUSE = "refuse"
    """They are refused: who was revoked since the list's end is not known."""
    ACCEPT = "accept"
    """They are let in, if no list names them: the manufacturer makes no more lists, or makes them late."""


@dataclass(frozen=True, slots=True)
class StoredManufacturer:
    """A manufacturer's CA as the store knows it; *subject* is its name as DER, which its certificates carry."""

    id: int
    name: str
    group: str
    name_prefix: str
    subject: bytes
    fingerprint_sha256: str
    der: bytes
    created_at: datetime
    created_by: str
    ended_at: datetime | None
    lapsed_lists: LapsedLists


def add(
    connection: Connection,
    *,
    name: str,
    group: str,
    name_prefix: str,
    subject: bytes,
    fingerprint_sha256: str,
    der: bytes,
    by: str,
    now: datetime,
) -> None:
    """Record a CA; raise SQLAlchemy's IntegrityError if the name or the certificate is there already."""
    row = {
        "name": name,
        "group_name": group,
        "name_prefix": name_prefix,
        "subject": subject,
        "fingerprint_sha256": fingerprint_sha256,
        "der": der,
        "created_at": now,
        "created_by": by,
    }
    connection.execute(insert(manufacturers), row)


def put_in_place(
    connection: Connection, name: str, *, fingerprint_sha256: str, der: bytes, by: str, now: datetime
) -> None:
    """Let a manufacturer that is known have this certificate, and be in force; raise IntegrityError as `add` does."""
    statement = update(manufacturers).where(manufacturers.c.name == name)
    connection.execute(
        statement.values(
            fingerprint_sha256=fingerprint_sha256,
            der=der,
            created_at=now,
            created_by=by,
            ended_at=None,
        )
    )


def issuing_as(connection: Connection, subject: bytes) -> Sequence[StoredManufacturer]:
    """Return the CAs with this name that have not ended: who may have issued a certificate that says so."""
    statement = select(manufacturers).where(manufacturers.c.subject == subject, manufacturers.c.ended_at.is_(None))
    return [_from_row(row) for row in connection.execute(statement.order_by(manufacturers.c.id))]


def find_named(connection: Connection, name: str) -> StoredManufacturer | None:
    """Return the CA called *name*."""
    row = connection.execute(select(manufacturers).where(manufacturers.c.name == name)).one_or_none()
    return None if row is None else _from_row(row)


def page(connection: Connection, *, limit: int, after: str | None) -> Sequence[StoredManufacturer]:
    """Return CAs in order of name, after the name *after*."""
    statement = select(manufacturers).order_by(manufacturers.c.name).limit(limit)
    if after is not None:
        statement = statement.where(manufacturers.c.name > after)
    return [_from_row(row) for row in connection.execute(statement)]


def end(connection: Connection, name: str, now: datetime) -> bool:
    """End a CA's trust; return False if it had ended before."""
    statement = update(manufacturers).where(manufacturers.c.name == name, manufacturers.c.ended_at.is_(None))
    return connection.execute(statement.values(ended_at=now)).rowcount == 1


def set_lapsed_lists(connection: Connection, name: str, lapsed: LapsedLists) -> bool:
    """Say what lapsed lists mean; return False if that is what they meant before."""
    statement = update(manufacturers).where(manufacturers.c.name == name, manufacturers.c.lapsed_lists != lapsed.value)
    return connection.execute(statement.values(lapsed_lists=lapsed.value)).rowcount == 1


def anchors(connection: Connection) -> list[bytes]:
    """Return the certificates of CAs that have not ended, as DER."""
    statement = select(manufacturers.c.der).where(manufacturers.c.ended_at.is_(None)).order_by(manufacturers.c.id)
    return list(connection.execute(statement).scalars())


def _from_row(row: Any) -> StoredManufacturer:
    return StoredManufacturer(
        row.id,
        row.name,
        row.group_name,
        row.name_prefix,
        row.subject,
        row.fingerprint_sha256,
        row.der,
        row.created_at,
        row.created_by,
        row.ended_at,
        LapsedLists(row.lapsed_lists),
    )
