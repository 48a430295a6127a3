"""Queries about certificates: issued once, never changed; whether one is revoked is a row of `revocations`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Join, Select, Table, and_, bindparam, func, insert, or_, select, text
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.keys import spki_fingerprint
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.quick_values import quickly_made
from provisioning.store.devices import WIDTH as DEVICE_WIDTH
from provisioning.store.devices import Device, device_from
from provisioning.store.prepared import Prepared
from provisioning.store.tables import (
    authorities,
    certificates,
    devices,
    revocations,
    unfinished_authority_ends,
    unfinished_ends,
    unfinished_key_ends,
)
from provisioning.store.unfinished_ends import RELEASE


class CertificateState(StrEnum):
    """What a certificate is worth now. Revoked and suspended win over expired: they say more."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"
    EXPIRED = "expired"


@quickly_made
@dataclass(frozen=True, slots=True)
class StoredRevocation:
    """A certificate's revocation: its sequence number in the feed, why and when."""

    sequence: int
    reason: RevocationReason
    revoked_at: datetime
    invalidity_date: datetime | None = None
    by_itself: bool = False
    """Of a hold: whether the certificate is on hold by its serial number, and not only with its device."""


@quickly_made
@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """One certificate as the store knows it, with its device and its revocation."""

    id: int
    issuer_key_id: str
    serial: str
    spki_sha256: bytes
    fingerprint_sha256: str
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    granted_seconds: int | None
    """The longest validity of it and of each successor, from the evidence at the enrolment; None: not limited."""
    device: Device
    revocation: StoredRevocation | None
    key_ended_at: datetime | None
    """When its key was reported as compromised, until all certificates for the key are revoked; it is worthless from
    then on, whether or not it is itself revoked yet."""
    issuer_ended_at: datetime | None
    """When its CA was revoked, if that was before its own expiry; it is worthless from then on, for ever."""

    @property
    def ended_above(self) -> datetime | None:
        """Since when it is worthless because its key or CA was ended, whether or not it is itself revoked yet."""
        of_key, of_issuer = self.key_ended_at, self.issuer_ended_at
        return of_key or of_issuer if of_key is None or of_issuer is None else min(of_key, of_issuer)

    @property
    def on_hold(self) -> bool:
        """Whether it is suspended, by an operator or because it is on trial."""
        return self.revocation is not None and not self.revocation.reason.final

    @property
    def held_by_itself(self) -> bool:
        """Whether it is suspended by itself, and so stays on hold when its device is resumed."""
        return self.revocation is not None and not self.revocation.reason.final and self.revocation.by_itself

    def state(self, now: datetime) -> CertificateState:
        """Return the certificate's state *now*: also revoked if it is still to be, for its key or with its CA."""
        above = self.ended_above
        if above is not None and above < self.not_after:
            return CertificateState.REVOKED
        if self.revocation is not None:
            return CertificateState.REVOKED if self.revocation.reason.final else CertificateState.SUSPENDED
        return CertificateState.ACTIVE if now < self.not_after else CertificateState.EXPIRED


FACTS: Final = [certificates.c[field.name] for field in fields(StoredCertificate) if field.name in certificates.c]
"""The columns that are fields of `StoredCertificate`, in their order."""
_WIDTH: Final = len(FACTS)


REVOCATION_FACTS: Final = [
    revocations.c.sequence,
    revocations.c.reason,
    revocations.c.revoked_at,
    revocations.c.invalidity_date,
    revocations.c.by_itself,
]


