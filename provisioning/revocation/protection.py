"""What an operator cannot revoke by mistake: the last admin's way in, and the service itself.

Rules
-----
1. After any revocation or suspension there is an admin with a good certificate. To replace the only one, make another
   first; what a compromised admin can do, a second admin ends.
2. The service's own name is not ended as a whole: its HTTPS server and its OCSP answers would be refused by everybody.
   A single certificate of it is revoked by its serial number, when it has a new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.identity import PROVISIONING, Role
from provisioning.store import operators
from provisioning.store.devices import Device


def check_the_service_is_not_ended(device: Device) -> None:
    """Raise `Refused` if *device*, all of whose certificates are to be revoked or suspended, is the service itself."""
    if device.name == PROVISIONING and device.role is Role.SERVICE:
        raise Refused(
            Code.PROTECTED, f"{device.name} is this service itself: revoke single certificates of it by serial number"
        )


def check_an_admin_is_left(connection: Connection, ended: Iterable[Device], now: datetime) -> None:
    """Raise `Refused`, which undoes the transaction, if what was *ended* in it has shut out the last admin."""
    names = [device.name for device in ended if device.role is Role.OPERATOR]
    if names and not operators.usable_admins(connection, now):
        raise Refused(
            Code.LAST_ADMIN, f"{names[0]} is the last admin with a good certificate: make another admin first"
        )
