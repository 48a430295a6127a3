"""The operators' REST API about operators: who they are, what each may do, and who is asking."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from provisioning.api.administration import Administration
from provisioning.api.moment import utc_of
from provisioning.api.operators import Operator, Services, new_router
from provisioning.api.revocations import left_item
from provisioning.operator_role import OperatorRole
from provisioning.program.moments import rfc3339
from provisioning.store.operators import OperatorGrant, ShownOperator

router: Final = new_router()


class RoleChange(BaseModel):
    """What an operator may do from now on."""

    model_config = ConfigDict(extra="forbid")

    role: OperatorRole
    keep_tokens: bool = False


@router.get("/operators")
async def list_operators(services: Services) -> dict[str, Any]:
    """List operators in order of name: role, state, and until when each has a valid certificate."""
    return {"items": [_shown(each) for each in await services.operator_roles.every()]}


@router.get("/operators/me")
async def show_me(operator: Operator) -> dict[str, Any]:
    """Show the calling operator's name, role and certificate."""
    return {
        "name": operator.device.name,
        "role": operator.role,
        "serial": operator.certificate.serial,
        "not_after": rfc3339(operator.certificate.not_after),
    }


@router.get("/operators/{name}/left")
async def show_left(name: str, administration: Administration, since: datetime | None = None) -> dict[str, Any]:
    """Show what an operator leaves behind, or would: what still lets others in, and rules that were changed.

    Of groups, manufacturers and devices a hundred are named, and of each group its last ten changes by that operator.
    ``list_cuts`` is what that operator has taken off lists, the last hundred times of each group: of a key that was
    replaced, its SHA-256 follows the name; twenty of each time are named.
    """
    found = await administration.left_behind.of(name, utc_of(since))
    changes = [
        {"entry": each.number, "at": rfc3339(each.at), "group": each.group, "before": each.before, "after": each.after}
        for each in found.changes
    ]
    cuts = [
        {"entry": each.number, "at": rfc3339(each.at), "group": each.group, "count": each.count, "names": [*each.names]}
        for each in found.cuts
    ]
    return {"name": name, **left_item(found.left), "changes": changes, "list_cuts": cuts}


@router.put("/operators/{name}")
async def grant_role(name: str, body: RoleChange, operator: Operator, services: Services) -> dict[str, Any]:
    """Set an operator's role. 409 if that would leave no admin with a valid certificate.

    Unused tokens that an auditor has made before are void, and requests that he approved wait again, unless
    ``keep_tokens`` is set.
    """
    granted = await services.operator_roles.grant(
        name, body.role, by=operator.device.name, keep_tokens=body.keep_tokens
    )
    taken_back = {"tokens_voided": granted.tokens_voided, "approvals_undone": granted.approvals_undone}
    return _item(granted.grant) | taken_back


def _item(grant: OperatorGrant) -> dict[str, Any]:
    return {
        "name": grant.name,
        "role": grant.role,
        "granted_at": rfc3339(grant.granted_at),
        "granted_by": grant.granted_by,
    }


def _shown(operator: ShownOperator) -> dict[str, Any]:
    return {
        **_item(operator.grant),
        "state": operator.state,
        "good_until": rfc3339(operator.good_until),
    }
