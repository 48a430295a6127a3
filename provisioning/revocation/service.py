"""Revocation: one transaction that makes certificates worthless, and two neighbours who are told afterwards.

Rules
-----
1. Revoking is final and idempotent: a second time answers with the facts of the first.
2. A device's revocation takes all its unexpired certificates and every unused token that is bound to it.
3. The place in the feed is taken inside the transaction: commit order is feed order, without a gap.
4. The feed and the CRL are told only after the commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.revocation import RevocationReason
from provisioning.store import certificates, devices, revocations, tokens
from provisioning.store.certificates import StoredCertificate
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

OPERATOR_REASONS: Final = frozenset(RevocationReason) - {
    # Reversible, and there is no way back here.
    RevocationReason.CERTIFICATE_HOLD,
    # Said of a CA or an attribute authority, which has other ways (RFC 5280 §5.3.1).
    RevocationReason.CA_COMPROMISE,
    RevocationReason.AA_COMPROMISE,
}
"""The reasons that an operator may give for an end entity."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """One revoked certificate, as the answer tells it."""

    serial: str
    device: str
    reason: RevocationReason
    revoked_at: datetime
    sequence: int


@dataclass(frozen=True, slots=True)
class RevocationOutcome:
    """What is revoked now, and whether this call did it."""

    revoked: list[Revoked]
    changed: bool


class RevocationService:
    """Revokes certificates, by device or by serial number."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], after_commit: tuple[Callable[[], None], ...]
    ) -> None:
        """*after_commit* are called, without arguments, whenever something was revoked."""
        self._database = database
        self._clock = clock
        self._after_commit = after_commit

    async def revoke_device(self, name: str, reason: RevocationReason, *, by: str) -> RevocationOutcome:
        """Revoke a device as a whole; raise `Refused` if there is no such device or the reason is not allowed."""
        _check_reason(reason)

        def transaction(connection: Connection) -> tuple[RevocationOutcome, int, int]:
            now = self._clock()
            device = devices.find(connection, name, for_update=True)
            if device is None:
                raise Refused(Code.DEVICE_UNKNOWN, f"no device is called {name[:80]!r}")
            held = certificates.of_device(connection, device.id)
            fresh = [each for each in held if each.revocation is None and now < each.not_after]
            revoked = _record(connection, fresh, reason, now, by)
            voided = tokens.void(connection, name, now)
            changed = device.revoked_at is None or bool(fresh)
            if changed:
                devices.set_revoked(connection, device.id, device.revoked_at or now)
            return RevocationOutcome(revoked or _facts(held), changed), len(fresh), voided

        outcome, fresh, voided = await self._database.write(transaction)
        if outcome.changed:
            log.info("device revoked", device=name, reason=reason.value, certificates=fresh, tokens=voided, by=by)
        if fresh:
            self._tell()
        return outcome

    async def revoke_serial(self, serial: str, reason: RevocationReason, *, by: str) -> RevocationOutcome:
        """Revoke one certificate; raise `Refused` if there is no such certificate or the reason is not allowed."""
        _check_reason(reason)

        def transaction(connection: Connection) -> RevocationOutcome:
            found = certificates.find_serial(connection, serial, for_update=True)
            if found is None:
                raise Refused(Code.SERIAL_UNKNOWN, f"no certificate has the serial number {serial[:80]!r}")
            certificate, _ = found
            fresh = [certificate] if certificate.revocation is None else []
            revoked = _record(connection, fresh, reason, self._clock(), by)
            return RevocationOutcome(revoked or _facts([certificate]), bool(fresh))

        outcome = await self._database.write(transaction)
        if outcome.changed:
            (revoked,) = outcome.revoked
            log.info("certificate revoked", device=revoked.device, serial=serial, reason=reason.value, by=by)
            self._tell()
        return outcome

    def _tell(self) -> None:
        for tell in self._after_commit:
            tell()


def _check_reason(reason: RevocationReason) -> None:
    if reason not in OPERATOR_REASONS:
        raise Refused(
            Code.INVALID_REQUEST,
            f"reason {reason} cannot be given here: use one of {', '.join(sorted(OPERATOR_REASONS))}",
        )


def _record(
    connection: Connection, fresh: list[StoredCertificate], reason: RevocationReason, now: datetime, by: str
) -> list[Revoked]:
    if not fresh:
        return []
    now = now.replace(microsecond=0)  # What the CRL can say (RFC 5280 §5.1.2.6), the feed says too.
    sequences = revocations.add(connection, [each.id for each in fresh], reason=reason, revoked_at=now, revoked_by=by)
    return [
        Revoked(each.serial, each.device.name, reason, now, sequence)
        for each, sequence in zip(fresh, sequences, strict=True)
    ]


def _facts(held: list[StoredCertificate]) -> list[Revoked]:
    return [
        Revoked(
            each.serial,
            each.device.name,
            each.revocation.reason,
            each.revocation.revoked_at,
            each.revocation.sequence,
        )
        for each in held
        if each.revocation is not None
    ]
