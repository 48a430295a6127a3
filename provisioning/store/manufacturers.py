"""Queries about manufacturers: the CAs whose device certificates (IDevIDs) admit devices to a group."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from cryptography import x509
from sqlalchemy import bindparam, func, insert, literal_column, select, update
from sqlalchemy.engine import Connection

from provisioning.store.columns import NAME
from provisioning.store.manufacturer_tables import manufacturers
from provisioning.store.prepared import Prepared

_EVERY: Final = Prepared(select(manufacturers.c.id, manufacturers.c.der).order_by(manufacturers.c.id))
_FACTS: Final = (
    manufacturers.c.id,
    manufacturers.c.name,
    manufacturers.c.group_name,
    manufacturers.c.name_prefix,
    manufacturers.c.fingerprint_sha256,
    manufacturers.c.der,
    manufacturers.c.created_at,
    manufacturers.c.created_by,
    manufacturers.c.ended_at,
    manufacturers.c.lapsed_lists,
    manufacturers.c.revoked_devices,
)
"""In the order of `StoredManufacturer`."""
# The name's own beginning: LIKE would take "_" for any character.
_WITH_PREFIX: Final = Prepared(
    select(manufacturers.c.id, manufacturers.c.name_prefix)
    .where(
        manufacturers.c.ended_at.is_(None),
        manufacturers.c.name_prefix != literal_column("''"),
        func.substr(bindparam("wanted", type_=NAME), 1, func.length(manufacturers.c.name_prefix))
        == manufacturers.c.name_prefix,
    )
    .order_by(func.length(manufacturers.c.name_prefix).desc()),
    at_once=True,
)
_ONE: Final = Prepared(select(*_FACTS).where(manufacturers.c.id == bindparam("wanted")))
_REMEMBERED: Final = 1024
"""How many CA names are cached, about 1 KB each."""


class LapsedLists(StrEnum):
    """What becomes of devices about whom no list of their manufacturer's holds, though it has lists."""

    REFUSE = "refuse"
    """They are refused: who was revoked since the list's end is not known."""
    ACCEPT = "accept"
    """They are let in, if no list names them: the manufacturer makes no more lists, or makes them late."""


class RevokedDevices(StrEnum):
    """What becomes of devices that are in, once the manufacturer has revoked the certificate that let them in.

    Each is stricter than the one before.
    """

    REPORT = "report"
    """They stay; it is in the audit log, and told."""
    SUSPEND = "suspend"
    """They are suspended, until an operator resumes them."""
    REVOKE = "revoke"
    """They are revoked; suspended where the manufacturer has only put theirs on hold."""

    def is_stricter_than(self, other: RevokedDevices) -> bool:
        """Whether it does more to a device than *other*."""
        every = list(RevokedDevices)
        return every.index(self) > every.index(other)


@dataclass(frozen=True, slots=True)
class StoredManufacturer:
    """A manufacturer's CA as stored."""

    id: int
    name: str
    group: str
    name_prefix: str
    fingerprint_sha256: str
    der: bytes
    created_at: datetime
    created_by: str
    ended_at: datetime | None
    lapsed_lists: LapsedLists
    revoked_devices: RevokedDevices


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
    """Record a CA; raise SQLAlchemy's IntegrityError if its name or its certificate exists."""
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
    connection: Connection,
    name: str,
    *,
    subject: bytes,
    fingerprint_sha256: str,
    der: bytes,
    by: str,
    now: datetime,
) -> None:
    """Replace the certificate of a known manufacturer, and put it in force; raise IntegrityError as `add` does."""
    statement = update(manufacturers).where(manufacturers.c.name == name)
    connection.execute(
        statement.values(
            subject=subject,
            fingerprint_sha256=fingerprint_sha256,
            der=der,
            created_at=now,
            created_by=by,
            ended_at=None,
        )
    )


