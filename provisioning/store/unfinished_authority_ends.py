"""Queries about revoked CAs until every certificate of theirs is recorded as revoked, one by one.

Such a certificate is reported as revoked because of its CA's state, with or without this row
(`provisioning.store.certificates`): the row is the work left for relying parties that check only certificates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import announcements
from provisioning.store.prepared import Prepared
from provisioning.store.tables import unfinished_authority_ends

_ENDS: Final = unfinished_authority_ends.c
_FIND: Final = Prepared(
    select(_ENDS.reason, _ENDS.invalidity_date, _ENDS.ended_at, _ENDS.ended_by).where(
        _ENDS.issuer_key_id == bindparam("wanted")
    )
)
_SINCE: Final = Prepared(select(_ENDS.issuer_key_id, _ENDS.ended_at))


@dataclass(frozen=True, slots=True)
class EndedIssuer:
    """A CA that was revoked, by its key identifier in hexadecimal."""

    key_id: str


@dataclass(frozen=True, slots=True)
class UnfinishedAuthorityEnd:
    """How a CA's certificates are to be revoked: for *reason*, since *ended_at*."""

    reason: RevocationReason
    invalidity_date: datetime | None
    ended_at: datetime
    ended_by: str


def begin(connection: Connection, issuer: EndedIssuer, end: UnfinishedAuthorityEnd) -> None:
    """Record that all certificates of *issuer* are to be revoked."""
    connection.execute(
        insert(unfinished_authority_ends).values(
            issuer_key_id=issuer.key_id,
            reason=end.reason.value,
            invalidity_date=end.invalidity_date,
            ended_at=end.ended_at,
            ended_by=end.ended_by,
        )
    )
    announcements.announce(connection)  # Caches of their states must be cleared.


def of_issuer(connection: Connection, issuer: EndedIssuer) -> UnfinishedAuthorityEnd | None:
    """Return what is left to do for certificates of *issuer*, None if nothing is."""
    row = _FIND.first(connection, {"wanted": issuer.key_id})
    return None if row is None else UnfinishedAuthorityEnd(RevocationReason(row[0]), *row[1:])


def finish(connection: Connection, issuer: EndedIssuer) -> None:
    """Note that nothing is left to do."""
    connection.execute(delete(unfinished_authority_ends).where(_ENDS.issuer_key_id == issuer.key_id))


def since(connection: Connection) -> list[tuple[str, datetime]]:
    """Return the key identifiers of the CAs with something left to do, each with its revocation's time."""
    return [(row[0], row[1]) for row in _SINCE.rows(connection, {})]


def every(connection: Connection) -> list[EndedIssuer]:
    """Return the CAs with something left to do, the earliest first."""
    statement = select(_ENDS.issuer_key_id).order_by(_ENDS.ended_at, _ENDS.issuer_key_id)
    return [EndedIssuer(key_id) for key_id in connection.execute(statement).scalars()]
