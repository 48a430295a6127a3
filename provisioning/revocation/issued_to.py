"""What a device was certified, or a key, for whoever ends all of it: a few at once, on the event loop.

What ends more than a few does it in portions: `provisioning.revocation.portions`.
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
from provisioning.store.devices import Device, DeviceState

FEW: Final = 100
"""Certificates that are looked at and revoked on the event loop: some 0.2 ms each."""


class TooMany(Exception):
    """It is nothing for a short work, which has done nothing.

    The device, or the key, has had more certificates than that may look at, or what was decided of it before is not
    done.
    """


def first_of_device(connection: Connection, device: Device) -> list[StoredCertificate]:
    """Return every certificate of *device*, oldest first; raise `TooMany` if that is nothing for a short work."""
    found = certificates_of_device.first(connection, device.id, FEW + 1)
    if len(found) > FEW:
        raise TooMany
    # Of few certificates, too, where many devices were named together (`provisioning.revocation.batch`).
    if device.state is not DeviceState.ACTIVE and unfinished_ends.of_device(connection, device.id) is not None:
        raise TooMany
    return found


def first_of_key(connection: Connection, key: DeviceKey) -> list[StoredCertificate]:
    """Return every certificate for *key*, oldest first; raise `TooMany` if that is nothing for a short work."""
    (identifiers,) = certificates_of_key.first_ids(connection, [key], FEW + 1)
    # Of few certificates, too, where many keys were named together (`provisioning.revocation.keys_of_many`).
    if len(identifiers) > FEW or unfinished_key_ends.of_key(connection, key) is not None:
        raise TooMany
    return certificates.with_ids(connection, set(identifiers))
