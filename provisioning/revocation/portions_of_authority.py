"""One portion of what a revoked CA has issued.

Writers come one after the other, on either store, so nothing is decided about these certificates meanwhile. What
another process, or an operator, has revoked before is passed over, and keeps its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.revocation.grounds import Grounds
from provisioning.revocation.recording import Changed, record
from provisioning.store import audit, authorities, certificates, unfinished_authority_ends
from provisioning.store.audit import Action
from provisioning.store.unfinished_authority_ends import EndedIssuer


def revoke_portion(
    connection: Connection, issuer: EndedIssuer, chosen: Sequence[int], now: datetime, *, last: bool
) -> tuple[Changed, bool]:
    """Revoke those *chosen*, by their ids and in their order; return them, and whether something is left.

    *last* says that these are the last ones.
    """
    end = unfinished_authority_ends.of_issuer(connection, issuer)
    if end is None:
        return [], False
    by_id = {each.id: each for each in certificates.with_ids(connection, set(chosen))}
    ordered = [by_id[identifier] for identifier in chosen]
    taken = [each for each in ordered if each.revocation is None or each.on_hold]
    if taken:
        grounds = Grounds(end.reason, end.invalidity_date)
        record(connection, taken, grounds, end.ended_at, end.ended_by)
        facts = {**grounds.facts, "serials": [each.serial for each in taken]}
        name = authorities.name_of(connection, issuer.key_id)
        audit.append(connection, now, end.ended_by, Action.REVOKED, name, facts)
    if last:
        unfinished_authority_ends.finish(connection, issuer)
    return taken, not last
