"""Suspends or resumes many devices and certificates in one request.

How it is atomic: `provisioning.revocation.batch`. What a suspension is: `provisioning.revocation.suspension`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Refusals
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.program.collector import paused
from provisioning.revocation.batch import Batch, Heard, finish_later, look_up, told
from provisioning.revocation.events_since import released_since
from provisioning.revocation.holds import (
    Released,
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
from provisioning.revocation.occasion import OPERATOR_DECISION, Occasion
from provisioning.revocation.portions import Portions
from provisioning.revocation.protection import check_the_service_is_not_ended
from provisioning.revocation.recording import IN_WHAT_FOLLOWS, Changed, RevocationOutcome, Revoked
from provisioning.revocation.surely_expired import surely_expired
from provisioning.revocation.suspendable import (
    HoldEnd,
    check_not_over,
    check_to_be_held,
    check_to_be_released,
    check_to_be_suspended,
)
from provisioning.store import audit, certificates_of_device, claims, devices, revocations, unfinished_ends
from provisioning.store.audit import Action
from provisioning.store.certificates import StoredCertificate
from provisioning.store.database import Database
from provisioning.store.devices import Device, DeviceState

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Begun:
    """What the transaction has done."""

    batch: Batch
    fresh: Changed
    changed: bool
    before: int
    """The feed's newest sequence number then; the portions' events follow it."""
    held: Sequence[Revoked] = field(default_factory=list)
    released: Sequence[Released] = field(default_factory=list)
    still: Sequence[StillHeld] = field(default_factory=list)


class SuspensionOfMany:
    """Suspends and resumes what is named together: all of it, or nothing."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        tell: Callable[[Changed], None],
        portions: Portions,
        heard: Heard,
    ) -> None:
        self._database = database
        self._clock = clock
        self._tell = tell
        self._portions = portions
        self._heard = heard

    async def suspend(
        self,
        names: Sequence[str],
        serials: Sequence[str],
        *,
        by: str,
        most: int,
        occasion: Occasion = OPERATOR_DECISION,
    ) -> RevocationOutcome:
        """Put all that is named on hold; raise `RefusedTogether` naming all that cannot be.

        Of each device in portions, *most* certificates are told.
        """
        hold_all = partial(self._hold, names=names, serials=serials, by=by, occasion=occasion)
        begun = await self._database.write(hold_all)
        if begun.batch.later:
            self._portions.shut_out()  # Before the feed is waited for.
        self._tell(begun.fresh)
        await self._reach(begun.held)
        later, more = await finish_later(self._database, self._portions, begun.batch, begun.before, most)
        changed = begun.changed or more
        if changed:
            count, in_portions = len(begun.fresh), len(begun.batch.later)
            log.info(
                "suspended together", devices=len(begun.batch.whole), certificates=count, in_portions=in_portions, by=by
            )
        facts = {each.id: fact for each, fact in zip(begun.fresh, begun.held, strict=True)}
        return RevocationOutcome(told(begun.batch, facts, later), changed)

    @paused()
    def _hold(
        self, connection: Connection, names: Sequence[str], serials: Sequence[str], by: str, occasion: Occasion
    ) -> _Begun:
        now, refusals, undone = self._clock(), Refusals(), Action.SUSPENDED.value
        batch = look_up(connection, names, serials, refusals)
        for device in batch.whole:
            with refusals.of("device", device.name):
                check_to_be_suspended(device)
                check_the_service_is_not_ended(device)
        for each in batch.singly:
            with refusals.of("serial", each.serial):
                check_to_be_held(connection, each)
        refusals.check(undone)
        for device in batch.whole:
            occasion.check(connection, device)
        before = revocations.newest(connection) if batch.later else 0
        whole = to_be_held(batch.at_once, surely_expired(batch.at_once, now))
        fresh = _all_of(whole, [each for each in batch.singly if each.revocation is None])
        held = hold(connection, fresh, now, by)
        named = not_by_themselves(batch.singly)
        hold_by_itself(connection, named, by_itself=True)
        suspended = [each.id for each in batch.whole if each.state is not DeviceState.SUSPENDED]
        devices.set_state(connection, suspended, DeviceState.SUSPENDED, now)
        reason = RevocationReason.CERTIFICATE_HOLD
        later = [each.id for each in batch.later]
        unfinished_ends.begin(connection, later, reason=reason, ended_at=now, ended_by=by)
        batch.check_an_admin_is_left(connection, now, undone)
        turned = [each for each in later if each in batch.left and batch.left[each].reason is None]
        entries = [
            (name, {**facts, **occasion.facts})
            for name, facts in _entries(batch, _all_of(fresh, named), {*suspended, *turned}, named)
        ]
        audit.append_each(connection, now, by, Action.SUSPENDED, entries)
        return _Begun(batch, fresh, bool(entries), before, held=held)

    async def _reach(self, done: Sequence[Revoked] | Sequence[Released]) -> None:
        if done:
            await self._heard(max(each.sequence for each in done))

    async def resume(self, names: Sequence[str], serials: Sequence[str], *, by: str, most: int) -> ReleaseOutcome:
        """Release all that is named; raise `RefusedTogether` naming all that cannot be.

        Of each device in portions, *most* certificates are told.
        """
        begun = await self._database.write(partial(self._release, names=names, serials=serials, by=by))
        self._tell(begun.fresh)
        await self._reach(begun.released)
        released, still = [*begun.released], [*begun.still]
        later = [each.name for each in begun.batch.later]
        if later:
            await self._portions.finish_all(later)
            released += await released_since(self._database, set(later), begun.before, most)
            look = partial(_still_held, devices=begun.batch.later, now=self._clock(), most=most)
            still += await self._database.read(look)
        changed = begun.changed or bool(released)
        if changed:
            count, in_portions = len(begun.released), len(later)
            log.info(
                "resumed together", devices=len(begun.batch.whole), certificates=count, in_portions=in_portions, by=by
            )
        place = {each.name: number for number, each in enumerate(begun.batch.named)}
        released.sort(key=lambda each: (place[each.device], each.sequence))
        still.sort(key=lambda each: place[each.device])
        return ReleaseOutcome(released, changed, still)

    @paused()
    def _release(self, connection: Connection, names: Sequence[str], serials: Sequence[str], by: str) -> _Begun:
        now, refusals, undone = self._clock(), Refusals(), Action.RESUMED.value
        batch = look_up(connection, names, serials, refusals)
        for device in batch.whole:
            with refusals.of("device", device.name):
                check_not_over(device)
        whole = {each.id for each in batch.whole}
        singly: dict[HoldEnd, list[StoredCertificate]] = {each: [] for each in HoldEnd}
        for each in batch.singly:
            with refusals.of("serial", each.serial):
                singly[check_to_be_released(connection, each, whole)].append(each)
        refusals.check(undone)
        before = revocations.newest(connection) if batch.later else 0
        trials = claims.trials_of(connection, *{each.device.id for each in batch.at_once if each.on_hold})
        fresh = _all_of(to_be_released(batch.at_once, trials), singly[HoldEnd.GOOD])
        released = release(connection, fresh, now, by)
        stay = singly[HoldEnd.WITH_ITS_DEVICE]
        hold_by_itself(connection, stay, by_itself=False)
        good = {each.id for each in fresh}
        still = [StillHeld(each.serial, each.device.name, by_itself=False) for each in stay]
        stays = [each for each in batch.at_once if each.id not in good]
        still += still_held(stays, surely_expired(batch.at_once, now))
        suspended = {each.id for each in batch.whole if each.state is DeviceState.SUSPENDED}
        at_once = [each for each in suspended if each in batch.issued]
        devices.set_state(connection, at_once, DeviceState.ACTIVE, now)
        unfinished_ends.begin(connection, [each.id for each in batch.later], reason=None, ended_at=now, ended_by=by)
        own = [each for each in (*singly[HoldEnd.GOOD], *stay) if each.held_by_itself]
        entries = _entries(batch, _all_of(fresh, stay), suspended, own, still)
        audit.append_each(connection, now, by, Action.RESUMED, entries)
        return _Begun(batch, fresh, bool(entries), before, released=released, still=still)


