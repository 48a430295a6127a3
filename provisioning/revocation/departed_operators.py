"""Takes back what an operator who leaves has promised, as far as nobody has made use of it yet.

An operator who is dismissed may have put tokens aside, and approved requests of their own, to send them again when
their certificate has long been revoked; so may a thief of their key. So the operator's unused tokens are void, and
approved requests wait for another decision. Whoever ends an operator may keep both, but not after a theft.

Rules
-----
1. An operator leaves if ended as a whole, or if none of their certificates is good or on hold after some of them were
   revoked. With a compromised key it does not matter what else they have.
2. Nothing is taken back by a suspension: it may be over tomorrow (`provisioning.enrolment.ways.token` asks who is).
3. With a compromised key more is ended, as its thief may have made it:
   * Claims, of which the thief would have the key, and devices on trial by them, which would become devices otherwise.
     For any other reason a claim goes on unless somebody ends it (``--end-claims`` of the commands): devices on their
     way have its key as well, and none of them could be told of another.
   * The trust in manufacturers' CAs that the operator has registered: a thief's own CA would let in whom he likes, for
     ever. Another admin who knows a CA registers it again.
   * The operator's entries on lists of expected devices, by one row (`provisioning.store.listed_devices`): whoever
     knows the devices lists them again.
   * Roles that the operator gave to names under which nobody is here: no list of present operators shows them, and
     they would count again once that operator is back.
   These ends are final. So if a key is reported again, only what was made before it was shut out is ended: the rest was
   made with another key. Tokens and approvals from after that are taken back all the same: they are soon made again.
4. What else they leave behind, claims, lists, manufacturers and operators with a role from them, is told, and so are
   rules that they changed and devices that they resumed. It is counted after the commit, by whole tables: nobody waits
   for that, and nobody is let in because it failed.
5. What is taken back is counted with it, by an index. An operator may have made a million tokens: if more than `MANY`,
   the transaction does not run on the event loop (`check_short`). It then comes behind those that were waiting: what
   the operator gets from one of them is taken back, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Protocol, TypeVar

import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from provisioning.errors import Refused, invalid
from provisioning.operator_role import OperatorRole
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.store import (
    audit,
    certificates_of_device,
    certificates_of_key,
    claims,
    listed_devices,
    manufacturers,
    promises,
    tokens,
)
from provisioning.store.audit import Action
from provisioning.store.certificates import StoredCertificate
from provisioning.store.certificates_of_key import key_of
from provisioning.store.database import Database
from provisioning.store.devices import Device
from provisioning.store.lanes import Apart
from provisioning.store.promises import Left

log = structlog.get_logger(__name__)

MANY: Final = 1000
"""Tokens and entries of lists that are counted on the event loop, or trials that are ended there."""
_SECOND: Final = timedelta(seconds=1)
"""A revocation's date has no fraction of it."""

