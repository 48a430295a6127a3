"""Queries about the certificates for one key, which belongs to one device (`provisioning.store.device_keys`).

The index of each device's keys has them in order of issuance. One key may have thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Integer, LargeBinary, bindparam, func, or_, select
from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store.certificates import (
    ENDS_ABOVE,
    NOT_ENDED_ABOVE,
    REASON,
    StoredCertificate,
    with_ends_above,
    with_ids,
)
from provisioning.store.prepared import Prepared
from provisioning.store.tables import activations, certificates, devices, revocations

_OF_KEY: Final = (
    certificates.c.device_id == bindparam("of"),
    certificates.c.spki_sha256 == bindparam("wanted", type_=LargeBinary),
)
_FIRST_IDS: Final = Prepared(
    select(certificates.c.id).where(*_OF_KEY).order_by(certificates.c.id).limit(bindparam("most", type_=Integer)),
    at_once=True,
)
_LEFT: Final = Prepared(
    select(certificates.c.id, certificates.c.not_after, REASON.label("reason"))
    .where(*_OF_KEY, func.coalesce(REASON, "") != RevocationReason.KEY_COMPROMISE.value)
    .order_by(certificates.c.id.desc())
)
_DOUBT: Final = Prepared(
    select(certificates.c.serial, REASON.label("reason"))
    .where(
        *_OF_KEY,
        select(revocations.c.sequence)
        .where(
            revocations.c.certificate_id == certificates.c.id,
            or_(revocations.c.reason == RevocationReason.KEY_COMPROMISE.value, revocations.c.by_itself),
        )
        .scalar_subquery()
        .is_not(None),
    )
    .limit(1),
    at_once=True,
)
_GOOD: Final = Prepared(
    select(certificates.c.id, certificates.c.serial)
    .select_from(with_ends_above(certificates))
    .where(
        *_OF_KEY,
        certificates.c.not_after > bindparam("now"),
        REASON.is_(None),
        NOT_ENDED_ABOVE,
    )
    .order_by(certificates.c.id.desc())
    .limit(bindparam("most", type_=Integer)),
    at_once=True,
)
_LAST_REVOKED: Final = Prepared(
    select(
        func.max(
            select(revocations.c.revoked_at).where(revocations.c.certificate_id == certificates.c.id).scalar_subquery()
        )
    ).where(*_OF_KEY)
)
_NEWEST: Final = Prepared(
    select(
        certificates.c.id,
        certificates.c.der,
        certificates.c.issued_at,
        certificates.c.not_before,
        certificates.c.not_after,
        revocations.c.reason,
        activations.c.claim_id,
        *ENDS_ABOVE,
    )
    .select_from(
        with_ends_above(
            certificates.outerjoin(revocations).outerjoin(
                activations, activations.c.certificate_id == certificates.c.id
            )
        )
    )
    .where(
        certificates.c.device_id == select(devices.c.id).where(devices.c.name == bindparam("wanted")).scalar_subquery(),
        certificates.c.spki_sha256 == bindparam("key"),
    )
    .order_by(certificates.c.id.desc())
    .limit(1)
)
_OTHERS: Final = certificates.alias()
_REPLACED: Final = Prepared(
    select(_OTHERS.c.issued_at)
    .where(
        _OTHERS.c.device_id == bindparam("of"),
        _OTHERS.c.id > select(func.max(certificates.c.id)).where(*_OF_KEY).scalar_subquery(),
        ~select(activations.c.certificate_id).where(activations.c.certificate_id == _OTHERS.c.id).exists(),
    )
    .order_by(_OTHERS.c.id)
    .limit(1)
)
_ALL: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A key, and whose it is."""

    device_id: int
    spki_sha256: bytes


@dataclass(frozen=True, slots=True)
class KeyDoubt:
    """Why nothing is issued for a key: one of its certificates, and the reason of that one's revocation.

    keyCompromise; certificateHold, while it is suspended by itself; or another, if it was when it was revoked.
    """

    serial: str
    reason: RevocationReason


