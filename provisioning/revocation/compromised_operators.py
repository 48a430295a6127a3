"""Takes back what an operator whose key is compromised has given away, as far as nobody has had it yet.

Whoever has the key may have made tokens with it, and approved requests of their own, to send them again when the
operator has long been revoked. So the operator's unused tokens are void, and approved requests wait for another
decision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.store import approvals, tokens
from provisioning.store.devices import Device


@dataclass(frozen=True, slots=True)
class Voided:
    """What is worth nothing any more, because of the parties that are ended: how many of each, by their names."""

    tokens: Counter[str]
    """Bound to them, or made by them."""
    approvals: Counter[str]

    def __bool__(self) -> bool:
        return bool(self.tokens.total() or self.approvals.total())

    def facts_of(self, name: str) -> dict[str, object]:
        """Return what the audit log says of the party called *name*."""
        undone = self.approvals[name]
        return {"tokens_voided": self.tokens[name], **({"approvals_undone": undone} if undone else {})}


def void_made_with(
    connection: Connection, ended: Sequence[Device], grounds: Grounds, now: datetime, bound: Counter[str] | None = None
) -> Voided:
    """Take back what operators among *ended* have given away, if their keys are compromised.

    *bound* are the tokens that are void already, because they were bound to who is ended.
    """
    void = Counter() if bound is None else bound
    names = [device.name for device in ended if device.role is Role.OPERATOR]
    if grounds.reason is not RevocationReason.KEY_COMPROMISE or not names:
        return Voided(void, Counter())
    return Voided(void + tokens.void_made_by(connection, names, now), approvals.undo_of(connection, names))