KEY_ENDED_AT: Final = unfinished_key_ends.c.ended_at.label("key_ended_at")
ISSUER_ENDED_AT: Final = authorities.c.changed_at.label("issuer_ended_at")
ENDS_ABOVE: Final = [KEY_ENDED_AT, ISSUER_ENDED_AT]
_ENDS_WIDTH: Final = len(REVOCATION_FACTS) + len(ENDS_ABOVE)
EXPIRY: Final = func.coalesce(certificates.c.not_after, certificates.c.issued_at)
"""When it expires, for conditions on some certificates: by the column alone a database may collect every device's that
expires later. It is never NULL."""
REASON: Final = select(revocations.c.reason).where(revocations.c.certificate_id == certificates.c.id).scalar_subquery()
"""Why it was revoked. Not by a join: for one, PostgreSQL without statistics reads every revocation."""
NOT_REVOKED: Final = (
    func.coalesce(REASON, RevocationReason.CERTIFICATE_HOLD.value) == RevocationReason.CERTIFICATE_HOLD.value
)
"""Condition: it is good by itself, or on hold."""
ENDED_ABOVE: Final = or_(unfinished_key_ends.c.ended_at < certificates.c.not_after, authorities.c.id.is_not(None))
"""Condition: a certificate is worthless because its key or CA was ended, over `with_ends_above`; NULL also means no."""
NOT_ENDED_ABOVE: Final = and_(
    or_(unfinished_key_ends.c.ended_at.is_(None), unfinished_key_ends.c.ended_at >= certificates.c.not_after),
    authorities.c.id.is_(None),
)
# Written out: with parameters of its own a statement could not be put into one with others of its kind.
_REVOKED_ISSUER: Final = text("authorities.kind = 'issuing' AND authorities.state = 'revoked'")


def with_ends_above(certified: Join | Table) -> Join:
    """Return *certified*, which contains certificates, joined with each one's unfinished key end and its revoked CA.

    A certificate that had expired before its CA was revoked is not revoked with it.
    """
    return certified.outerjoin(
        unfinished_key_ends,
        (unfinished_key_ends.c.device_id == certificates.c.device_id)
        & (unfinished_key_ends.c.spki_sha256 == certificates.c.spki_sha256),
    ).outerjoin(
        authorities,
        and_(
            authorities.c.key_id == certificates.c.issuer_key_id,
            _REVOKED_ISSUER,
            authorities.c.changed_at < certificates.c.not_after,
        ),
    )


def selected(*, with_der: bool = False) -> Select[Any]:
    """Return the statement whose rows `from_row` reads; the DER, if it is asked for, comes last."""
    facts = [*FACTS, *devices.c, *REVOCATION_FACTS, *ENDS_ABOVE, *([certificates.c.der] if with_der else [])]
    return select(*facts).select_from(with_ends_above(certificates.join(devices).outerjoin(revocations)))


_ADD: Final = Prepared(insert(certificates).returning(certificates.c.id), told_by="serial")
_FIND: Final = Prepared(
    selected().where(certificates.c.issuer_key_id == bindparam("issuer"), certificates.c.serial == bindparam("wanted"))
)
# Locking is a statement of its own: what a join reads along with the lock may be older than the wait for it.
_LOCK: Final = Prepared(
    select(devices.c.id)
    .select_from(certificates.join(devices))
    .where(certificates.c.serial == bindparam("wanted"))
    .with_for_update(of=devices)
)
# Many are found in two steps, each of which is a look-up by one index, however many are requested: without
# statistics PostgreSQL would read all certificates, devices and revocations for a list (docs/decisions/0085).
_IDS_OF_DEVICE: Final = Prepared(
    select(certificates.c.id).where(certificates.c.device_id == bindparam("wanted")), at_once=True
)
_IDS_WITH_SERIAL: Final = Prepared(
    select(certificates.c.id).where(certificates.c.serial == bindparam("wanted")), at_once=True
)
_WITH_ID: Final = Prepared(selected().where(certificates.c.id == bindparam("wanted")), at_once=True)
# The devices of a batch have been read, and locked, before.
_OF_KNOWN_DEVICE: Final = Prepared(
    select(*FACTS, *REVOCATION_FACTS, *ENDS_ABOVE, certificates.c.device_id)
    .select_from(with_ends_above(certificates.outerjoin(revocations)))
    .where(certificates.c.id == bindparam("wanted")),
    at_once=True,
)
_NEWEST: Final = (
    select(certificates.c.id, certificates.c.issuer_key_id, certificates.c.serial)
    .order_by(certificates.c.id.desc())
    .limit(1)
)
_FIND_SERIAL: Final = Prepared(selected(with_der=True).where(certificates.c.serial == bindparam("wanted")).limit(1))
_ENDED: Final = select(unfinished_ends.c.ended_at).where(
    unfinished_ends.c.device_id == certificates.c.device_id, unfinished_ends.c.reason != RELEASE
)
# Only what has surely expired is left out (`provisioning.revocation.surely_expired`), as by the portions that follow.
_OTHERS: Final = certificates.alias()
_NEWEST_SINCE: Final = (
    select(_OTHERS.c.issued_at)
    .where(_OTHERS.c.device_id == certificates.c.device_id)
    .order_by(_OTHERS.c.id.desc())
    .limit(1)
    .correlate(certificates)
    .scalar_subquery()
)
_NOT_SURELY_EXPIRED: Final = or_(
    unfinished_ends.c.ended_at < certificates.c.not_after, certificates.c.not_after > _NEWEST_SINCE
)
_REVOCATION: Final = Prepared(
    select(
        revocations.c.sequence,
        revocations.c.reason,
        revocations.c.revoked_at,
        _ENDED.where(_NOT_SURELY_EXPIRED).scalar_subquery().label("ended_at"),
        _ENDED.with_only_columns(unfinished_ends.c.reason).scalar_subquery().label("ended_for"),
        *ENDS_ABOVE,
        select(unfinished_authority_ends.c.reason)
        .where(unfinished_authority_ends.c.issuer_key_id == certificates.c.issuer_key_id)
        .scalar_subquery()
        .label("issuer_ended_for"),
    )
    .select_from(with_ends_above(certificates.outerjoin(revocations)))
    .where(certificates.c.issuer_key_id == bindparam("issuer"), certificates.c.serial == bindparam("wanted"))
)


