"""Requests that wait for a person: listed, approved, denied.

Rules
-----
1. A decision may be changed until the certificate is issued; afterwards the certificate has to be revoked. Whoever
   approves what somebody has denied has to say so: he may not know of it, nor why.
2. An approval covers the key in the request: an operator who wants to be sure compares that key with the device's.
3. What no decision gets a certificate is not approved: a request that has waited since before its key became another
   device's. It waits until it is denied, or for a week; the device is told at its next request.
4. No operator approves what they were not shown: if the name has enrolled since the request was recorded, the request
   waits again under a new number, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import structlog
from sqlalchemy.engine import Connection

from provisioning.enrolment.key_owner import check_key_is_its_own
from provisioning.enrolment.ways.approval import enrolled_since, is_for_key_made_here, newest_of
from provisioning.errors import Code, Refused
from provisioning.program.moments import shown_time
from provisioning.store import approvals, audit
from provisioning.store.approvals import IN_FORCE, ApprovalState, StoredApproval
from provisioning.store.audit import Action
from provisioning.store.database import Database

log = structlog.get_logger(__name__)


class ApprovalService:
    """Lists and decides requests."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def decide(self, approval_id: int, *, approve: bool, by: str, despite_denial: bool = False) -> StoredApproval:
        """Approve or deny a request; approve it *despite_denial*, too.

        Raises `Refused` if there is none, it has its certificate already, it was denied, its key is another device's,
        or it has to be looked at again.
        """
        state = ApprovalState.APPROVED if approve else ApprovalState.DENIED

        def record(connection: Connection) -> StoredApproval | Refused:
            found = approvals.find_by_id(connection, approval_id)
            if found is None:
                raise Refused(Code.APPROVAL_UNKNOWN, f"no request has the number {approval_id}")
            if found.state is ApprovalState.USED:
                raise Refused(
                    Code.APPROVAL_DECIDED,
                    f"request {approval_id} was approved and {found.request.name} has its certificate: "
                    "revoke the certificate",
                )
            if approve and found.state is ApprovalState.DENIED and not despite_denial:
                raise Refused(
                    Code.APPROVAL_DECIDED,
                    f"request {approval_id}, for {found.request.name}, was denied by {found.decided_by} on "
                    f"{'-' if found.decided_at is None else shown_time(found.decided_at)}: ask why; to approve it all "
                    f"the same: fleet-provisioning approval approve {approval_id} --despite-denial",
                )
            if approve:
                _check_key(connection, found)
            now = self._clock()
            changed = enrolled_since(connection, found.request) if approve else None
            if changed is not None:
                number = approvals.put(connection, changed, now)
                return Refused(
                    Code.APPROVAL_OUTDATED,
                    f"{changed.name} has been enrolled since it asked: as request {number} it waits for another "
                    "decision, in which its key may take the place of that device's",
                )
            held = newest_of(connection, found.request.name)
            approvals.decide(connection, approval_id, state, by=by, now=now, held=None if held is None else held.id)
            facts: dict[str, object] = {
                "request": approval_id,
                "group": found.request.group,
                "key_sha256": found.request.spki_sha256.hex(),
                "evidence": found.request.evidence,
            }
            if found.state is ApprovalState.DENIED:
                facts["denied_by"] = found.decided_by
            action = Action.APPROVED if approve else Action.DENIED
            audit.append(connection, now, by, action, found.request.name, facts)
            return replace(found, state=state, decided_at=now, decided_by=by)

        decided = await self._database.write(record)
        if isinstance(decided, Refused):  # After the commit: the request that waits again is recorded.
            raise decided
        log.info("request decided", request=approval_id, name=decided.request.name, state=state.value, by=by)
        return decided

    async def page(
        self, *, limit: int, after: int, group: str | None, state: ApprovalState | None
    ) -> tuple[list[StoredApproval], int | None]:
        """Return requests, oldest first, after the number *after*, and where the next page begins, if there is one.

        An approval that is too old to count is shown as lapsed; it may be given again.
        """
        lapsed = self._clock() - IN_FORCE
        return await self._database.read(
            lambda connection: approvals.page(
                connection, limit=limit, after=after, group=group, state=state, lapsed=lapsed
            )
        )


def _check_key(connection: Connection, found: StoredApproval) -> None:
    """Raise `Refused` if the request's key is refused to its device for good."""
    request = found.request
    if is_for_key_made_here(request):
        return
    try:
        check_key_is_its_own(connection, request.name, request.spki_sha256)
    except Refused as refused:
        if refused.code is not Code.KEY_REUSED:  # Its certificate may be resumed.
            return
        raise Refused(
            Code.KEY_REUSED,
            f"request {found.id}, for {request.name}, gets no certificate whoever approves it, and the device is told "
            f"so when it asks again ({refused.detail}); deny it: fleet-provisioning approval deny {found.id}",
        ) from refused
