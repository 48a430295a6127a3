"""Revokes many devices and certificates, or decommissions many devices, in one request.

How it is atomic: `provisioning.revocation.batch`. What is revoked: `provisioning.revocation.service`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Refusals
from provisioning.pki.role import Role
from provisioning.program.collector import paused
from provisioning.revocation.affected import facts_before, is_affected, is_affected_with_its_device
from provisioning.revocation.batch import Batch, Heard, finish_later, look_up, told
from provisioning.revocation.departed_operators import Departed, Voided, take_back, with_what_is_left
from provisioning.revocation.expected_names import end_roles_promised_again, record_promised
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.keys_of_many import KeysOfMany, finish_keys, keys_of
from provisioning.revocation.occasion import OPERATOR_DECISION, Occasion
from provisioning.revocation.portions import Portions
from provisioning.revocation.protection import check_the_service_is_not_ended
from provisioning.revocation.recording import IN_WHAT_FOLLOWS, Changed, RevocationOutcome, Revoked, record
from provisioning.revocation.surely_expired import surely_expired
from provisioning.store import audit, devices, revocations, tokens, unfinished_ends
from provisioning.store.audit import Action
from provisioning.store.certificates import StoredCertificate
from provisioning.store.database import Database
from provisioning.store.devices import Device, DeviceState

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class End:
    """The requested revocation or decommissioning."""

    names: Sequence[str]
    serials: Sequence[str]
    state: DeviceState
    grounds: Grounds
    by: str
    occasion: Occasion = OPERATOR_DECISION
    keep: bool = False
    """Keep what operators among them have promised (`provisioning.revocation.departed_operators`)."""

    @property
    def action(self) -> Action:
        """Its action in the audit log."""
        return Action.DECOMMISSIONED if self.state is DeviceState.DECOMMISSIONED else Action.REVOKED


@dataclass(frozen=True, slots=True)
class _Begun:
    """What the transaction has done."""

    batch: Batch
    keys: KeysOfMany
    ended: Changed
    facts: Sequence[Revoked]
    """The revocations of *ended*, in their order."""
    changed: bool
    before: int
    """The feed's newest sequence number then; the portions' events follow it."""
    departed: Sequence[Departed]


class _Unfinished(Exception):
    """Devices were ended before, and their certificates are not finished."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.names = names


