"""What a device was certified, for whoever ends all of it: a few on the event loop, many in a thread.

Whoever has copied a claim certificate can have a name certified thousands of times. Revoking ten thousand takes
seconds, in one transaction as ever: what is asked for meanwhile that does not write (OCSP, lists, feeds) must not wait
for it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import Connection

from provisioning.store import certificates_of_device
from provisioning.store.certificates import StoredCertificate
from provisioning.store.devices import Device
from provisioning.store.server_parameters import rest_longer

FEW: Final = 100
"""Certificates that are looked at and revoked on the event loop: some 0.2 ms each."""


class TooMany(Exception):
    """The device has had more certificates than a short work may look at; nothing was done."""


def issued_to(connection: Connection, device: Device, *, short: bool) -> list[StoredCertificate]:
    """Return every certificate of *device*, oldest first; raise `TooMany` if that is nothing for a *short* work."""
    if not short:
        rest_longer(connection)
        return certificates_of_device.every(connection, device.id)
    found = certificates_of_device.first(connection, device.id, FEW + 1)
    if len(found) > FEW:
        raise TooMany
    return found
