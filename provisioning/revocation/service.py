"""Revocation: one transaction that revokes certificates, and then notifies the feed and the CRL.

Here is the short way, for a device with few certificates. One with very many is a batch of one: one transaction shuts
it out, and its certificates follow in portions (`provisioning.revocation.portions`). So do those for a key with very
many (`provisioning.revocation.end_of_one`).

Rules
-----
1. Revoking is final and idempotent: a second call answers with the facts of the first. A hold is not final: revoking
   makes it so, and the date of the hold stays, because the certificate has been distrusted since. So does the date of a
   revocation whose reason is changed, which is possible to keyCompromise only (`provisioning.revocation.affected`).
2. Revoking or decommissioning a device revokes all its certificates that are unexpired or on hold, and voids every
   unused token bound to it; for a compromised key also its expired certificates, so that their keys are never
   certified again.
3. The feed's sequence number is taken inside the transaction: commit order is feed order, without a gap.
4. The feed and the CRL are notified only after the commit.
5. Many are ended together or not at all (`provisioning.revocation.batch`).
6. A compromised key is compromised in every certificate: whichever is named, all for its key are revoked for that
   reason, even if they were revoked for another before. One key belongs to one device
   (`provisioning.store.device_keys`), whose row is locked.
7. With an operator go what that operator has promised and nobody has used: tokens are voided, those just being made are
   not made (`provisioning.enrolment.tokens`), and approved requests wait again. Both are kept if the caller says so
   (`provisioning.revocation.departed_operators`).
8. A name under which nobody has enrolled, and which is promised to somebody, is ended, too
   (`provisioning.revocation.expected_names`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation import issued_to
from provisioning.revocation.affected import facts_before, is_affected_with_its_device
from provisioning.revocation.batch import EVERY, Heard, nobody_follows, refused_alone
from provisioning.revocation.departed_operators import (
    Voided,
    check_may_keep,
    check_short,
    take_back,
    with_what_is_left,
    written,
)
from provisioning.revocation.end_of_many import End, EndOfMany
from provisioning.revocation.end_of_one import EndOfOne
from provisioning.revocation.expected_names import end_roles_promised_again, record_promised
from provisioning.revocation.grounds import Grounds, grounds_of
from provisioning.revocation.issued_to import TooMany, first_of_device
from provisioning.revocation.named_certificate import BySerial, shown
from provisioning.revocation.occasion import OPERATOR_DECISION, Occasion
from provisioning.revocation.portions import Portions
from provisioning.revocation.protection import check_an_admin_is_left, check_the_service_is_not_ended
from provisioning.revocation.reasons import OPERATOR_REASONS, REASON_USES
from provisioning.revocation.recording import Changed, RevocationOutcome, facts_of, record
from provisioning.revocation.surely_expired import surely_expired
from provisioning.store import (
    audit,
    devices,
    tokens,
)
from provisioning.store.database import Database
from provisioning.store.devices import Device, DeviceState
from provisioning.store.near_devices import no_such_device
from provisioning.store.side_by_side import go_alone

log = structlog.get_logger(__name__)


async def nobody_is_told() -> None:
    """Tell nobody: where there is no TLS."""


class RevocationService:
    """Revokes for ever: certificates by device or by serial number, and devices as a whole."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        after_commit: tuple[Callable[[Changed], None], ...],
        shut_out: Callable[[], None] = lambda: None,
        heard: Heard = nobody_follows,
        trust_changed: Callable[[], Awaitable[object]] = nobody_is_told,
    ) -> None:
        """*after_commit* are called with the certificates whose status has changed, before the caller is answered.

        *shut_out* is called when a device or a key is shut out whose certificates follow in portions. *heard* is
        awaited before the answer to a batch is made, once its events were announced. *trust_changed* is awaited when
        claims have ended, as `provisioning.enrolment.claims` does.
        """
        self._database = database
        self._clock = clock
        self._after_commit = after_commit
        self.portions = Portions(database, clock, self._tell, shut_out)
        self._one = EndOfOne(database, clock, self._tell, self.portions)
        self._trust_changed = trust_changed
        self._many = EndOfMany(database, clock, self._tell, self.portions, heard)

    async def run(self) -> None:
        """Finish ends of devices, keys and CAs that any process has begun and not finished, until cancelled."""
        await self.portions.run()

    async def revoke_device(
        self,
        name: str,
        reason: RevocationReason,
        *,
        by: str,
        invalidity_date: datetime | None = None,
        occasion: Occasion = OPERATOR_DECISION,
        keep_tokens: bool = False,
    ) -> RevocationOutcome:
        """Revoke a device as a whole; raise `Refused` if there is no such device or the reason is not allowed.

        Raises `NoOccasion` if the occasion no longer holds. *keep_tokens*: keep what an operator has promised.
        """
        grounds = self._grounds(reason, invalidity_date, keep=keep_tokens)
        end = End([name], (), DeviceState.REVOKED, grounds, by, occasion, keep_tokens)
        return await self._told_to_tls(await self._end_device(name, end))

    async def decommission(self, name: str, *, by: str, keep_tokens: bool = False) -> RevocationOutcome:
        """Revoke a device for cessationOfOperation and never admit its name again; raise `Refused`."""
        grounds = Grounds(RevocationReason.CESSATION_OF_OPERATION)
        end = End([name], (), DeviceState.DECOMMISSIONED, grounds, by, keep=keep_tokens)
        return await self._end_device(name, end)

    def _grounds(self, reason: RevocationReason, invalidity_date: datetime | None, *, keep: bool) -> Grounds:
        _check_reason(reason)
        grounds = grounds_of(reason, invalidity_date, self._clock())
        check_may_keep(grounds, keep=keep)
        return grounds

    async def _end_device(self, name: str, end: End) -> RevocationOutcome:
        try:
            work, apart = partial(self._end_at_once, name=name, end=end), lambda: {("device", name)}
            outcome, ended, voided = await written(self._database, work, apart)
        except TooMany:
            with refused_alone():
                return await self._many.end(end, EVERY)
        self._tell(ended)
        if outcome.changed:
            log.info(
                "device ended",
                state=end.state.value,
                device=name,
                reason=end.grounds.reason.value,
                certificates=len(ended),
                tokens=voided.tokens.total(),
                by=end.by,
            )
        departed = await with_what_is_left(self._database, outcome.departed, self._clock())
        return replace(outcome, departed=departed)

    def _end_at_once(
        self, connection: Connection, name: str, end: End, *, short: bool
    ) -> tuple[RevocationOutcome, Changed, Voided]:
        """End a device in this transaction; raise `TooMany` if it has more than a few certificates.

        Raises `MayBeLong` for an operator with many tokens, if the transaction is to be *short*.
        """
        now, grounds = self._clock(), end.grounds
        device, bound = _to_be_ended(connection, name, end, now)
        if short:
            check_short(connection, device, grounds)
        issued = first_of_device(connection, device)
        expired = surely_expired(issued, now)
        ended = [each for each in issued if is_affected_with_its_device(each, grounds, expired)]
        revoked = record(connection, ended, grounds, now, end.by)
        changed = _end_state(connection, device, end, now) or bool(ended)
        voided = take_back(connection, [device], (), grounds, now, by=end.by, keep=end.keep, bound=bound)
        if changed or voided:
            facts = {**grounds.facts, "serials": [each.serial for each in ended], **voided.facts_of(name)}
            facts |= {**facts_before(ended), **end.occasion.facts}
            voided.note_what_ended(connection, grounds, now, end.by)
            audit.append(connection, now, end.by, end.action, name, facts)
        names = [] if issued else [name]
        outcome = RevocationOutcome(revoked or facts_of(issued), changed or bool(voided), voided.departed, names)
        return outcome, ended, voided

    async def revoke_serial(
        self,
        serial: str,
        reason: RevocationReason,
        *,
        by: str,
        invalidity_date: datetime | None = None,
        keep_tokens: bool = False,
    ) -> RevocationOutcome:
        """Revoke one certificate; raise `Refused` if there is no such certificate or the reason is not allowed."""
        grounds = self._grounds(reason, invalidity_date, keep=keep_tokens)
        return await self._told_to_tls(await self._one.end(BySerial(serial), grounds, by, keep=keep_tokens))

    async def revoke_shown(
        self,
        pem: str,
        reason: RevocationReason,
        *,
        by: str,
        invalidity_date: datetime | None = None,
        keep_tokens: bool = False,
    ) -> RevocationOutcome:
        """Revoke the certificate in *pem*, recorded now if the store has lost it; raise `Refused` if it is not ours."""
        grounds = self._grounds(reason, invalidity_date, keep=keep_tokens)
        return await self._told_to_tls(await self._one.end(shown(pem), grounds, by, keep=keep_tokens))

    async def revoke_batch(
        self,
        names: Sequence[str],
        serials: Sequence[str],
        reason: RevocationReason,
        *,
        by: str,
        invalidity_date: datetime | None = None,
        keep_tokens: bool = False,
    ) -> RevocationOutcome:
        """Revoke devices as a whole and single certificates, all or none; raise `Refused` naming what cannot be."""
        grounds = self._grounds(reason, invalidity_date, keep=keep_tokens)
        end = End(names, serials, DeviceState.REVOKED, grounds, by, keep=keep_tokens)
        return await self._told_to_tls(await self._many.end(end, issued_to.FEW))

    async def decommission_batch(
        self, names: Sequence[str], *, by: str, keep_tokens: bool = False
    ) -> RevocationOutcome:
        """Decommission devices, all or none; raise `Refused` naming all that cannot be."""
        grounds = Grounds(RevocationReason.CESSATION_OF_OPERATION)
        end = End(names, (), DeviceState.DECOMMISSIONED, grounds, by, keep=keep_tokens)
        return await self._many.end(end, issued_to.FEW)

    async def _told_to_tls(self, outcome: RevocationOutcome) -> RevocationOutcome:
        """Let TLS take no claim or CA any more that has ended with its maker's key, and return *outcome*."""
        if any(each.claims_ended or each.manufacturers_ended for each in outcome.departed):
            await self._trust_changed()
        return outcome

    def _tell(self, changed: Changed) -> None:
        if changed:
            for tell in self._after_commit:
                tell(changed)


