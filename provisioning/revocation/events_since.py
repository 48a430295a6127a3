"""The feed's events about devices after a sequence number: which of their certificates were revoked, or released."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import partial
from typing import Final

from provisioning.revocation.holds import Released
from provisioning.revocation.recording import Revoked
from provisioning.store import revocations
from provisioning.store.database import Database
from provisioning.store.revocations import EventKind, RevocationRecord

_PAGE: Final = 1000


async def released_since(
    database: Database, names: Collection[str], before: int, most: int | None = None
) -> list[Released]:
    """Return what was released of the devices called *names*, up to *most* of each, in the order of the feed."""
    found = await _since(database, names, before, EventKind.RELEASED, most)
    return [Released(each.serial, each.device, each.occurred_at, each.sequence) for each in found]


async def revoked_since(
    database: Database, names: Collection[str], before: int, most: int | None = None
) -> list[Revoked]:
    """Return what was revoked or put on hold of the devices called *names*, up to *most* of each, in feed order."""
    found = await _since(database, names, before, EventKind.REVOKED, most)
    return [
        Revoked(
            each.serial,
            each.device,
            each.reason,
            each.occurred_at.replace(microsecond=0),
            each.sequence,
            each.invalidity_date,
        )
        for each in found
    ]


async def _since(
    database: Database, names: Collection[str], before: int, kind: EventKind, most: int | None
) -> list[RevocationRecord]:
    found: list[RevocationRecord] = []
    of_device: Counter[str] = Counter()
    while records := await database.read(partial(revocations.after, sequence=before, limit=_PAGE)):
        before = records[-1].sequence
        for each in records:
            if each.kind is kind and each.device in names and (most is None or of_device[each.device] < most):
                of_device[each.device] += 1
                found.append(each)
    return found
