"""Whether a name is still that of a trial, and the trial's key that of the device.

A trial that ends without an activation gives its name back; its certificate, and the record of its key, stay. Whoever
gets the name then has the same row in the store. So a trial's key is the device's only if it has activated the device,
or if no other key has got the name since.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from provisioning.store import certificates_of_device, claims


def is_still_its_own(connection: Connection, device_id: int, trial_id: int, spki_sha256: bytes) -> bool:
    """Whether the device's name is still that of the certificate *trial_id*, issued on trial for the key."""
    newest = certificates_of_device.newest(connection, device_id)
    # After the activation, the newer ones are its successors.
    return newest is None or newest.spki_sha256 == spki_sha256 or claims.has_activated(connection, trial_id)
