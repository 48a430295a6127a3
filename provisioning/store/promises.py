"""What an operator has promised others: taken back as far as nobody has made use of it, and counted where it stays.

A token and an approval are worth one certificate each, and are taken back when the operator leaves. Claims, lists and
manufacturers are what a production goes by: whether they are still right is for those who stay to say, so they are
only counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.engine import Connection

from provisioning.operator_role import OperatorRole
from provisioning.store import approvals, tokens
from provisioning.store.approvals import ApprovalState
from provisioning.store.manufacturer_tables import manufacturers
from provisioning.store.tables import approvals as approval_rows
from provisioning.store.tables import claims, listed_devices, operators


@dataclass(frozen=True, slots=True)
class Left:
    """What one operator has made that still lets somebody in: how many of each."""

    tokens: int
    approvals: int
    claims: int
    listed: int
    """Keys on lists of expected devices: an entry without a key proves nothing."""
    manufacturers: int
    operators: int
    """Who was given a role by that one, and may do more than read."""


def take_back(connection: Connection, names: Sequence[str], now: datetime) -> tuple[Counter[str], Counter[str]]:
    """Void the operators' unused tokens, let unused requests that they approved wait again; count both by name."""
    return tokens.void_made_by(connection, names, now), approvals.undo_of(connection, names)


def left_of(connection: Connection, name: str, now: datetime) -> Left:
    """Count what the operator called *name* has made that still lets somebody in *now*."""
    unused = approval_rows.c.state == ApprovalState.APPROVED.value, approval_rows.c.decided_by == name
    going_on = claims.c.created_by == name, claims.c.ended_at.is_(None), claims.c.expires_at > now
    pinned = listed_devices.c.added_by == name, listed_devices.c.spki_sha256.is_not(None)
    trusted = manufacturers.c.created_by == name, manufacturers.c.ended_at.is_(None)
    raised = operators.c.granted_by == name, operators.c.name != name, operators.c.role != OperatorRole.AUDITOR.value
    counted = [
        connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one()
        for table, conditions in (
            (approval_rows, unused), (claims, going_on), (listed_devices, pinned), (manufacturers, trusted),
            (operators, raised),
        )
    ]  # fmt: skip
    return Left(tokens.count_open(connection, now, made_by=name), *counted)
