"""One portion of what is revoked for a key that was reported as compromised.

Whose key it is, is locked in each, so nothing is decided about its certificates meanwhile. What another process, or
whoever has ended the device, has done before, is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.recording import Changed, record
from provisioning.revocation.taken import can_be_taken, facts_before
from provisioning.store import audit, certificates, devices, unfinished_key_ends
from provisioning.store.audit import Action
from provisioning.store.certificates_of_key import DeviceKey


def revoke_portion(
    connection: Connection, key: DeviceKey, chosen: Sequence[int], now: datetime, *, last: bool
) -> tuple[Changed, bool]:
    """Revoke those *chosen*, by their ids and in their order; return them, and whether something is left.

    *last* says that these are the last ones.
    """
    end = unfinished_key_ends.of_key(connection, key)
    if end is None:
        return [], False
    devices.find(connection, end.device, for_update=True)
    grounds = Grounds(RevocationReason.KEY_COMPROMISE, end.invalidity_date)
    by_id = {each.id: each for each in certificates.with_ids(connection, set(chosen))}
    taken = [each for each in (by_id[identifier] for identifier in chosen) if can_be_taken(each, grounds)]
    if taken:
        record(connection, taken, grounds, now, end.ended_by)
        facts = {**grounds.facts, "serials": [each.serial for each in taken], **facts_before(taken)}
        audit.append(connection, now, end.ended_by, Action.REVOKED, end.device, facts)
    if last:
        unfinished_key_ends.finish(connection, key)
    return taken, not last
