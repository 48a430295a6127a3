"""The compromised keys of a batch of certificates: which are processed at once, and which later.

The work of a batch's one transaction is bounded (`provisioning.revocation.batch`), and one key may have thousands of
certificates. Keys with few are finished in it; the others are ended in it, and their certificates follow in portions
(`provisioning.revocation.end_of_one`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import issued_to
from provisioning.revocation.batch import TOGETHER, Batch
from provisioning.revocation.events_since import revoked_since
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.portions import Portions
from provisioning.revocation.recording import Revoked
from provisioning.store import certificates, certificates_of_key, unfinished_key_ends
from provisioning.store.certificates import StoredCertificate
from provisioning.store.certificates_of_key import DeviceKey, key_of
from provisioning.store.database import Database


@dataclass(frozen=True, slots=True)
class KeysOfMany:
    """The keys of certificates named singly, except those whose devices are ended as a whole."""

    at_once: Sequence[StoredCertificate] = ()
    """All certificates of the keys that have few, including those that were named."""
    later: Sequence[DeviceKey] = ()
    """Keys whose certificates follow in portions."""
    begun: Collection[DeviceKey] = ()
    """Those of *later* that were ended before."""

    def begin(self, connection: Connection, grounds: Grounds, now: datetime, by: str) -> None:
        """End the keys whose certificates follow, unless they are ended already."""
        fresh = [each for each in self.later if each not in self.begun]
        since = grounds.invalidity_date
        unfinished_key_ends.begin(connection, fresh, invalidity_date=since, ended_at=now, ended_by=by)

    def follow(self, device_id: int) -> bool:
        """Whether certificates of this device follow in portions."""
        return any(each.device_id == device_id for each in self.later)


def keys_of(connection: Connection, batch: Batch, grounds: Grounds) -> KeysOfMany:
    """Return the keys that a *batch* ends by naming certificates for them."""
    if grounds.reason is not RevocationReason.KEY_COMPROMISE:
        return KeysOfMany()
    whole = {each.id for each in batch.whole}
    keys = list(dict.fromkeys(key_of(each) for each in batch.singly if each.device.id not in whole))
    begun = unfinished_key_ends.of_each(connection, keys)
    room = TOGETHER - len(batch.at_once)
    chosen: set[int] = set()
    later = []
    for key, found in zip(keys, certificates_of_key.first_ids(connection, keys, issued_to.FEW + 1), strict=True):
        if key in begun or len(found) > min(room, issued_to.FEW):
            later.append(key)
        else:
            room -= len(found)
            chosen.update(found)
    return KeysOfMany(certificates.with_ids(connection, chosen), later, begun)


async def finish_keys(
    database: Database, portions: Portions, batch: Batch, keys: KeysOfMany, before: int
) -> Sequence[Revoked]:
    """Revoke the certificates that follow in portions; return their facts, at most a hundred of each device.

    Those are the events after *before* in the feed.
    """
    if not keys.later:
        return ()
    await portions.finish_all(keys.later)
    names = {each.device.name for each in batch.singly if keys.follow(each.device.id)}
    return await revoked_since(database, names, before, issued_to.FEW)
