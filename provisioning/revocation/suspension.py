"""Suspension: certificateHold, the only reversible revocation (RFC 5280 §5.3.1).

Theory
------
A device that is lost, stolen or suspicious is shut out at once and admitted again when it is found, with its
certificates. For a relying party a hold is a revocation with another reason; its end is an event in the feed, a missing
entry in the next complete CRL, removeFromCRL in the next delta, and "good" from the OCSP responder.

A device as a whole and a certificate by itself are two decisions, mostly of two people: one has lost a device, another
has doubts about a key. Each is taken back only by its own resumption, in whichever order they were made::

    suspend --device ─► the device's ─┐                                    resume --device ends the first,
                                      ├─ either: on hold; neither: good    resume --serial the second,
    suspend --serial ─► its own ──────┘                                    and what stays on hold is told

Rules
-----
1. Suspending and resuming are idempotent, and only what is on hold is released: no other reason ever ends. The hold
   of a certificate on trial is no operator's decision (`provisioning.store.claims`), and ends only with the trial.
   Nothing of a device that was ended is released, even if still on hold (`provisioning.revocation.portions`).
   To relying parties it is one hold: it begins with the first decision, and ends with the last resumption.
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
    StillHeld,
    entry,
    hold,
    hold_by_itself,
    not_by_themselves,
    release,
    still_held,
    to_be_held,
    to_be_released,
)
from provisioning.revocation.issued_to import TooMany, first_of_device
from provisioning.revocation.occasion import OPERATOR_DECISION, Occasion
from provisioning.revocation.portions import Portions
from provisioning.revocation.protection import check_an_admin_is_left, check_the_service_is_not_ended
from provisioning.revocation.recording import Changed, RevocationOutcome, facts_of
from provisioning.revocation.surely_expired import surely_expired
from provisioning.revocation.suspendable import (
    HoldEnd,
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

    async def suspend_device(self, name: str, *, by: str, occasion: Occasion = OPERATOR_DECISION) -> RevocationOutcome:
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
        """Put one certificate on hold by itself; raise `Refused` if it is unknown, on trial, or revoked for ever.

        If it is on hold with its device, that changes only what its device's resumption makes of it.
        """

        def transaction(connection: Connection) -> tuple[RevocationOutcome, Changed]:
            certificate = certificates.with_serial(connection, serial, for_update=True)
            check_to_be_held(connection, certificate)
            fresh = [certificate] if certificate.revocation is None else []
            named = not_by_themselves([certificate])
            now = self._clock()
            held = hold(connection, fresh, now, by)
            hold_by_itself(connection, named, by_itself=True)
            check_an_admin_is_left(connection, [each.device for each in fresh], now)
            if named:
                audit.append(connection, now, by, Action.SUSPENDED, certificate.device.name, entry([serial], [serial]))
            return RevocationOutcome(held or facts_of([certificate]), bool(named)), fresh

        outcome, fresh = await self._database.write(transaction)
        if outcome.changed:
            log.info("certificate suspended", device=outcome.revoked[0].device, serial=serial, by=by)
        self._tell(fresh)
        return outcome

    async def resume_device(self, name: str, *, by: str) -> ReleaseOutcome:
        """Release what is on hold with its device; raise `Refused` if that is unknown or gone for good.

        Certificates that were suspended by themselves stay so, and are told.
        """

        def transaction(connection: Connection) -> tuple[ReleaseOutcome, Changed]:
            now = self._clock()
            device = _to_be_resumed(connection, name)
            issued = first_of_device(connection, device)
            held = to_be_released(issued, claims.trials_of(connection, device.id))
            released = release(connection, held, now, by)
            changed = device.state is DeviceState.SUSPENDED or bool(held)
            if device.state is DeviceState.SUSPENDED:
                devices.set_state(connection, [device.id], DeviceState.ACTIVE, now)
            stay = still_held(issued, surely_expired(issued, now))
            if changed:
                facts = entry([each.serial for each in held], still=[each.serial for each in stay])
                audit.append(connection, now, by, Action.RESUMED, name, facts)
            return ReleaseOutcome(released, changed, stay), held

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
        """End one certificate's own hold; raise `Refused` if it is revoked for good, on trial, or has no own one.

        It is good again, unless its device is suspended as a whole.
        """

        def transaction(connection: Connection) -> tuple[ReleaseOutcome, Changed]:
            certificate = certificates.with_serial(connection, serial, for_update=True)
            becomes = check_to_be_released(connection, certificate)
            if becomes is HoldEnd.NOTHING:
                return ReleaseOutcome([], changed=False), []
            name, now = certificate.device.name, self._clock()
            held, stay = ([certificate], []) if becomes is HoldEnd.GOOD else ([], [certificate])
            released = release(connection, held, now, by)
            hold_by_itself(connection, stay, by_itself=False)
            told = [StillHeld(each.serial, name, by_itself=False) for each in stay]
            own = [serial] if certificate.held_by_itself else []
            facts = entry([serial], own, [each.serial for each in stay])
            audit.append(connection, now, by, Action.RESUMED, name, facts)
            return ReleaseOutcome(released, changed=True, still_held=told), held

        outcome, held = await self._database.write(transaction)
        told = [each.device for each in outcome.released], [each.device for each in outcome.still_held]
        for device in (*told[0], *told[1]):
            log.info("certificate resumed", device=device, serial=serial, suspended_with_it=bool(told[1]), by=by)
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
