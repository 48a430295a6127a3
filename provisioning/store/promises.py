"""What an operator has promised others: taken back as far as nobody has made use of it, and counted where it stays.

A token and an approval are worth one certificate each, and are taken back when the operator leaves. Claims, lists and
manufacturers are what a production depends on: those who stay must say whether they are still right, so they are only
counted. Rules that the operator has changed, and devices that the operator has resumed, are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import func, select, update
from sqlalchemy.engine import Connection

from provisioning.operator_role import OperatorRole
from provisioning.pki.role import Role
from provisioning.store import approvals, listed_devices, rare_changes, tokens
from provisioning.store.audit import Action
from provisioning.store.devices import DeviceState, find_all
from provisioning.store.manufacturer_tables import idevids, manufacturers
from provisioning.store.names_to_come import has_come
from provisioning.store.operators import granter, role_of, usable_admins
from provisioning.store.tables import claims, devices, operators

NAMED: Final = 100
"""So many groups, manufacturers and devices are named."""
_TO_READ_ONLY: Final = f'"role": "{OperatorRole.AUDITOR.value}"'
"""So the audit log says that an operator lost, or never got, a role in which one may do more than read."""
_HERE: Final = (
    select(devices.c.id)
    .where(
        devices.c.name == operators.c.name,
        devices.c.role == Role.OPERATOR.value,
        devices.c.revoked_at.is_(None),
        devices.c.decommissioned_at.is_(None),
    )
    .correlate(operators)
)
"""An operator has enrolled under a name that has a role, and was not revoked since."""


@dataclass(frozen=True, slots=True)
class Left:
    """What one operator has made that still lets somebody in: how many of each."""

    tokens: int
    approvals: int
    claims: int
    listed: int
    """Keys on lists of expected devices, in force: an entry without a key proves nothing."""
    manufacturers: int
    operators: Sequence[str]
    """Those to whom this operator gave a role, and who may do more than read: their names, not how many."""
    devices: int
    """Those let in by a CA that this operator registered, or by a key that nobody else has listed; ended or not."""
    groups: Sequence[str]
    """Existing groups whose rules this operator has set, or has changed at some time."""
    manufacturers_changed: Sequence[str]
    """Those whose terms or lists this operator has changed."""
    unlisted: Sequence[str]
    """Groups on whose lists this operator has ended, removed or replaced entries, whoever had put them there."""
    operators_gone: Sequence[str]
    """Those to whom this operator ever gave a role, and who were ended since: what they made may let others in."""
    resumed: Sequence[str]
    """Devices that this operator has resumed, or a certificate of theirs, and that are not suspended now."""


def take_back(connection: Connection, names: Sequence[str], now: datetime) -> tuple[Counter[str], Counter[str]]:
    """Void the operators' unused tokens, let unused requests that they approved wait again; count both by name."""
    return tokens.void_made_by(connection, names, now), approvals.undo_of(connection, names)


def end_roles_given_by(
    connection: Connection, makers: Mapping[str, datetime | None], *, by: str, now: datetime
) -> dict[str, list[str]]:
    """Make auditors of the names to which *makers* gave a role, and under which no operator is; return them by maker.

    A maker's moment: a role that was given later, stays. *by* is who has decided it.
    """
    ended: dict[str, list[str]] = {}
    if makers:  # Locked first, as by whoever changes a role: the store's lock order.
        usable_admins(connection, now, for_update=True)
    for name, until in sorted(makers.items()):
        given = operators.c.granted_by == name, operators.c.role != OperatorRole.AUDITOR.value
        statement = update(operators).where(*given, operators.c.name != name, ~_HERE.exists())
        if until is not None:
            statement = statement.where(operators.c.granted_at <= until)
        reads = {"role": OperatorRole.AUDITOR.value, "granted_at": now, "granted_by": by}
        found = connection.execute(statement.values(reads).returning(operators.c.name)).scalars()
        if names := sorted(found):
            ended[name] = names
    return ended