def _to_be_ended(connection: Connection, name: str, end: End, now: datetime) -> tuple[Device, Counter[str]]:
    """Void its tokens, and return the device, locked, and how many; raise `Refused` if it cannot be ended."""
    bound = Counter({name: tokens.void(connection, name, now)})  # Before the device: the store's lock order.
    device = devices.find(connection, name, for_update=True)
    if device is None:
        device = next(iter(record_promised(connection, [name], by=end.by, now=now)), None)
    else:
        end_roles_promised_again(connection, [device], by=end.by, now=now)
    if device is None:
        raise no_such_device(connection, name)
    if device.role is not Role.DEVICE:
        go_alone(connection)  # Whether an admin is left depends on all of them.
    check_the_service_is_not_ended(device)
    end.occasion.check(connection, device)
    return device, bound


def _end_state(connection: Connection, device: Device, end: End, now: datetime) -> bool:
    """Set the device's state, unless it has that or a more final one; return whether it changed."""
    ends = device.state not in {end.state, DeviceState.DECOMMISSIONED}
    if ends:
        devices.set_state(connection, [device.id], end.state, now)
    check_an_admin_is_left(connection, [device], now)
    return ends


def _check_reason(reason: RevocationReason) -> None:
    if reason not in OPERATOR_REASONS:
        raise Refused(
            Code.INVALID_REQUEST,
            f"reason {reason} cannot be given here ({REASON_USES[reason]}): "
            f"use one of {', '.join(sorted(OPERATOR_REASONS))}",
        )
