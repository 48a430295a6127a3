"""Who may do what at the operators' API: granted by an admin, effective with the next request.

Rules
-----
1. There is always an admin who can log in: the last one with a good certificate keeps the role.
2. A role is granted only to an operator, or to a name that is not used yet.
3. An operator who is made an auditor loses the tokens and approvals that nobody has used yet, as one who is dismissed.
   Only `OperatorRoleService.grant` does that: a token for an enrolled operator makes nobody an auditor.
4. A role for a name that nobody has enrolled under is a promise. It ends with the last token for that name, and with
   the admin who has made it (`provisioning.store.operators.usable_admins`): whoever gets the name later only reads.
   The role of a revoked operator is such a promise, too, until the operator comes back: a thief of an admin's key may
   have given it while nobody was there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused, invalid
from provisioning.operator_role import OperatorRole
from provisioning.pki.role import Role
from provisioning.store import audit, devices, operators, promises, tokens
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.names_to_come import never_came
from provisioning.store.operators import OperatorGrant, ShownOperator

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GrantedRole:
    """A role that was granted, and what was taken back of what its holder had promised."""

    grant: OperatorGrant
    tokens_voided: int
    approvals_undone: int


def change_operator_role(
    connection: Connection,
    name: str,
    role: OperatorRole,
    *,
    by: str,
    now: datetime,
    keep_tokens: bool = False,
    has_promised: bool = True,
) -> GrantedRole:
    """Grant *role* in the caller's transaction; raise `Refused` if no operator would be left who can grant roles.

    Of an operator who may let nobody in any more, the unused tokens and approvals are taken back, unless *keep_tokens*,
    or nothing was promised.
    """
    device = devices.find(connection, name)
    if device is not None and device.role is not Role.OPERATOR and not never_came(connection, device):
        raise Refused(Code.NAME_TAKEN, f"{name} is a {device.role}, not an operator: choose another name")
    if role is not OperatorRole.ADMIN and operators.usable_admins(connection, now, for_update=True) == {name}:
        raise operators.last_admin_stays(name)
    operators.grant(connection, name, role, by=by, now=now)
    made, approved = 0, 0
    facts: dict[str, object] = {"role": role.value}
    if has_promised and device is not None and not role.permits(OperatorRole.ENROLLER):
        counted = promises.kept_of if keep_tokens else promises.take_back
        told = ("tokens_kept", "approvals_kept") if keep_tokens else ("tokens_voided", "approvals_undone")
        numbers = [each[name] for each in counted(connection, [name], now)]
        made, approved = (0, 0) if keep_tokens else numbers
        facts |= {key: number for key, number in zip(told, numbers, strict=True) if number}
    audit.append(connection, now, by, Action.OPERATOR_ROLE_GRANTED, name, facts)
    return GrantedRole(OperatorGrant(name, role, now, by), made, approved)


def promise_roles(
    connection: Connection, names: Iterable[str], role: OperatorRole | None, *, by: str, now: datetime
) -> None:
    """Grant *role* to those for whom *by* makes tokens now; None: they keep theirs, but for a promise that has ended.

    It has if they have not enrolled, and had no open token any more. Raises `Refused` if it would make an auditor of
    who lets devices in: what that operator has promised would be taken back, which nobody has asked for.
    """
    for name in names:
        if role is not None:
            if not role.permits(OperatorRole.ENROLLER):
                _check_lets_nobody_in(connection, name)
            change_operator_role(connection, name, role, by=by, now=now, has_promised=False)
        elif not is_operator(connection, name) and not tokens.is_bound_to(connection, name, now):
            _end_promise(connection, name, by=by, now=now)


def end_promise_of_who_left(connection: Connection, name: str, *, by: str, now: datetime) -> None:
    """End the role of a new or returning operator if its giver is no admin any more; *by* has made the token."""
    promised = operators.role_of(connection, name) is not OperatorRole.AUDITOR
    if promised and operators.granter(connection, name) in operators.no_admins(connection, now):
        _end_promise(connection, name, by=by, now=now)


def _check_lets_nobody_in(connection: Connection, name: str) -> None:
    held = operators.role_of(connection, name)
    if held.permits(OperatorRole.ENROLLER) and is_operator(connection, name):
        raise invalid(
            f"operator_role: {name} is enrolled and has the role {held}; tokens that {name} has made end with it: "
            f"operator grant {name} --role auditor first"
        )


def is_operator(connection: Connection, name: str) -> bool:
    """Whether an operator has enrolled under *name*."""
    device = devices.find(connection, name)
    return device is not None and device.role is Role.OPERATOR


def is_here(connection: Connection, name: str) -> bool:
    """Whether an operator has enrolled under *name*, and was not revoked since."""
    device = devices.find(connection, name)
    return device is not None and device.role is Role.OPERATOR and not device.state.is_end


def check_is_operator(connection: Connection, name: str) -> None:
    """Raise `Refused` unless somebody is, or was, an operator under *name*, or is to be one."""
    if not (is_operator(connection, name) or operators.has_role(connection, name)):
        raise Refused(Code.DEVICE_UNKNOWN, f"no operator is called {name[:80]!r}: operator list has their names")


def _end_promise(connection: Connection, name: str, *, by: str, now: datetime) -> None:
    if operators.role_of(connection, name) is not OperatorRole.AUDITOR:
        change_operator_role(connection, name, OperatorRole.AUDITOR, by=by, now=now, has_promised=False)


class OperatorRoleService:
    """Grants roles, and lists who has which."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def grant(self, name: str, role: OperatorRole, *, by: str, keep_tokens: bool = False) -> GrantedRole:
        """Grant a role to an operator who has enrolled, or whose token names a role already; raise `Refused`."""
        now = self._clock()

        def transaction(connection: Connection) -> GrantedRole:
            if devices.find(connection, name) is None and not operators.has_role(connection, name):
                raise Refused(
                    Code.DEVICE_UNKNOWN,
                    f"no operator is called {name[:80]!r}: make a token with role operator, which names the role too",
                )
            return change_operator_role(connection, name, role, by=by, now=now, keep_tokens=keep_tokens)

        granted = await self._database.write(transaction)
        log.info("operator role granted", operator=name, role=role.value, tokens=granted.tokens_voided, by=by)
        return granted

    async def every(self) -> list[ShownOperator]:
        """Return all operators in order of name."""
        now = self._clock()
        return await self._database.read(lambda connection: operators.every(connection, now))
