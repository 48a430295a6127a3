"""The one function that records a revocation, and the facts that are reported of one.

A hold that becomes final keeps its date, and so does a revocation whose reason is changed: the certificate has been
distrusted since then (`provisioning.revocation.affected`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.quick_values import quickly_made
from provisioning.revocation.departed_operators import Departed
from provisioning.revocation.grounds import Grounds
from provisioning.store import revocations
from provisioning.store.certificates import StoredCertificate, StoredRevocation


@quickly_made
@dataclass(frozen=True, slots=True)
class Revoked:
    """One revoked certificate, as reported in the answer."""

    serial: str
    device: str
    reason: RevocationReason
    revoked_at: datetime
    sequence: int
    invalidity_date: datetime | None = None


@dataclass(frozen=True, slots=True)
class RevocationOutcome:
    """The revoked certificates, and whether this call revoked them."""

    revoked: list[Revoked]
    changed: bool
    departed: Sequence[Departed] = ()
    """Operators who have left by it."""
    names: Sequence[str] = ()
    """What was named and has ended without a certificate: nobody has enrolled by these names."""


Changed = Sequence[StoredCertificate]
"""Certificates whose status has just changed."""

IN_WHAT_FOLLOWS: Final = "in the entries that follow"
"""The audit log's text instead of serial numbers, if they are in the entry of each portion."""


def record(connection: Connection, ended: Changed, grounds: Grounds, now: datetime, by: str) -> list[Revoked]:
    """Revoke certificates, even if on hold or revoked before, and return their revocations."""
    at = now.replace(microsecond=0)  # As in the CRL (RFC 5280 §5.1.2.6).
    fresh = [each for each in ended if each.revocation is None]
    held = [each for each in ended if each.revocation is not None]
    told: dict[int, Revoked] = {}
    reason, since = grounds.reason, grounds.invalidity_date
    if held:
        told = _made_final(connection, held, grounds, by)
    if fresh:
        identifiers = [each.id for each in fresh]
        sequences = revocations.add(
            connection, identifiers, reason=reason, revoked_at=now, revoked_by=by, invalidity_date=since
        )
        for place, each in zip(sequences, fresh, strict=True):
            told[each.id] = Revoked(each.serial, each.device.name, reason, at, place, since)
    return [told[each.id] for each in ended]


def _made_final(connection: Connection, held: Changed, grounds: Grounds, by: str) -> dict[int, Revoked]:
    """Make revocations that there are final, for *grounds*; return the facts by certificate ids."""
    before = {each.id: each.revocation for each in held if each.revocation is not None}
    reason, since = grounds.reason, grounds.invalidity_date
    sequences = revocations.finalise(connection, before, reason=reason, revoked_by=by, invalidity_date=since)
    now = {
        identifier: StoredRevocation(place, reason, was.revoked_at, since or was.invalidity_date)
        for place, (identifier, was) in zip(sequences, before.items(), strict=True)
    }
    return {each.id: _facts(each, now[each.id]) for each in held}


def facts_of(issued: Changed) -> list[Revoked]:
    """Return the revocations of those that are revoked."""
    return [_facts(each, each.revocation) for each in issued if each.revocation is not None]


def _facts(certificate: StoredCertificate, revocation: StoredRevocation) -> Revoked:
    return Revoked(
        certificate.serial,
        certificate.device.name,
        revocation.reason,
        revocation.revoked_at,
        revocation.sequence,
        revocation.invalidity_date,
    )