_R = TypeVar("_R")
_R_co = TypeVar("_R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Departed:
    """An operator who has left, and what became of what that operator had promised."""

    name: str
    tokens_voided: int
    approvals_undone: int
    left: Left | None = None
    """None: it is not counted yet, or could not be."""
    claims_ended: int = 0
    trials_ended: int = 0
    """Devices on trial, by claims of that operator, ended now or before, which cannot be activated any more."""
    manufacturers_ended: Sequence[str] = ()
    listed_ended: Mapping[str, int] = field(default_factory=dict)
    """How many entries of that operator's have ended, by the group on whose list they are."""
    roles_ended: Sequence[str] = ()
    """Names that had a role from that operator, and under which nobody is here: they only read now."""


@dataclass(frozen=True, slots=True)
class Voided:
    """What is worth nothing any more, because of the parties that are ended: how many of each, by their names."""

    tokens: Counter[str]
    """Bound to them, or made by them."""
    approvals: Counter[str]
    departed: Sequence[Departed] = ()
    makers: frozenset[str] = frozenset()
    """Whose unused tokens are void now: perhaps only expired ones."""
    kept_tokens: Counter[str] = field(default_factory=Counter)
    kept_approvals: Counter[str] = field(default_factory=Counter)
    claims: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The claims that have ended, by the operator who made them."""
    trials: Counter[str] = field(default_factory=Counter)
    manufacturers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The manufacturers whose CAs are not trusted any more, by the operator who registered them."""
    lists: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many entries of device lists have ended, by the operator who put them there, and by group."""
    roles: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The names that are auditors now, by the operator who gave them a role."""

    def __bool__(self) -> bool:
        ended = self.claims or self.trials or self.manufacturers or self.lists or self.roles
        return bool(self.tokens.total() or self.approvals.total() or self.makers or ended)

    def changes(self, name: str) -> bool:
        """Whether anything of the party called *name* was good before."""
        every = self.claims, self.trials, self.manufacturers, self.lists, self.roles
        ended = any(name in each for each in every)
        return bool(self.tokens[name] or self.approvals[name] or name in self.makers or ended)

    def facts_of(self, name: str) -> dict[str, object]:
        """Return what the audit log says of the party called *name*."""
        facts: dict[str, object] = {"tokens_voided": self.tokens[name]}
        if self.approvals[name]:
            facts["approvals_undone"] = self.approvals[name]
        if name in self.claims:
            facts["claims_ended"] = [*self.claims[name]]
        if self.trials[name]:
            facts["trials_ended"] = self.trials[name]
        if name in self.manufacturers:
            facts["manufacturers_ended"] = [*self.manufacturers[name]]
        if name in self.lists:
            facts["listed_ended"] = dict(self.lists[name])
        if name in self.roles:
            facts["roles_ended"] = len(self.roles[name])
        if self.kept_tokens[name]:
            facts["tokens_kept"] = self.kept_tokens[name]
        if self.kept_approvals[name]:
            facts["approvals_kept"] = self.kept_approvals[name]
        return facts

    def note_what_ended(self, connection: Connection, grounds: Grounds, now: datetime, by: str) -> None:
        """Say in the audit log what has ended of claims, manufacturers, lists and roles, as of what ends by itself."""
        ended = [(name, maker) for maker, names in self.claims.items() for name in names]
        entries = [(name, {"created_by": maker, "reason": grounds.reason.value}) for name, maker in ended]
        audit.append_each(connection, now, by, Action.CLAIM_ENDED, entries)
        of_cas = [(name, maker) for maker, names in self.manufacturers.items() for name in names]
        entries = [(name, {"created_by": maker, "reason": grounds.reason.value}) for name, maker in of_cas]
        audit.append_each(connection, now, by, Action.MANUFACTURER_ENDED, entries)
        for maker, groups in self.lists.items():
            facts = {"created_by": maker, "reason": grounds.reason.value}
            of_lists = [(group, {"count": number, **facts}) for group, number in groups.items()]
            audit.append_each(connection, now, by, Action.LIST_ENTRIES_ENDED, of_lists)
        for maker, names in self.roles.items():
            facts = {"role": OperatorRole.AUDITOR.value, "given_by": maker, "reason": grounds.reason.value}
            audit.append_each(connection, now, by, Action.OPERATOR_ROLE_GRANTED, [(each, facts) for each in names])


class MayBeLong(Exception):
    """This cannot be done on the event loop, as it is about an operator's many tokens; nothing was done."""


def check_short(connection: Connection, device: Device, grounds: Grounds) -> None:
    """Raise `MayBeLong` if *device* is an operator who has made much that is counted, or ended, on these *grounds*."""
    if device.role is not Role.OPERATOR:
        return
    counted = [
        tokens.count_made_by(connection, device.name, MANY + 1),
        claims.places_taken_of(connection, device.name),
    ]
    if grounds.reason is RevocationReason.KEY_COMPROMISE:
        counted.append(listed_devices.count_made_by(connection, device.name, MANY + 1))
    if max(counted) > MANY:
        raise MayBeLong


class EndsOne(Protocol[_R_co]):
    """The work that ends one certificate or device, which calls `check_short` if it is to be *short*."""

    def __call__(self, connection: Connection, /, *, short: bool) -> _R_co:
        """Run in a transaction; raise `MayBeLong`."""


async def written(database: Database, work: EndsOne[_R], apart: Apart | None = None) -> _R:
    """Return what *work* does in a transaction of its own, on the event loop if that is short."""
    try:
        return await database.write(partial(work, short=True), apart, short=True)
    except MayBeLong:
        return await database.write(partial(work, short=False), apart)


def check_may_keep(grounds: Grounds, *, keep: bool) -> None:
    """Raise `Refused` if tokens are to be kept that whoever has a compromised key may have made."""
    if keep and grounds.reason is RevocationReason.KEY_COMPROMISE:
        raise invalid("keep_tokens: what was made with a compromised key is never kept; leave it out")


def take_back(
    connection: Connection,
    whole: Sequence[Device],
    singly: Sequence[StoredCertificate],
    grounds: Grounds,
    now: datetime,
    *,
    by: str,
    keep: bool,
    bound: Counter[str] | None = None,
) -> Voided:
    """Take back what operators have promised who leave, unless it is to be kept; after their end is recorded.

    *whole* are ended as a whole, of others the certificates *singly*, given as they were before. *bound* are the
    tokens that are void already, because they were bound to those that are ended; *by* is who ends them.
    """
    void = Counter[str]() if bound is None else bound
    names = _who_leave(connection, whole, [each.device for each in singly], grounds, now)
    if not names:
        return Voided(void, Counter())
    if keep:
        departed = [Departed(each, 0, 0) for each in names]
        return Voided(void, Counter(), departed, frozenset(), *promises.kept_of(connection, names, now))
    made, approved = promises.take_back(connection, names, now)
    stolen = grounds.reason is RevocationReason.KEY_COMPROMISE
    until = _until(connection, names, whole, singly) if stolen else {}
    ended = claims.end_made_by(connection, until, now)
    distrusted = manufacturers.end_made_by(connection, until, now)
    # If each of an operator's entries is somebody else's word, too, none has ended. That the operator's own word counts
    # no more is a change all the same.
    unlisted = {
        maker: {group: number for group, number in groups.items() if number}
        for maker, groups in listed_devices.end_put_by(connection, until, now).items()
    }
    lowered = promises.end_roles_given_by(connection, until, by=by, now=now)
    departed = [
        Departed(
            each,
            made[each],
            approved[each],
            claims_ended=len(ended.names.get(each, ())),
            trials_ended=ended.trials[each],
            manufacturers_ended=distrusted.get(each, ()),
            listed_ended=unlisted.get(each, {}),
            roles_ended=lowered.get(each, ()),
        )
        for each in names
    ]
    return Voided(
        void + made,
        approved,
        departed,
        frozenset(made),
        claims=ended.names,
        trials=ended.trials,
        manufacturers=distrusted,
        lists=unlisted,
        roles=lowered,
    )


async def with_what_is_left(database: Database, departed: Sequence[Departed], now: datetime) -> Sequence[Departed]:
    """Return *departed* with what each of them leaves behind; as they are if that cannot be counted."""
    if not departed:
        return departed
    try:
        left = await database.survey(partial(promises.left_of, names=[each.name for each in departed], now=now))
    except (Refused, SQLAlchemyError) as error:  # Whatever it is: they are gone, and that is what is answered.
        log.info("what departed operators have left is not counted", operators=len(departed), error=str(error))
        return departed
    return [replace(each, left=left[each.name]) for each in departed]


def _until(
    connection: Connection, names: Sequence[str], whole: Sequence[Device], singly: Sequence[StoredCertificate]
) -> dict[str, datetime | None]:
    """Return until when the compromised keys of each operator can have made something; None: until now."""
    until: dict[str, datetime | None] = {}
    for each in [each for each in singly if each.device.role is Role.OPERATOR]:
        name, moment = each.device.name, _worthless_since(connection, each)
        before = until.get(name, moment)
        until[name] = None if moment is None or before is None else max(moment, before)
    until |= {each.name: None for each in whole}
    return {name: until[name] for name in names}


def _worthless_since(connection: Connection, certificate: StoredCertificate) -> datetime | None:
    """Return since when the certificate's key makes nothing, as it was reported before; None: it was not."""
    was, ended_at = certificate.revocation, certificate.key_ended_at
    if ended_at is None and (was is None or was.reason is not RevocationReason.KEY_COMPROMISE):
        return None
    # All for the key: the one that was named may have been replaced, and revoked, long before its key was reported.
    last = certificates_of_key.last_revoked(connection, key_of(certificate))
    moments = ended_at, None if last is None else last + _SECOND
    return max(each for each in moments if each is not None)


def _who_leave(
    connection: Connection, whole: Sequence[Device], singly: Sequence[Device], grounds: Grounds, now: datetime
) -> list[str]:
    ended = {each.name for each in whole if each.role is Role.OPERATOR}
    touched = {each.id: each.name for each in singly if each.role is Role.OPERATOR}
    if touched and grounds.reason is not RevocationReason.KEY_COMPROMISE:
        stay = certificates_of_device.not_gone(connection, sorted(touched), now)
        touched = {identifier: name for identifier, name in touched.items() if identifier not in stay}
    return sorted(ended | {*touched.values()})
