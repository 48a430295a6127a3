"""The owner of each key: the first device that is certified for a key is the only one for ever.

Rules
-----
1. Claiming and issuing are one transaction: an issuance that fails claims nothing.
2. The database decides between two simultaneous claims: the key is the table's primary key, and the second waits for
   the first one's commit.
"""

from __future__ import annotations

import functools
from typing import Final

from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from provisioning.store.either import insert_into
from provisioning.store.prepared import Prepared
from provisioning.store.tables import device_keys

_HOLDER: Final = Prepared(
    select(device_keys.c.device_id).where(device_keys.c.spki_sha256 == bindparam("wanted")), at_once=True
)


@functools.cache
def _claim(dialect: str) -> Prepared:
    insert = insert_into(device_keys, dialect)
    return Prepared(insert.on_conflict_do_nothing(index_elements=[device_keys.c.spki_sha256]), told_by="spki_sha256")


def claim(connection: Connection, spki_sha256: bytes, device_id: int) -> bool:
    """Make the key the device's unless it is claimed already, by this device or another; return whether it was free.

    A free key has no certificate yet: recording a certificate claims its key.
    """
    row = {"spki_sha256": spki_sha256, "device_id": device_id}
    return _claim(connection.dialect.name).run(connection, row) == 1


def holder(connection: Connection, spki_sha256: bytes) -> int:
    """Return whose the key is, which somebody has claimed."""
    found: int
    (found,) = _HOLDER.one(connection, {"wanted": spki_sha256})
    return found