def from_row(row: Sequence[Any]) -> StoredCertificate:
    """Return the certificate in a row of `selected`."""
    behind = _WIDTH + DEVICE_WIDTH
    return _certificate(row[:_WIDTH], device_from(row[_WIDTH:]), row[behind : behind + _ENDS_WIDTH])


def _certificate(facts: Sequence[Any], device: Device, ends: Sequence[Any]) -> StoredCertificate:
    sequence, reason, revoked_at, invalid, by_itself, *above = ends
    revocation = (
        None
        if sequence is None
        else StoredRevocation(sequence, RevocationReason(reason), revoked_at, invalid, by_itself)
    )
    every: list[Any] = [*facts, device, revocation, *above]
    return StoredCertificate(*every)


@quickly_made
@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """What is recorded of a certificate."""

    der: bytes
    issuer_key_id: bytes
    serial: int
    not_before: datetime
    not_after: datetime
    spki_sha256: bytes


def issued(certificate: x509.Certificate) -> IssuedCertificate:
    """Return what is recorded of *certificate*, read from it."""
    issuer_key_id, serial = certificate_key(certificate)
    return IssuedCertificate(
        certificate.public_bytes(Encoding.DER),
        issuer_key_id,
        serial,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        spki_fingerprint(certificate.public_key()),
    )


def add(
    connection: Connection,
    certificate: IssuedCertificate,
    device_id: int,
    now: datetime,
    crl_shard_id: int | None = None,
    granted: timedelta | None = None,
) -> int:
    """Record an issued certificate and return its row's id; *granted* shortens the life of its successors."""
    values = {
        "issuer_key_id": certificate.issuer_key_id.hex(),
        "serial": serial_text(certificate.serial),
        "device_id": device_id,
        "spki_sha256": certificate.spki_sha256,
        "fingerprint_sha256": hashlib.sha256(certificate.der).hexdigest(),
        "not_before": certificate.not_before,
        "not_after": certificate.not_after,
        "issued_at": now,
        "der": certificate.der,
        "crl_shard_id": crl_shard_id,
        "granted_seconds": None if granted is None else int(granted.total_seconds()),
    }
    identifier: int
    (identifier,) = _ADD.one(connection, values)
    return identifier


def find(
    connection: Connection, issuer_key_id: bytes, serial: int, *, for_update: bool = False
) -> StoredCertificate | None:
    """Return the certificate with these facts; with *for_update* its device is locked until the transaction ends."""
    named = {"issuer": issuer_key_id.hex(), "wanted": serial_text(serial)}
    if for_update:
        _lock_device(connection, named["wanted"])
    row = _FIND.first(connection, named)
    return None if row is None else from_row(row)


