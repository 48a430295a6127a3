"""The certificates of a device or a key, for code that ends all of them at once: only a few, on the event loop.

More than a few are ended in portions: `provisioning.revocation.portions`.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import Connection

from provisioning.store import (
    certificates,
    certificates_of_device,
    certificates_of_key,
    unfinished_ends,
    unfinished_key_ends,
)
from provisioning.store.certificates import StoredCertificate
from provisioning.store.certificates_of_key import DeviceKey
from provisioning.store.devices import Device

FEW: Final = 100
"""Most certificates that are checked and revoked on the event loop: some 0.2 ms each."""


class TooMany(Exception):
    """This cannot be done at once; nothing was done.

    The device, or the key, has more certificates than may be handled at once, or an earlier decision about it is not
    finished.
    """


def first_of_device(connection: Connection, device: Device) -> list[StoredCertificate]:
    """Return every certificate of *device*, oldest first; raise `TooMany` if they cannot be handled at once."""
    found = certificates_of_device.first(connection, device.id, FEW + 1)
    if len(found) > FEW:
        raise TooMany
    # Even of few certificates, if many devices were named together (`provisioning.revocation.batch`), and of an active
    # device, too: that it is resumed would undo the suspension that comes after it.
    if unfinished_ends.of_device(connection, device.id) is not None:
        raise TooMany
    return found


def first_of_key(connection: Connection, key: DeviceKey) -> list[StoredCertificate]:
    """Return every certificate for *key*, oldest first; raise `TooMany` if they cannot be handled at once."""
    (identifiers,) = certificates_of_key.first_ids(connection, [key], FEW + 1)
    # Even of few certificates, if many keys were named together (`provisioning.revocation.keys_of_many`).
    if len(identifiers) > FEW or unfinished_key_ends.of_key(connection, key) is not None:
        raise TooMany
    return certificates.with_ids(connection, set(identifiers))