@dataclass(frozen=True, slots=True)
class HeldCertificate:
    """A certificate that a device has for a key, with its DER."""

    id: int
    der: bytes
    issued_at: datetime
    not_before: datetime
    not_after: datetime
    revoked_for: RevocationReason | None
    on_trial: bool
    """It was issued on trial; on hold because of that, and not by an operator's decision."""
    ended_above: bool
    """Its key was reported as compromised, and not all that are for it are revoked; or its CA was revoked."""

    @property
    def withdrawn(self) -> bool:
        """Whether it was revoked, or suspended by an operator, or is still to be revoked for its key or with its CA."""
        if self.ended_above:
            return True
        held = self.on_trial and self.revoked_for is RevocationReason.CERTIFICATE_HOLD
        return not (self.revoked_for is None or held)

    def good(self, now: datetime) -> bool:
        """Whether it is valid, which it is not yet if the clock was set back, not expired and not revoked."""
        return not self.withdrawn and self.not_before <= now < self.not_after

    def answers_again(self, now: datetime, window: timedelta) -> bool:
        """Whether it answers its request once more, which a group does for *window*."""
        return bool(window) and self.good(now) and now < self.issued_at + window


def key_of(certificate: StoredCertificate) -> DeviceKey:
    """Return for which key *certificate* is."""
    return DeviceKey(certificate.device.id, certificate.spki_sha256)


def first_ids(connection: Connection, keys: Sequence[DeviceKey], most: int) -> list[list[int]]:
    """Return the ids of the *most* oldest certificates for each key."""
    asked = [{"of": each.device_id, "wanted": each.spki_sha256, "most": most} for each in keys]
    return [[row[0] for row in answer.rows] for answer in _FIRST_IDS.answers(connection, asked)] if asked else []


def first(connection: Connection, key: DeviceKey, most: int) -> list[StoredCertificate]:
    """Return the *most* oldest certificates for a key, oldest first, or all if there are fewer."""
    (found,) = first_ids(connection, [key], most)
    return with_ids(connection, set(found))


def every(connection: Connection, key: DeviceKey) -> list[StoredCertificate]:
    """Return all certificates for a key, oldest first."""
    return first(connection, key, _ALL)


def not_compromised(connection: Connection, key: DeviceKey, now: datetime) -> list[int]:
    """Return the ids of those that are not revoked for keyCompromise: first what is good *now*; the newest first."""
    rows = _LEFT.rows(connection, {"of": key.device_id, "wanted": key.spki_sha256})
    good = {identifier for identifier, not_after, reason in rows if reason is None and now < not_after}
    return sorted((row[0] for row in rows), key=lambda identifier: (identifier not in good, -identifier))


def good(connection: Connection, keys: Sequence[DeviceKey], now: datetime, most: int) -> list[list[str]]:
    """Return the serial numbers of the *most* newest certificates for each key that are good *now*."""
    asked = [{"of": each.device_id, "wanted": each.spki_sha256, "now": now, "most": most} for each in keys]
    return [[row[1] for row in answer.rows] for answer in _GOOD.answers(connection, asked)] if asked else []


def doubt(connection: Connection, key: DeviceKey) -> KeyDoubt | None:
    """Return why nothing is issued for this key, None if something may be."""
    row = _DOUBT.first(connection, {"of": key.device_id, "wanted": key.spki_sha256})
    return None if row is None else KeyDoubt(row[0], RevocationReason(row[1]))


def last_revoked(connection: Connection, key: DeviceKey) -> datetime | None:
    """Return when the last certificate for a key that is revoked, or on hold, became so; None: none is."""
    row = _LAST_REVOKED.first(connection, {"of": key.device_id, "wanted": key.spki_sha256})
    moment: datetime | None = None if row is None else row[0]
    return moment


def replaced_at(connection: Connection, key: DeviceKey) -> datetime | None:
    """Return when the device got the first certificate for another key behind all for this one; None: it has not.

    A trial is none: whoever has a claim gets one, and nobody need have activated it.
    """
    row = _REPLACED.first(connection, {"of": key.device_id, "wanted": key.spki_sha256})
    moment: datetime | None = None if row is None else row[0]
    return moment


def newest(connection: Connection, device: str, spki_sha256: bytes) -> HeldCertificate | None:
    """Return the certificate that was last issued to *device* for this key."""
    row = _NEWEST.first(connection, {"key": spki_sha256, "wanted": device})
    if row is None:
        return None
    identifier, der, issued_at, not_before, not_after, reason, claim, *ends = row
    revoked_for = None if reason is None else RevocationReason(reason)
    times = issued_at, not_before, not_after
    return HeldCertificate(identifier, der, *times, revoked_for, claim is not None, any(ends))
