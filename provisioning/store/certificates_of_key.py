"""Queries about the certificates for one key, which belongs to one device (`provisioning.store.device_keys`).

The index of each device's keys has them in order of issuance. One key may have thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Integer, LargeBinary, bindparam, func, select
from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store.certificates import REASON, StoredCertificate, with_ids
from provisioning.store.prepared import Prepared
from provisioning.store.tables import certificates

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
_ALL: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A key, and whose it is."""

    device_id: int
    spki_sha256: bytes


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
