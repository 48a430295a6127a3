"""Ends names under which nobody has enrolled yet: so that nobody does, by what was promised before.

A token may have been copied, or a device stolen, on the way to its place. Whoever revokes the name then has not to know
by what it would be admitted: tokens bound to it are void, as an enrolled device's are, and lists, approvals, claims and
manufacturers' certificates do not bring back who was revoked. Only a token that is made afterwards does.

Rules
-----
1. A name that nobody has promised is unknown: it is mistyped, mostly.
2. A role that was promised to an operator who has not come ends with the name: by the next token he only reads. It may
   have been promised by an older token than the one that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.operator_role import OperatorRole
from provisioning.store import audit, devices, names_to_come, operators
from provisioning.store.audit import Action
from provisioning.store.devices import Device
from provisioning.store.side_by_side import go_alone


def record_promised(connection: Connection, names: Sequence[str], *, by: str, now: datetime) -> list[Device]:
    """Record those of *names*, which nobody has, that are promised to somebody; their tokens were voided *now*."""
    places = names_to_come.promised(connection, names, now)
    if not places:
        return []
    go_alone(connection)  # Its tokens are void already: who went together with it is done one by one, which is as good.
    _end_roles(connection, list(places), by=by, now=now)
    return [devices.add_name(connection, name, places[name].role, places[name].group, now) for name in sorted(places)]


def end_roles_promised_again(connection: Connection, ended: Sequence[Device], *, by: str, now: datetime) -> None:
    """End roles promised to those of *ended* who had been revoked before they came, and have not come since."""
    if names := [each.name for each in ended if names_to_come.never_came(connection, each)]:
        go_alone(connection)  # As above.
        _end_roles(connection, names, by=by, now=now)


def _end_roles(connection: Connection, names: Sequence[str], *, by: str, now: datetime) -> None:
    given = sorted(operators.with_more_than_reading(connection, names))
    if not given:
        return
    operators.usable_admins(connection, now, for_update=True)  # Locked first, as by whoever changes a role.
    for name in given:
        operators.grant(connection, name, OperatorRole.AUDITOR, by=by, now=now)
        audit.append(connection, now, by, Action.OPERATOR_ROLE_GRANTED, name, {"role": OperatorRole.AUDITOR.value})
