"""Suspension: certificateHold, the only reversible revocation (RFC 5280 §5.3.1).

Theory
------
A device that is lost, stolen or suspicious is shut out at once and admitted again when it is found, with its
certificates. For a relying party a hold is a revocation with another reason; its end is an event in the feed, a missing
entry in the next complete CRL, removeFromCRL in the next delta, and "good" from the OCSP responder.

Rules
-----
1. Suspending and resuming are idempotent, and only what is on hold is released: no other reason ever ends. The hold
   of a certificate on trial is no operator's decision (`provisioning.store.claims`), and ends only with the trial.
   Nothing of a device that was ended is released, even if still on hold (`provisioning.revocation.portions`).
2. A suspended device gets no certificate, by token or by renewal; its tokens stay, for when it is resumed.
3. Sequence numbers are taken inside the transaction; feed and CRL are notified after the commit, as for a revocation.
4. A device with very many certificates is a batch of one: shut out by a short transaction, and they follow in portions;
   when resumed, it is admitted after all are released (`provisioning.revocation.portions`).
5. Many are suspended, or resumed, together or not at all (`provisioning.revocation.batch`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import structlog
from sqlalchemy.engine import Connection

from provisioning.revocation import issued_to
from provisioning.revocation.batch import EVERY, Heard, nobody_follows, refused_alone
from provisioning.revocation.holds import (
    ReleaseOutcome,
    hold,
    release,
    to_be_held,
    to_be_released,
)
from provisioning.revocation.issued_to import TooMany, first_of_device
from provisioning.revocation.occasion import AN_OPERATOR_S_WORD, Occasion
from provisioning.revocation.portions import Portions
from provisioning.revocation.protection import check_an_admin_is_left, check_the_service_is_not_ended
from provisioning.revocation.recording import Changed, RevocationOutcome, facts_of
from provisioning.revocation.surely_expired import surely_expired
from provisioning.revocation.suspendable import (
    check_not_over,
    check_to_be_held,
    check_to_be_released,
    check_to_be_suspended,
)
from provisioning.revocation.suspension_of_many import SuspensionOfMany
from provisioning.store import (
    audit,
    certificates,
    claims,
    devices,
)
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.devices import Device, DeviceState
from provisioning.store.near_devices import no_such_device

log = structlog.get_logger(__name__)


class SuspensionService:
    """Suspends and resumes devices and single certificates."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        after_commit: tuple[Callable[[Changed], None], ...],
        portions: Portions | None = None,
        heard: Heard = nobody_follows,
    ) -> None:
        """*after_commit* are called with the certificates whose status has changed, before the caller is answered.

        *portions* finishes what is left; without it, the service has its own. *heard* is awaited before the answer to a
        batch is made, once its events were announced.
        """
        self._database = database
        self._clock = clock
        self._after_commit = after_commit
        self._portions = portions or Portions(database, clock, self._tell)
        self._many = SuspensionOfMany(database, clock, self._tell, self._portions, heard)

    async def suspend_device(self, name: str, *, by: str, occasion: Occasion = AN_OPERATOR_S_WORD) -> RevocationOutcome:
        """Put every certificate of a device on hold; raise `Refused` if it is unknown or gone for good.

        Raises `NoOccasion` if the occasion no longer holds.
        """

        def transaction(connection: Connection) -> tuple[RevocationOutcome, Changed]:
            now = self._clock()
            device = _to_be_suspended(connection, name, occasion)
            issued = first_of_device(connection, device)
            fresh = to_be_held(issued, surely_expired(issued, now))
            held = hold(connection, fresh, now, by)
            changed = _suspend(connection, device, now) or bool(fresh)
            if changed:
                facts = {"serials": [each.serial for each in fresh], **occasion.facts}
                audit.append(connection, now, by, Action.SUSPENDED, name, facts)
            return RevocationOutcome(held or facts_of(issued), changed), fresh

        try:
            outcome, fresh = await self._database.write(transaction)
        except TooMany:
            with refused_alone():
                return await self._many.suspend([name], (), by=by, occasion=occasion, most=EVERY)
        self._tell(fresh)
        if outcome.changed:
            log.info("device suspended", device=name, certificates=len(fresh), by=by)
        return outcome

    async def suspend_serial(self, serial: str, *, by: str) -> RevocationOutcome:
        """Put one certificate on hold; raise `Refused` if it is unknown, on trial, or revoked for another reason."""

        def transaction(connection: Connection) -> tuple[RevocationOutcome, Changed]:
            certificate = certificates.with_serial(connection, serial, for_update=True)
            check_to_be_held(connection, certificate)
            fresh = [certificate] if certificate.revocation is None else []
            now = self._clock()
            held = hold(connection, fresh, now, by)
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
            device = _to_be_resumed(connection, name)
            issued = first_of_device(connection, device)
            held = to_be_released(issued, claims.trials_of(connection, device.id))
            released = release(connection, held, now, by)
            changed = device.state is DeviceState.SUSPENDED or bool(held)
            if device.state is DeviceState.SUSPENDED:
                devices.set_state(connection, [device.id], DeviceState.ACTIVE, now)
            if changed:
                _audit(connection, now, by, Action.RESUMED, name, held)
            return ReleaseOutcome(released, changed), held

        try:
            outcome, held = await self._database.write(transaction)
        except TooMany:
            with refused_alone():
                return await self._many.resume([name], (), by=by, most=EVERY)
        self._tell(held)
        if outcome.changed:
            log.info("device resumed", device=name, certificates=len(outcome.released), by=by)
        return outcome

    async def resume_serial(self, serial: str, *, by: str) -> ReleaseOutcome:
        """Release one certificate; raise `Refused` if it is revoked for good, on trial, or held with its device."""

        def transaction(connection: Connection) -> tuple[ReleaseOutcome, Changed]:
            certificate = certificates.with_serial(connection, serial, for_update=True)
            if not check_to_be_released(connection, certificate):
                return ReleaseOutcome([], changed=False), []
            now = self._clock()
            released = release(connection, [certificate], now, by)
            _audit(connection, now, by, Action.RESUMED, certificate.device.name, [certificate])
            return ReleaseOutcome(released, changed=True), [certificate]

        outcome, held = await self._database.write(transaction)
        if held:
            log.info("certificate resumed", device=held[0].device.name, serial=serial, by=by)
        self._tell(held)
        return outcome

    async def suspend_batch(self, names: Sequence[str], serials: Sequence[str], *, by: str) -> RevocationOutcome:
        """Suspend devices as a whole and single certificates, all or none; raise `Refused` naming what cannot be."""
        return await self._many.suspend(names, serials, by=by, most=issued_to.FEW)

    async def resume_batch(self, names: Sequence[str], serials: Sequence[str], *, by: str) -> ReleaseOutcome:
        """Resume devices as a whole and single certificates, all or none; raise `Refused` naming what cannot be."""
        return await self._many.resume(names, serials, by=by, most=issued_to.FEW)

    def _tell(self, changed: Changed) -> None:
        if changed:
            for tell in self._after_commit:
                tell(changed)


