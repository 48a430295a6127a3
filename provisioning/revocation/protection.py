"""What an operator cannot revoke by mistake: the last admin's way in, and the service itself.

Rules
-----
1. After a revocation or suspension of an admin there is one with a good certificate. To replace the only one, make
   another first; what a compromised admin can do, a second admin ends.
2. The service's own name is not ended as a whole: its HTTPS server and its OCSP answers would be refused by everybody.
   A single certificate of it is revoked by its serial number, when it has a new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
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
    last = last_admin(connection, ended, now)
    if last is not None:
        raise last_admin_stays(last)


def last_admin(connection: Connection, ended: Iterable[Device], now: datetime) -> Device | None:
    """Return the admin among those *ended* in the transaction without whom there is none; None if all is well.

    An operator of another role is not he: he can be ended, also while no admin's certificate is good.
    """
    those = [device for device in ended if device.role is Role.OPERATOR]
    if not those or operators.usable_admins(connection, now):
        return None
    return next((each for each in those if operators.role_of(connection, each.name) is OperatorRole.ADMIN), None)


def last_admin_stays(admin: Device) -> Refused:
    """Return what the operator is told, which undoes the transaction."""
    return Refused(Code.LAST_ADMIN, f"{admin.name} is the last admin with a good certificate: make another admin first")