def revocation_of(
    connection: Connection, issuer_key_id: str, serial: str
) -> tuple[bool, tuple[datetime, RevocationReason] | None]:
    """Return whether a certificate was issued, and since when and why it is revoked, for an OCSP response.

    It counts as revoked if its device was ended or suspended, its key reported as compromised, or its CA revoked, even
    before it is revoked itself.
    """
    row = _REVOCATION.first(connection, {"issuer": issuer_key_id, "wanted": serial})
    if row is None:
        return False, None
    sequence, reason, revoked_at, ended_at, ended_for, key_ended_at, issuer_ended_at, issuer_ended_for = row
    if sequence is not None:
        return True, (revoked_at, RevocationReason(reason))
    if key_ended_at is not None:
        return True, (key_ended_at.replace(microsecond=0), RevocationReason.KEY_COMPROMISE)
    if issuer_ended_at is not None:
        said = RevocationReason.UNSPECIFIED if issuer_ended_for is None else RevocationReason(issuer_ended_for)
        return True, (issuer_ended_at.replace(microsecond=0), said)
    return True, None if ended_at is None else (ended_at.replace(microsecond=0), RevocationReason(ended_for))


class NewestCertificate(NamedTuple):
    """The certificate that was newest at some time."""

    id: int
    issuer_key_id: str
    serial: str


def newest(connection: Connection) -> NewestCertificate | None:
    """Return the newest certificate, None if there is none.

    Whoever sees it sees all with a lower number, and all that come later have a higher one: a certificate is numbered
    and committed while its process has the lock of all writers (`provisioning.store.postgresql_group`), which the
    server releases when others see the commit. That holds as long as the numbers' sequence has no CACHE.
    """
    row = connection.execute(_NEWEST).one_or_none()
    return None if row is None else NewestCertificate(*row)


def holds(connection: Connection, seen: NewestCertificate | None) -> bool:
    """Whether *seen*, and so all that were seen with it, are still there: not after a fail-over that lost commits."""
    if seen is None:
        return True
    return connection.execute(_NEWEST.where(certificates.c.id == seen.id)).one_or_none() == seen


def find_serial(
    connection: Connection, serial: str, *, for_update: bool = False
) -> tuple[StoredCertificate, bytes] | None:
    """Return the certificate with *serial* and its DER. Serial numbers are random: one issuer's only, in practice."""
    if for_update:
        _lock_device(connection, serial)
    row = _FIND_SERIAL.first(connection, {"wanted": serial})
    return None if row is None else (from_row(row), row[-1])


def with_serial(connection: Connection, serial: str, *, for_update: bool = False) -> StoredCertificate:
    """Return the certificate with *serial*; raise `Refused` if there is none."""
    found = find_serial(connection, serial, for_update=for_update)
    if found is None:
        raise no_such_serial(serial, "; one that the store has lost is revoked by revoke --certificate FILE")
    return found[0]


def no_such_serial(serial: str, what_else: str = "") -> Refused:
    """Return the refusal for *serial*, which no certificate has; *what_else* there is to do."""
    return Refused(Code.SERIAL_UNKNOWN, f"no certificate has the serial number {serial[:80]!r}{what_else}")


def of_devices_or_with_serials(
    connection: Connection, device_ids: Sequence[int], serials: Sequence[str]
) -> list[StoredCertificate]:
    """Return every certificate of these devices, and those with these serial numbers, oldest first."""
    return with_ids(
        connection, _ids(connection, _IDS_OF_DEVICE, device_ids), _ids(connection, _IDS_WITH_SERIAL, serials)
    )


def _ids(connection: Connection, of: Prepared, wanted: Sequence[object]) -> set[int]:
    """Return the ids that *of* finds for each that is *wanted*."""
    return {row[0] for row in of.placed(connection, list(dict.fromkeys(wanted)))}


def with_ids(connection: Connection, *identifiers: set[int]) -> list[StoredCertificate]:
    """Return the certificates with these ids, oldest first."""
    wanted = sorted(set().union(*identifiers))
    return sorted(map(from_row, _WITH_ID.placed(connection, wanted)), key=attrgetter("id"))


def of_known_devices(
    connection: Connection, identifiers: Sequence[int], known: Mapping[int, Device]
) -> list[StoredCertificate]:
    """Return the certificates with these ids, which belong to devices that are *known*, by their ids; in no order."""
    rows = _OF_KNOWN_DEVICE.placed(connection, identifiers)
    return [_certificate(row[:_WIDTH], known[row[-2]], row[_WIDTH:-2]) for row in rows]


def _lock_device(connection: Connection, serial: str) -> None:
    if connection.dialect.name != "sqlite":  # Its one writer holds everything.
        _LOCK.first(connection, {"wanted": serial})