class EndOfMany:
    """Ends what is named together."""

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

    async def end(self, end: End, most: int) -> RevocationOutcome:
        """End all that is named, or nothing; raise `RefusedTogether` naming all that cannot be.

        Of each device in portions, *most* certificates are told.
        """
        while True:
            try:
                begun = await self._database.write(partial(self._begin, end=end))
                break
            except _Unfinished as unfinished:  # Finish the earlier decision first.
                await self._portions.finish_all(unfinished.names)
        if begun.batch.later or begun.keys.later:
            self._portions.shut_out()  # Before anything is waited for: the feed, and the portions of others.
        self._tell(begun.ended)
        if begun.facts:  # Brokers close sessions while the answer, which may be long, is made.
            await self._heard(max(fact.sequence for fact in begun.facts))
        later, more = await finish_later(self._database, self._portions, begun.batch, begun.before, most)
        of_keys = await finish_keys(self._database, self._portions, begun.batch, begun.keys, begun.before)
        changed = begun.changed or more or bool(of_keys)
        if changed:
            log.info(
                "ended together",
                state=end.state.value,
                devices=len(begun.batch.whole),
                certificates=len(begun.ended),
                in_portions=len(begun.batch.later) + len(begun.keys.later),
                reason=end.grounds.reason.value,
                by=end.by,
            )
        facts = {each.id: fact for each, fact in zip(begun.ended, begun.facts, strict=True)}
        named = {each.id for each in (*begun.batch.at_once, *begun.batch.singly)}
        others = [fact for identifier, fact in facts.items() if identifier not in named]
        departed = await with_what_is_left(self._database, begun.departed, self._clock())
        names = [each.name for each in begun.batch.whole if begun.batch.issued.get(each.id) == []]
        return RevocationOutcome(told(begun.batch, facts, later, [*of_keys, *others]), changed, departed, names)

    @paused()
    def _begin(self, connection: Connection, end: End) -> _Begun:
        now, grounds, undone = self._clock(), end.grounds, end.action.value
        refusals = Refusals()
        bound = tokens.void_of_each(connection, end.names, now)  # Before the devices: the store's lock order.
        promised = partial(record_promised, by=end.by, now=now)
        batch = look_up(connection, end.names, end.serials, refusals, promised)
        end_roles_promised_again(connection, batch.whole, by=end.by, now=now)
        for device in [each for each in batch.whole if each.role is Role.SERVICE]:
            with refusals.of("device", device.name):
                check_the_service_is_not_ended(device)
        refusals.check(undone)
        _check_nothing_is_left(batch)
        for device in batch.whole:
            end.occasion.check(connection, device)
        keys = keys_of(connection, batch, grounds)
        before = revocations.newest(connection) if batch.later or keys.later else 0
        ended = _taken(batch, keys, grounds, now)
        facts = record(connection, ended, grounds, now, end.by)
        final = {end.state, DeviceState.DECOMMISSIONED}
        fresh = [each for each in batch.whole if each.state not in final]
        devices.set_state(connection, [each.id for each in fresh], end.state, now)
        unfinished_ends.begin(
            connection,
            [each.id for each in batch.later],
            reason=grounds.reason,
            invalidity_date=grounds.invalidity_date,
            ended_at=now,
            ended_by=end.by,
        )
        keys.begin(connection, grounds, now, end.by)
        batch.check_an_admin_is_left(connection, now, undone)  # Before the roles that they gave to each other end.
        voided = take_back(connection, batch.whole, batch.singly, grounds, now, by=end.by, keep=end.keep, bound=bound)
        entries = _entries(batch, keys, end, ended, {each.id for each in fresh}, voided)
        voided.note_what_ended(connection, grounds, now, end.by)
        audit.append_each(connection, now, end.by, end.action, entries)
        return _Begun(batch, keys, ended, facts, bool(entries), before, voided.departed)


def _check_nothing_is_left(batch: Batch) -> None:
    unfinished = [each.name for each in batch.later if each.id in batch.left and batch.left[each.id].final]
    if unfinished:
        raise _Unfinished(unfinished)


def _taken(batch: Batch, keys: KeysOfMany, grounds: Grounds, now: datetime) -> list[StoredCertificate]:
    """Return the certificates to revoke: with their device, by serial number, and for their key."""
    expired = surely_expired(batch.at_once, now)
    ended = {each.id: each for each in batch.at_once if is_affected_with_its_device(each, grounds, expired)}
    ended |= {each.id: each for each in batch.singly if is_affected(each, grounds)}
    ended |= {each.id: each for each in keys.at_once if is_affected(each, grounds)}
    return [ended[each] for each in sorted(ended)]  # Oldest first.


def _entries(
    batch: Batch, keys: KeysOfMany, end: End, ended: Changed, fresh: set[int], voided: Voided
) -> list[tuple[str, dict[str, object]]]:
    """Return the audit log's entries, one for each device that the call has changed."""
    of_device: dict[int, list[StoredCertificate]] = {}
    for each in ended:
        of_device.setdefault(each.device.id, []).append(each)
    found: list[tuple[str, dict[str, object]]] = []
    leaves = {each.name for each in voided.departed}
    later, common, whole = {each.id for each in batch.later}, end.grounds.facts, {each.id for each in batch.whole}
    every: dict[int, Device] = {each.id: each for each in (*batch.named, *(each.device for each in ended))}
    for identifier, device in every.items():
        taken = of_device.get(identifier, ())
        undone = voided.changes(device.name)
        if not (taken or identifier in fresh or undone):
            continue
        serials = IN_WHAT_FOLLOWS if identifier in later and not taken else [each.serial for each in taken]
        facts = {**common, "serials": serials, **facts_before(taken)}
        # A certificate's end leaves its device's tokens as they are, and an operator's if there is another one.
        if undone or identifier in whole or device.name in leaves:
            facts |= voided.facts_of(device.name)
        if keys.later and keys.follow(identifier):
            facts["same_key"] = IN_WHAT_FOLLOWS
        facts |= end.occasion.facts
        found.append((device.name, facts))
    return found