def called(connection: Connection, name: x509.Name) -> Sequence[StoredManufacturer]:
    """Return the CAs with this subject, ended ones too: the possible issuers of a certificate that names it.

    Their certificates may encode it with other string types, so it is not looked up by its bytes.
    """
    ids = [identifier for identifier, der in _EVERY.rows(connection, {}) if _name_of(der) == name]
    return [_from_row(_ONE.one(connection, {"wanted": identifier})) for identifier in ids]


@functools.lru_cache(_REMEMBERED)
def _name_of(der: bytes) -> x509.Name:
    return x509.load_der_x509_certificate(der).subject


def find_named(connection: Connection, name: str, *, for_update: bool = False) -> StoredManufacturer | None:
    """Return the CA called *name*; *for_update* locks it, and its lists, until the transaction ends.

    Enrolments continue: inserts that refer to it are not blocked.
    """
    statement = select(*_FACTS).where(manufacturers.c.name == name)
    row = connection.execute(statement.with_for_update(key_share=True) if for_update else statement).one_or_none()
    return None if row is None else _from_row(row)


def with_prefix_of(connection: Connection, name: str) -> set[int]:
    """Return the ids of those whose devices *name* is kept for: the longest of the prefixes in force that it has."""
    found = _WITH_PREFIX.rows(connection, {"wanted": name})
    return {identifier for identifier, prefix in found if prefix == found[0][1]}


def page(connection: Connection, *, limit: int, after: str | None) -> Sequence[StoredManufacturer]:
    """Return CAs in order of name, after the name *after*."""
    statement = select(*_FACTS).order_by(manufacturers.c.name).limit(limit)
    if after is not None:
        statement = statement.where(manufacturers.c.name > after)
    return [_from_row(row) for row in connection.execute(statement)]


def end(connection: Connection, name: str, now: datetime) -> bool:
    """End a CA's trust; return False if it had ended before."""
    statement = update(manufacturers).where(manufacturers.c.name == name, manufacturers.c.ended_at.is_(None))
    return connection.execute(statement.values(ended_at=now)).rowcount == 1


def end_made_by(connection: Connection, makers: Mapping[str, datetime | None], now: datetime) -> dict[str, list[str]]:
    """End the trust in the CAs that *makers* have registered; return what those are called, by maker.

    A maker's moment: what was registered later, stays.
    """
    ended: dict[str, list[str]] = {}
    for name, until in sorted(makers.items()):
        statement = update(manufacturers).where(manufacturers.c.created_by == name, manufacturers.c.ended_at.is_(None))
        if until is not None:
            statement = statement.where(manufacturers.c.created_at <= until)
        found = connection.execute(statement.values(ended_at=now).returning(manufacturers.c.name)).scalars()
        if names := sorted(found):
            ended[name] = names
    return ended


def set_terms(
    connection: Connection, identifier: int, lapsed_lists: LapsedLists, revoked_devices: RevokedDevices
) -> None:
    """Set what lapsed lists mean, and what happens to enrolled devices when they are revoked."""
    terms = {"lapsed_lists": lapsed_lists.value, "revoked_devices": revoked_devices.value}
    connection.execute(update(manufacturers).where(manufacturers.c.id == identifier).values(terms))


def every(connection: Connection) -> Sequence[StoredManufacturer]:
    """Return every CA, ended ones too."""
    return [_from_row(row) for row in connection.execute(select(*_FACTS).order_by(manufacturers.c.id))]


def anchors(connection: Connection) -> list[bytes]:
    """Return the certificates of CAs that have not ended, as DER."""
    statement = select(manufacturers.c.der).where(manufacturers.c.ended_at.is_(None)).order_by(manufacturers.c.id)
    return list(connection.execute(statement).scalars())


def _from_row(row: Sequence[Any]) -> StoredManufacturer:
    identifier, name, group, prefix, fingerprint, der, created_at, created_by, ended_at, *terms = row
    lapsed, revoked = LapsedLists(terms[0]), RevokedDevices(terms[1])
    return StoredManufacturer(
        identifier, name, group, prefix, fingerprint, der, created_at, created_by, ended_at, lapsed, revoked
    )
