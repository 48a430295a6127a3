"""Takes back what an operator who leaves has promised, as far as nobody has made use of it yet.

Whoever is dismissed may have put tokens aside, and approved requests of their own, to send them again when their
certificate has long been revoked; so may whoever has stolen their key. So the operator's unused tokens are void, and
approved requests wait for another decision. Whoever ends an operator may keep both, but not after a theft.

Rules
-----
1. An operator leaves who is ended as a whole, or has no good certificate once some of theirs were revoked. With a
   compromised key it does not matter what else they have.
2. Nothing is taken back by a suspension: it may be over tomorrow (`provisioning.enrolment.ways.token` asks who is).
3. What they leave behind otherwise, claims, lists and manufacturers, is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.errors import invalid
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.store import certificates_of_device, promises
from provisioning.store.devices import Device
from provisioning.store.promises import Left


@dataclass(frozen=True, slots=True)
class Departed:
    """An operator who has left, and what became of what that operator had promised."""

    name: str
    tokens_voided: int
    approvals_undone: int
    left: Left


@dataclass(frozen=True, slots=True)
class Voided:
    """What is worth nothing any more, because of the parties that are ended: how many of each, by their names."""

    tokens: Counter[str]
    """Bound to them, or made by them."""
    approvals: Counter[str]
    departed: Sequence[Departed] = ()

    def __bool__(self) -> bool:
        return bool(self.tokens.total() or self.approvals.total())

    def facts_of(self, name: str) -> dict[str, object]:
        """Return what the audit log says of the party called *name*."""
        facts: dict[str, object] = {"tokens_voided": self.tokens[name]}
        if self.approvals[name]:
            facts["approvals_undone"] = self.approvals[name]
        left = next((each.left for each in self.departed if each.name == name), None)
        if left is not None and left.tokens:
            facts["tokens_kept"] = left.tokens
        if left is not None and left.approvals:
            facts["approvals_kept"] = left.approvals
        return facts


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
    made, approved = (Counter[str](), Counter[str]()) if keep or not names else promises.take_back(
        connection, names, now
    )  # fmt: skip
    departed = [Departed(each, made[each], approved[each], promises.left_of(connection, each, now)) for each in names]
    return Voided(void + made, approved, departed)


def _who_leave(
    connection: Connection, whole: Sequence[Device], singly: Sequence[Device], grounds: Grounds, now: datetime
) -> list[str]:
    ended = {each.name for each in whole if each.role is Role.OPERATOR}
    touched = {each.id: each.name for each in singly if each.role is Role.OPERATOR}
    if touched and grounds.reason is not RevocationReason.KEY_COMPROMISE:
        good = certificates_of_device.good_until(connection, sorted(touched), now)
        touched = {identifier: name for identifier, name in touched.items() if identifier not in good}
    return sorted(ended | {*touched.values()})