def kept_of(connection: Connection, names: Sequence[str], now: datetime) -> tuple[Counter[str], Counter[str]]:
    """Count the operators' tokens, and their approvals, that could still be used *now*; both by name."""
    return tokens.count_left_by(connection, names, now), approvals.count_in_force(connection, names, now)


def left_of(connection: Connection, names: Sequence[str], now: datetime) -> dict[str, Left]:
    """Count what each operator called *names* has made that still lets somebody in *now*: it reads whole tables."""
    going_on = claims.c.created_by, claims.c.ended_at.is_(None), claims.c.expires_at > now
    trusted = manufacturers.c.created_by, manufacturers.c.ended_at.is_(None)
    raised = select(operators.c.granted_by, operators.c.name).where(
        operators.c.granted_by.in_(names),
        operators.c.name != operators.c.granted_by,
        operators.c.role != OperatorRole.AUDITOR.value,
        _HERE.exists(),  # One who has not enrolled yet will only read: the promise ends with its maker.
    )
    came_in = idevids.join(devices, idevids.c.device_id == devices.c.id).join(manufacturers)
    let_in = (
        select(manufacturers.c.created_by, func.count())
        .select_from(came_in)
        .where(
            manufacturers.c.created_by.in_(names),
            devices.c.revoked_at.is_(None),
            devices.c.decommissioned_at.is_(None),
        )
        .group_by(manufacturers.c.created_by)
    )
    counted = [
        Counter({
            row[0]: row[1]
            for row in connection.execute(
                select(maker, func.count()).where(maker.in_(names), *conditions).group_by(maker)
            )
        })
        for maker, *conditions in (going_on, trusted)
    ]  # fmt: skip
    every = [*kept_of(connection, names, now), *counted, listed_devices.count_keys_of(connection, names)]
    made: dict[str, list[str]] = {name: [] for name in names}
    for maker, name in connection.execute(raised.order_by(operators.c.name)):
        made[maker].append(name)
    inside = Counter({row[0]: row[1] for row in connection.execute(let_in)})
    inside += listed_devices.count_let_in(connection, names)
    found: dict[str, Left] = {}
    for name in names:
        open_tokens, approved, ongoing, registered, keys = (each[name] for each in every)
        here, gone = _ever_granted_by(connection, name)
        found[name] = Left(
            open_tokens,
            approved,
            ongoing,
            keys,
            registered,
            sorted({*made[name], *here}),
            inside[name],
            rare_changes.subjects(connection, name, rare_changes.RULES, NAMED),
            rare_changes.subjects(connection, name, rare_changes.MANUFACTURERS, NAMED),
            rare_changes.subjects(connection, name, rare_changes.LISTS, NAMED),
            gone,
            _resumed_by(connection, name),
        )
    return found


def _ever_granted_by(connection: Connection, name: str) -> tuple[list[str], list[str]]:
    """Return to whom the operator called *name* ever gave a role: who may do more than read, and who was ended since.

    The audit log knows it also if they have granted each other, or themselves, their roles anew. If somebody else has
    done so, that person vouches for them. One who was ended before coming has made nothing.
    """
    portions = rare_changes.every_subject(connection, name, Action.OPERATOR_ROLE_GRANTED, but=_TO_READ_ONLY)
    others = {
        each.name: each
        for portion in portions
        for each in find_all(connection, portion)
        if each.role is Role.OPERATOR and each.name != name
    }
    here = [
        each.name
        for each in others.values()
        if not each.state.is_end
        and role_of(connection, each.name) is not OperatorRole.AUDITOR
        and granter(connection, each.name) in {name, *others}
    ]
    gone = [each.name for each in others.values() if each.state.is_end and has_come(connection, each)]
    return here, gone[:NAMED]


def _resumed_by(connection: Connection, name: str) -> list[str]:
    found = list[str]()
    for portion in rare_changes.every_subject(connection, name, Action.RESUMED):
        active = {each.name for each in find_all(connection, portion) if each.state is DeviceState.ACTIVE}
        found += [each for each in portion if each in active]
        if len(found) >= NAMED:
            break
    return found[:NAMED]
