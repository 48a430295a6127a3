"""What a device was certified, for whoever ends all of it: a few at once, on the event loop.

What ends more than a few does it in portions: `provisioning.revocation.portions`.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import Connection

from provisioning.store import certificates_of_device
from provisioning.store.certificates import StoredCertificate
from provisioning.store.devices import Device

FEW: Final = 100
"""Certificates that are looked at and revoked on the event loop: some 0.2 ms each."""


class TooMany(Exception):
    """The device has had more certificates than a short work may look at; nothing was done."""


def first_of_device(connection: Connection, device: Device) -> list[StoredCertificate]:
    """Return every certificate of *device*, oldest first; raise `TooMany` if that is nothing for a short work."""
    found = certificates_of_device.first(connection, device.id, FEW + 1)
    if len(found) > FEW:
        raise TooMany
    return found
