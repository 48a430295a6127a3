"""The operators' REST API about operators: who they are, what each may do, and who is asking."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from provisioning.api.operators import Operator, Services, new_router
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
