"""The owner of each key: the first device that is certified for a key is the only one for ever.

A claim's key has none, as a whole batch of devices holds it.

Rules
-----
1. Claiming and issuing are one transaction: an issuance that fails claims nothing.
2. The database decides between two simultaneous claims: the key is the table's primary key, and the second waits for
   the first one's commit.
"""

from __future__ import annotations

import functools
from typing import Final

from sqlalchemy import bindparam, insert, select
from sqlalchemy.engine import Connection

from provisioning.store.dialect_insert import insert_into
from provisioning.store.prepared import Prepared
from provisioning.store.tables import device_keys, devices

_HOLDER: Final = Prepared(
    select(device_keys.c.device_id).where(device_keys.c.spki_sha256 == bindparam("wanted")), at_once=True
)


@functools.cache
def _claim(dialect: str) -> Prepared:
    adding = insert_into(device_keys, dialect)
    return Prepared(adding.on_conflict_do_nothing(index_elements=[device_keys.c.spki_sha256]), told_by="spki_sha256")


def claim(connection: Connection, spki_sha256: bytes, device_id: int) -> bool:
    """Make the key the device's unless it is claimed already, by this device or another; return whether it was free.

    A free key has no certificate yet: recording a certificate claims its key.
    """
    row = {"spki_sha256": spki_sha256, "device_id": device_id}
    return _claim(connection.dialect.name).run(connection, row) == 1


def keep_from_all(connection: Connection, spki_sha256: bytes) -> None:
    """Let no device ever be certified for the key, of which no other has been."""
    connection.execute(insert(device_keys), {"spki_sha256": spki_sha256, "device_id": None})


def is_free(connection: Connection, spki_sha256: bytes) -> bool:
    """Whether no device has the key yet, and it is not kept from all."""
    return _HOLDER.first(connection, {"wanted": spki_sha256}) is None


def holder(connection: Connection, spki_sha256: bytes) -> int | None:
    """Return whose the key is, which is not free; None: it is kept from all."""
    found: int | None
    (found,) = _HOLDER.one(connection, {"wanted": spki_sha256})
    return found


def name_of_holder(connection: Connection, spki_sha256: bytes) -> str | None:
    """Return the name of whose the key is, if it is anybody's."""
    held = select(devices.c.name).join_from(device_keys, devices).where(device_keys.c.spki_sha256 == spki_sha256)
    return connection.execute(held).scalar_one_or_none()
