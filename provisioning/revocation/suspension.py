"""Suspension: certificateHold, the one revocation that ends (RFC 5280 §5.3.1).

Theory
------
A device that is lost, stolen or odd is shut out at once and let in again when it is found, with the certificates that
it has. For a relying party a hold is a revocation with another reason; its end is an event of the feed, a missing entry
in the next complete CRL, removeFromCRL in the next delta, and "good" from the OCSP responder.

Rules
-----
1. Suspending and resuming are idempotent, and only what is on hold is released: no other reason ever ends. Nor does
   the hold of a certificate on trial, which is nobody's decision (`provisioning.store.claims`): it ends with the trial.
   Nothing of a device that was ended is released, though it be still on hold (`provisioning.revocation.portions`).
2. A suspended device gets no certificate, by token or by renewal; its tokens stay, for when it is resumed.
3. Places in the feed are taken inside the transaction; neighbours are told after the commit, as for a revocation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.occasion import AN_OPERATOR_S_WORD, Occasion
from provisioning.revocation.protection import check_an_admin_is_left, check_not_the_service
from provisioning.revocation.recording import Changed, Revoked, facts_of
from provisioning.revocation.service import RevocationOutcome
from provisioning.store import audit, certificates, certificates_of_device, claims, devices, revocations
from provisioning.store.audit import Action
from provisioning.store.certificates import StoredCertificate
from provisioning.store.database import Database
from provisioning.store.devices import DeviceState

log = structlog.get_logger(__name__)

_HOLD = RevocationReason.CERTIFICATE_HOLD


@dataclass(frozen=True, slots=True)
class Released:
    """One certificate that is good again."""

    serial: str
    device: str
    released_at: datetime
    sequence: int


@dataclass(frozen=True, slots=True)
class ReleaseOutcome:
    """What was released, and whether this call did it."""

    released: list[Released]
    changed: bool


class SuspensionService:
    """Suspends and resumes devices and single certificates."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], after_commit: tuple[Callable[[Changed], None], ...]
    ) -> None:
        """*after_commit* are called with the certificates whose status has changed, before the caller is answered."""
        self._database = database
        self._clock = clock
        self._after_commit = after_commit

    async def suspend_device(self, name: str, *, by: str, occasion: Occasion = AN_OPERATOR_S_WORD) -> RevocationOutcome:
        """Put every certificate of a device on hold; raise `Refused` if it is unknown or gone for good.

        Raises `NoOccasion` if that does not hold any more.
        """

        def transaction(connection: Connection) -> tuple[RevocationOutcome, Changed]:
            now = self._clock()
            device = devices.find(connection, name, for_update=True)
            if device is None:
                raise Refused(Code.DEVICE_UNKNOWN, f"no device is called {name[:80]!r}")
            if device.state in {DeviceState.REVOKED, DeviceState.DECOMMISSIONED}:
                raise Refused(Code.REVOCATION_FINAL, f"{name} is {device.state}: there is nothing left to suspend")
            check_not_the_service(device)
            occasion.check(connection, device)
            issued = certificates_of_device.every(connection, device.id)
            fresh = [each for each in issued if each.revocation is None and now < each.not_after]
            held = self._hold(connection, fresh, now, by)
            check_an_admin_is_left(connection, [device], now)
            changed = device.state is not DeviceState.SUSPENDED or bool(fresh)
            if device.state is not DeviceState.SUSPENDED:
                devices.set_state(connection, [device.id], DeviceState.SUSPENDED, now)
            if changed:
                facts = {"serials": [each.serial for each in fresh], **occasion.facts}
                audit.append(connection, now, by, Action.SUSPENDED, name, facts)
            return RevocationOutcome(held or facts_of(issued), changed), fresh

        outcome, fresh = await self._database.write(transaction)
        if outcome.changed:
            log.info("device suspended", device=name, certificates=len(fresh), by=by)
        self._tell(fresh)
        return outcome

    async def suspend_serial(self, serial: str, *, by: str) -> RevocationOutcome:
        """Put one certificate on hold; raise `Refused` if it is unknown, on trial, or revoked for another reason."""

        def transaction(connection: Connection) -> tuple[RevocationOutcome, Changed]:
            certificate = _find(connection, serial)
            if certificate.revocation is not None and certificate.revocation.reason.final:
                raise _final(certificate)
            _check_not_on_trial(connection, certificate)
            fresh = [certificate] if certificate.revocation is None else []
            now = self._clock()
            held = self._hold(connection, fresh, now, by)
            check_an_admin_is_left(connection, [each.device for each in fresh], now)
            if fresh:
                _audit(connection, now, by, Action.SUSPENDED, certificate.device.name, fresh)
            return RevocationOutcome(held or facts_of([certificate]), bool(fresh)), fresh

        outcome, fresh = await self._database.write(transaction)
        if fresh:
            log.info("certificate suspended", device=fresh[0].device.name, serial=serial, by=by)
        self._tell(fresh)
        return outcome

    async def resume_device(self, name: str, *, by: str) -> ReleaseOutcome:
        """Release everything of a device that is on hold; raise `Refused` if it is unknown or gone for good."""

        def transaction(connection: Connection) -> tuple[ReleaseOutcome, Changed]:
            now = self._clock()
            device = devices.find(connection, name, for_update=True)
            if device is None:
                raise Refused(Code.DEVICE_UNKNOWN, f"no device is called {name[:80]!r}")
            if device.state in {DeviceState.REVOKED, DeviceState.DECOMMISSIONED}:
                raise Refused(Code.REVOCATION_FINAL, f"{name} is {device.state}, which is final")
            trials = claims.trials_of(connection, device.id)
            issued = certificates_of_device.every(connection, device.id)
            held = [each for each in issued if each.on_hold and each.id not in trials]
            released = self._release(connection, held, now, by)
            changed = device.state is DeviceState.SUSPENDED or bool(held)
            if device.state is DeviceState.SUSPENDED:
                devices.set_state(connection, [device.id], DeviceState.ACTIVE, now)
            if changed:
                _audit(connection, now, by, Action.RESUMED, name, held)
            return ReleaseOutcome(released, changed), held

        outcome, held = await self._database.write(transaction)
        if outcome.changed:
            log.info("device resumed", device=name, certificates=len(held), by=by)
        self._tell(held)
        return outcome

    async def resume_serial(self, serial: str, *, by: str) -> ReleaseOutcome:
        """Release one certificate; raise `Refused` if that is final, a trial's, or its whole device's."""

        def transaction(connection: Connection) -> tuple[ReleaseOutcome, Changed]:
            certificate = _find(connection, serial)
            if certificate.revocation is None:
                return ReleaseOutcome([], changed=False), []
            if certificate.revocation.reason.final:
                raise _final(certificate)
            _check_not_on_trial(connection, certificate)
            device = certificate.device
            if device.state in {DeviceState.REVOKED, DeviceState.DECOMMISSIONED}:  # Its portion is still to come.
                raise Refused(Code.REVOCATION_FINAL, f"{device.name} is {device.state}, which is final")
            if device.state is DeviceState.SUSPENDED:
                raise Refused(Code.DEVICE_SUSPENDED, f"{device.name} is suspended as a whole: resume the device")
            now = self._clock()
            released = self._release(connection, [certificate], now, by)
            _audit(connection, now, by, Action.RESUMED, device.name, [certificate])
            return ReleaseOutcome(released, changed=True), [certificate]

        outcome, held = await self._database.write(transaction)
        if held:
            log.info("certificate resumed", device=held[0].device.name, serial=serial, by=by)
        self._tell(held)
        return outcome

    @staticmethod
    def _hold(connection: Connection, fresh: Changed, now: datetime, by: str) -> list[Revoked]:
        if not fresh:
            return []
        at = now.replace(microsecond=0)  # RFC 5280 §5.1.2.6
        identifiers = [each.id for each in fresh]
        sequences = revocations.add(connection, identifiers, reason=_HOLD, revoked_at=now, revoked_by=by)
        return [
            Revoked(each.serial, each.device.name, _HOLD, at, sequence)
            for each, sequence in zip(fresh, sequences, strict=True)
        ]

    @staticmethod
    def _release(connection: Connection, held: Changed, now: datetime, by: str) -> list[Released]:
        if not held:
            return []
        at = now.replace(microsecond=0)
        sequences = revocations.release(connection, [each.id for each in held], released_at=at, actor=by)
        return [
            Released(each.serial, each.device.name, at, sequence)
            for each, sequence in zip(held, sequences, strict=True)
        ]

    def _tell(self, changed: Changed) -> None:
        if changed:
            for tell in self._after_commit:
                tell(changed)


def _audit(connection: Connection, now: datetime, by: str, action: Action, device: str, changed: Changed) -> None:
    audit.append(connection, now, by, action, device, {"serials": [each.serial for each in changed]})


def _find(connection: Connection, serial: str) -> StoredCertificate:
    found = certificates.find_serial(connection, serial, for_update=True)
    if found is None:
        raise Refused(Code.SERIAL_UNKNOWN, f"no certificate has the serial number {serial[:80]!r}")
    return found[0]


def _check_not_on_trial(connection: Connection, certificate: StoredCertificate) -> None:
    if certificate.on_hold and claims.on_trial(connection, certificate.id):
        raise Refused(
            Code.ON_TRIAL,
            f"certificate {certificate.serial} of {certificate.device.name} is on trial, on hold until its end: "
            "suspend or revoke the device, or revoke the certificate, to keep it from being activated",
        )


def _final(certificate: StoredCertificate) -> Refused:
    reason = certificate.revocation and certificate.revocation.reason
    return Refused(Code.REVOCATION_FINAL, f"certificate {certificate.serial} is revoked for {reason}, which is final")