def _to_be_suspended(connection: Connection, name: str, occasion: Occasion) -> Device:
    """Return the device, locked; raise `Refused` if it cannot be suspended."""
    device = _locked(connection, name)
    check_to_be_suspended(device)
    check_the_service_is_not_ended(device)
    occasion.check(connection, device)
    return device


def _suspend(connection: Connection, device: Device, now: datetime) -> bool:
    """Set the device's state; return whether it changed."""
    suspends = device.state is not DeviceState.SUSPENDED
    if suspends:
        devices.set_state(connection, [device.id], DeviceState.SUSPENDED, now)
    check_an_admin_is_left(connection, [device], now)
    return suspends


def _to_be_resumed(connection: Connection, name: str) -> Device:
    """Return the device, locked; raise `Refused` if it cannot be resumed."""
    device = _locked(connection, name)
    check_not_over(device)
    return device


def _locked(connection: Connection, name: str) -> Device:
    """Return the device, locked; raise `Refused` if there is none."""
    device = devices.find(connection, name, for_update=True)
    if device is None:
        raise no_such_device(connection, name)
    return device


def _audit(connection: Connection, now: datetime, by: str, action: Action, device: str, changed: Changed) -> None:
    audit.append(connection, now, by, action, device, {"serials": [each.serial for each in changed]})
