"""Queries about published CRLs: the newest is served again at once after a restart."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection

from provisioning.store.tables import crls

_KEPT: Final = 10
"""Enough to see what a relying party was told lately; a CRL may have megabytes."""


@dataclass(frozen=True, slots=True)
class PublishedCrl:
    """One signed CRL of the issuer called *issuer*."""

    issuer: str
    number: int
    this_update: datetime
    next_update: datetime
    entries: int
    der: bytes


def newest(connection: Connection, issuer: str) -> PublishedCrl | None:
    """Return the CRL that *issuer* published last."""
    statement = select(crls).where(crls.c.issuer == issuer).order_by(crls.c.number.desc()).limit(1)
    row = connection.execute(statement).one_or_none()
    return None if row is None else PublishedCrl(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def add(connection: Connection, crl: PublishedCrl) -> None:
    """Record a published CRL and forget those of long ago."""
    connection.execute(
        insert(crls).values(
            issuer=crl.issuer,
            number=crl.number,
            this_update=crl.this_update,
            next_update=crl.next_update,
            entries=crl.entries,
            der=crl.der,
        )
    )
    connection.execute(delete(crls).where(crls.c.issuer == crl.issuer, crls.c.number <= crl.number - _KEPT))