def _all_of(*some: Changed) -> list[StoredCertificate]:
    return list({each.id: each for part in some for each in part}.values())


def _entries(
    batch: Batch, changed: Changed, turned: set[int], own: Changed, still: Sequence[StillHeld] = ()
) -> list[tuple[str, dict[str, object]]]:
    """Return the audit log's entries: for devices with *changed* certificates, and for those *turned*, by their ids.

    *own* are those of which the own hold has begun or ended, *still* those that stay on hold.
    """
    of_device, owned = _serials(changed), _serials(own)
    stays: dict[str, list[str]] = {}
    for one in still:
        stays.setdefault(one.device, []).append(one.serial)
    later = {each.id for each in batch.later}
    return [
        (
            each.name,
            entry(
                IN_WHAT_FOLLOWS if each.id in later else of_device.get(each.id, []),
                owned.get(each.id, ()),
                stays.get(each.name, ()),
            ),
        )
        for each in batch.named
        if each.id in turned or each.id in of_device
    ]


def _serials(some: Changed) -> dict[int, list[str]]:
    """Return the serial numbers of each device's, by its id."""
    found: dict[int, list[str]] = {}
    for each in some:
        found.setdefault(each.device.id, []).append(each.serial)
    return found


def _still_held(connection: Connection, devices: Sequence[Device], now: datetime, most: int) -> list[StillHeld]:
    newest = [certificates_of_device.newest(connection, each.id) for each in devices]
    expired = surely_expired([each for each in newest if each is not None], now)
    return [
        StillHeld(serial, each.name, by_itself=True)
        for each in devices
        if each.id in expired
        for serial in certificates_of_device.held_by_themselves(connection, each.id, expired[each.id], most)
    ]
