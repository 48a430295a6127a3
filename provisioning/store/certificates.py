"""Queries about certificates: issued once, never changed; whether one is revoked is a row of `revocations`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import ColumnElement, Row, Select, bindparam, case, func, insert, select
from sqlalchemy.engine import Connection

from provisioning.pki.keys import spki_fingerprint
from provisioning.pki.revocation import RevocationReason, certificate_key
from provisioning.store.devices import Device, device_from
from provisioning.store.serials import serial_text
from provisioning.store.tables import certificates, devices, revocations


class CertificateState(StrEnum):
    """What a certificate is worth now. Revoked wins over expired: it says more."""

    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class StoredRevocation:
    """That a certificate is revoked: its place in the feed, why and when."""

    sequence: int
    reason: RevocationReason
    revoked_at: datetime


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """One certificate as the store knows it, with its device and its revocation."""

    id: int
    issuer_key_id: str
    serial: str
    fingerprint_sha256: str
    not_before: datetime
    not_after: datetime
    device: Device
    revocation: StoredRevocation | None

    def state(self, now: datetime) -> CertificateState:
        """Return what the certificate is worth *now*."""
        if self.revocation is not None:
            return CertificateState.REVOKED
        return CertificateState.ACTIVE if now < self.not_after else CertificateState.EXPIRED


def _select(*, with_der: bool = False) -> Select[Any]:
    columns = [column for column in certificates.c if with_der or column is not certificates.c.der]
    return select(
        *columns, *devices.c, revocations.c.sequence, revocations.c.reason, revocations.c.revoked_at
    ).select_from(certificates.join(devices).outerjoin(revocations))


# The statements of enrolment and authentication are built once: building one costs more than running it.
_ADD: Final = insert(certificates).returning(certificates.c.id)
_FIND: Final = _select().where(
    certificates.c.issuer_key_id == bindparam("issuer"), certificates.c.serial == bindparam("wanted")
)
_LOCK: Final = _FIND.with_for_update(of=devices)
_WITH_KEY: Final = (
    select(devices.c.name, revocations.c.reason)
    .select_from(certificates.join(devices).outerjoin(revocations))
    .where(certificates.c.spki_sha256 == bindparam("wanted"))
)


def _from_row(row: Row[Any]) -> StoredCertificate:
    columns = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    sequence = columns[revocations.c.sequence]
    return StoredCertificate(
        columns[certificates.c.id],
        columns[certificates.c.issuer_key_id],
        columns[certificates.c.serial],
        columns[certificates.c.fingerprint_sha256],
        columns[certificates.c.not_before],
        columns[certificates.c.not_after],
        device_from(row),
        None
        if sequence is None
        else StoredRevocation(
            sequence, RevocationReason(columns[revocations.c.reason]), columns[revocations.c.revoked_at]
        ),
    )


def add(connection: Connection, certificate: x509.Certificate, device_id: int, now: datetime) -> int:
    """Record an issued certificate and return its row's id."""
    issuer_key_id, serial = certificate_key(certificate)
    der = certificate.public_bytes(Encoding.DER)
    values = {
        "issuer_key_id": issuer_key_id.hex(),
        "serial": serial_text(serial),
        "device_id": device_id,
        "spki_sha256": spki_fingerprint(certificate.public_key()),
        "fingerprint_sha256": hashlib.sha256(der).hexdigest(),
        "not_before": certificate.not_valid_before_utc,
        "not_after": certificate.not_valid_after_utc,
        "issued_at": now,
        "der": der,
    }
    identifier: int = connection.execute(_ADD, values).scalar_one()
    return identifier


def find(
    connection: Connection, issuer_key_id: bytes, serial: int, *, for_update: bool = False
) -> StoredCertificate | None:
    """Return the certificate so named; with *for_update* its device is locked until the transaction ends."""
    named = {"issuer": issuer_key_id.hex(), "wanted": serial_text(serial)}
    row = connection.execute(_LOCK if for_update else _FIND, named).one_or_none()
    return None if row is None else _from_row(row)


def find_serial(
    connection: Connection, serial: str, *, for_update: bool = False
) -> tuple[StoredCertificate, bytes] | None:
    """Return the certificate with *serial* and its DER. Serial numbers are random: one issuer's only, in practice."""
    statement = _select(with_der=True).where(certificates.c.serial == serial).limit(1)
    if for_update:
        statement = statement.with_for_update(of=devices)
    row = connection.execute(statement).one_or_none()
    return None if row is None else (_from_row(row), row._mapping[certificates.c.der])  # noqa: SLF001


def of_device(connection: Connection, device_id: int) -> list[StoredCertificate]:
    """Return every certificate of a device, oldest first."""
    statement = _select().where(certificates.c.device_id == device_id).order_by(certificates.c.id)
    return [_from_row(row) for row in connection.execute(statement)]


def with_key(connection: Connection, spki_sha256: bytes) -> Sequence[tuple[str, RevocationReason | None]]:
    """Return who was ever certified for this key, and why that certificate was revoked if it was."""
    rows = connection.execute(_WITH_KEY, {"wanted": spki_sha256})
    return [(name, None if reason is None else RevocationReason(reason)) for name, reason in rows]


def _in_state(state: CertificateState, now: datetime) -> ColumnElement[bool]:
    unrevoked = revocations.c.sequence.is_(None)
    match state:
        case CertificateState.REVOKED:
            return revocations.c.sequence.is_not(None)
        case CertificateState.ACTIVE:
            return unrevoked & (certificates.c.not_after > now)
        case CertificateState.EXPIRED:
            return unrevoked & (certificates.c.not_after <= now)


def page(
    connection: Connection,
    *,
    limit: int,
    after: int | None,
    now: datetime,
    device: str | None = None,
    state: CertificateState | None = None,
) -> list[StoredCertificate]:
    """Return certificates in order of issuance, after the row id *after*."""
    statement = _select().order_by(certificates.c.id).limit(limit)
    if after is not None:
        statement = statement.where(certificates.c.id > after)
    if device is not None:
        statement = statement.where(devices.c.name == device)
    if state is not None:
        statement = statement.where(_in_state(state, now))
    return [_from_row(row) for row in connection.execute(statement)]


def count(connection: Connection, now: datetime) -> dict[CertificateState, int]:
    """Return how many certificates there are in each state *now*."""
    state = case(
        (_in_state(CertificateState.REVOKED, now), CertificateState.REVOKED.value),
        (_in_state(CertificateState.ACTIVE, now), CertificateState.ACTIVE.value),
        else_=CertificateState.EXPIRED.value,
    )
    statement = select(state, func.count()).select_from(certificates.outerjoin(revocations)).group_by(state)
    found = {CertificateState(name): number for name, number in connection.execute(statement)}
    return {state: found.get(state, 0) for state in CertificateState}
