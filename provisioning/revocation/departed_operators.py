"""Takes back what an operator who leaves has promised, as far as nobody has made use of it yet.

Whoever is dismissed may have put tokens aside, and approved requests of their own, to send them again when their
certificate has long been revoked; so may whoever has stolen their key. So the operator's unused tokens are void, and
approved requests wait for another decision. Whoever ends an operator may keep both, but not after a theft.

Rules
-----
1. An operator leaves who is ended as a whole, or has no good certificate once some of theirs were revoked, nor one on
   hold. With a compromised key it does not matter what else they have.
2. Nothing is taken back by a suspension: it may be over tomorrow (`provisioning.enrolment.ways.token` asks who is).
3. With a compromised key end the claims that the operator has made, too: whoever has the key may have made them, and
   then has theirs. For any other reason a claim goes on unless somebody ends it: devices that are on their way have its
   key as well, and none of them could be told of another (``--end-claims`` of the commands).
   So ends the trust in manufacturers' CAs that the operator has registered: the thief's own CA would let in whom he
   likes, for ever. Another admin who knows a CA registers it again.
4. What they leave behind otherwise, claims, lists, manufacturers and operators with a role from them, is told. It is
   counted after the commit, by whole tables: neither does anybody wait for that, nor is anybody let in because it
   failed.
5. What is taken back is counted with it, by an index. An operator may have made a million tokens: of who has made more
   than `MANY`, such a transaction does not run on the event loop (`check_short`). It then comes behind those that were
   waiting: what the operator gets from one of them is taken back, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Final, Protocol, TypeVar

import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from provisioning.errors import Refused, invalid
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.store import certificates_of_device, claims, manufacturers, promises, tokens
from provisioning.store.database import Database
from provisioning.store.devices import Device
from provisioning.store.lanes import Apart
from provisioning.store.promises import Left

log = structlog.get_logger(__name__)

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
    manufacturers_ended: Sequence[str] = ()


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
    """The claims that have ended, by who has made them."""
    manufacturers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The manufacturers whose CAs are not trusted any more, by who has registered them."""

    def __bool__(self) -> bool:
        ended = self.claims or self.manufacturers
        return bool(self.tokens.total() or self.approvals.total() or self.makers or ended)

    def changes(self, name: str) -> bool:
        """Whether anything of the party called *name* was good before."""
        ended = name in self.claims or name in self.manufacturers
        return bool(self.tokens[name] or self.approvals[name] or name in self.makers or ended)

    def facts_of(self, name: str) -> dict[str, object]:
        """Return what the audit log says of the party called *name*."""
        facts: dict[str, object] = {"tokens_voided": self.tokens[name]}
        if self.approvals[name]:
            facts["approvals_undone"] = self.approvals[name]
        if name in self.claims:
            facts["claims_ended"] = [*self.claims[name]]
        if name in self.manufacturers:
            facts["manufacturers_ended"] = [*self.manufacturers[name]]
        if self.kept_tokens[name]:
            facts["tokens_kept"] = self.kept_tokens[name]
        if self.kept_approvals[name]:
            facts["approvals_kept"] = self.kept_approvals[name]
        return facts


MANY: Final = 1000
"""Tokens that are counted on the event loop."""


class MayBeLong(Exception):
    """This cannot be done on the event loop, as it is about an operator's many tokens; nothing was done."""


def check_short(connection: Connection, device: Device) -> None:
    """Raise `MayBeLong` if *device* is an operator who has made many tokens."""
    if device.role is Role.OPERATOR and tokens.count_made_by(connection, device.name, MANY + 1) > MANY:
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
    singly: Sequence[Device],
    grounds: Grounds,
    now: datetime,
    *,
    keep: bool,
    bound: Counter[str] | None = None,
) -> Voided:
    """Take back what operators have promised who leave, unless it is to be kept; after their end is recorded.

    *whole* are ended as a whole, certificates of *singly* are. *bound* are the tokens that are void already, because
    they were bound to who is ended.
    """
    void = Counter[str]() if bound is None else bound
    names = _who_leave(connection, whole, singly, grounds, now)
    if not names:
        return Voided(void, Counter())
    if keep:
        departed = [Departed(each, 0, 0) for each in names]
        return Voided(void, Counter(), departed, frozenset(), *promises.kept_of(connection, names, now))
    made, approved = promises.take_back(connection, names, now)
    stolen = grounds.reason is RevocationReason.KEY_COMPROMISE
    ended = claims.end_made_by(connection, names, now) if stolen else {}
    distrusted = manufacturers.end_made_by(connection, names, now) if stolen else {}
    departed = [
        Departed(each, made[each], approved[each], None, len(ended.get(each, ())), distrusted.get(each, ()))
        for each in names
    ]
    return Voided(void + made, approved, departed, frozenset(made), claims=ended, manufacturers=distrusted)


async def with_what_is_left(database: Database, departed: Sequence[Departed], now: datetime) -> Sequence[Departed]:
    """Return *departed* with what each of them leaves behind; as they are if that cannot be counted."""
    if not departed:
        return departed
    try:
        left = await database.survey(partial(promises.left_of, names=[each.name for each in departed], now=now))
    except (Refused, SQLAlchemyError) as error:  # Whatever it is: they are gone, and that is what is answered.
        log.info("what operators leave behind is not counted", operators=len(departed), error=str(error))
        return departed
    return [replace(each, left=left[each.name]) for each in departed]


def _who_leave(
    connection: Connection, whole: Sequence[Device], singly: Sequence[Device], grounds: Grounds, now: datetime
) -> list[str]:
    ended = {each.name for each in whole if each.role is Role.OPERATOR}
    touched = {each.id: each.name for each in singly if each.role is Role.OPERATOR}
    if touched and grounds.reason is not RevocationReason.KEY_COMPROMISE:
        stay = certificates_of_device.not_gone(connection, sorted(touched), now)
        touched = {identifier: name for identifier, name in touched.items() if identifier not in stay}
    return sorted(ended | {*touched.values()})
