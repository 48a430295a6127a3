"""The operators' REST API for requests that wait for a decision."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import Path as PathParameter
from fastapi import Query
from pydantic import BaseModel, ConfigDict

from provisioning.api.administration import Administration
from provisioning.api.operators import (
    DEFAULT_PAGE,
    Limit,
    Name,
    Operator,
    new_router,
    stretch_of,
)
from provisioning.api.route_roles import for_role
from provisioning.operator_role import OperatorRole
from provisioning.program.moments import rfc3339
from provisioning.store.approvals import ApprovalState, StoredApproval

router: Final = new_router()

Number = Annotated[int, PathParameter(ge=1, le=2**63 - 1)]
After = Annotated[int, Query(ge=0, le=2**63 - 1)]


class Decision(BaseModel):
    """An operator's decision on a request."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["approve", "deny"]
    despite_denial: bool = False


@router.get("/approvals")
async def list_approvals(
    administration: Administration,
    limit: Limit = DEFAULT_PAGE,
    after: After = 0,
    group: Name | None = None,
    state: ApprovalState | None = None,
) -> dict[str, Any]:
    """List requests, oldest first. ``next`` is the cursor of the page that follows.

    With a filter a page may be shorter than ``limit``, or empty, even if ``next`` is not null.
    """
    found, following = await administration.approvals.page(limit=limit, after=after, group=group, state=state)
    return stretch_of([_item(each) for each in found], following)


@router.post("/approvals/{number}/decision")
@for_role(OperatorRole.ENROLLER)
async def decide(number: Number, body: Decision, operator: Operator, administration: Administration) -> dict[str, Any]:
    """Approve or deny a request. The device gets its answer when it asks again.

    409 if it is to be approved, and was denied, unless ``despite_denial`` is set.
    """
    decided = await administration.approvals.decide(
        number,
        approve=body.decision == "approve",
        by=operator.device.name,
        despite_denial=body.despite_denial,
    )
    return _item(decided)


def _item(approval: StoredApproval) -> dict[str, Any]:
    return {
        "id": approval.id,
        "group": approval.request.group,
        "name": approval.request.name,
        "key_sha256": approval.request.spki_sha256.hex(),
        "evidence": approval.request.evidence,
        "asked_from": approval.request.asked_from,
        "state": approval.state,
        "requested_at": rfc3339(approval.requested_at),
        "decided_at": rfc3339(approval.decided_at),
        "decided_by": approval.decided_by,
    }
