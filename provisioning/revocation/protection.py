"""What an operator cannot revoke by mistake: the last admin's access, and the service itself.

Rules
-----
1. After a revocation or suspension of an admin, another has a good certificate. To replace the only admin, make
   another first; a compromised admin is ended by a second one.
2. The service's own name is not ended as a whole: everybody would refuse its HTTPS server and its OCSP responses.
   A single certificate of it is revoked by serial number, once it has a new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.identity import PROVISIONING
from provisioning.pki.role import Role
from provisioning.store import operators
from provisioning.store.devices import Device


def check_the_service_is_not_ended(device: Device) -> None:
    """Raise `Refused` if *device*, all of whose certificates are to be revoked or suspended, is the service itself."""
    if device.name == PROVISIONING and device.role is Role.SERVICE:
        raise Refused(
            Code.PROTECTED, f"{device.name} is this service itself: revoke single certificates of it by serial number"
        )


def check_an_admin_is_left(connection: Connection, ended: Iterable[Device], now: datetime) -> None:
    """Raise `Refused`, which undoes the transaction, if the devices *ended* in it include the last admin."""
    last = last_admin(connection, ended, now)
    if last is not None:
        raise operators.last_admin_stays(last.name)


def last_admin(connection: Connection, ended: Iterable[Device], now: datetime) -> Device | None:
    """Return the last admin, if among those *ended* in the transaction; None if another admin is left.

    Operators with other roles do not count: they can be ended even while no admin's certificate is good.
    """
    those = [device for device in ended if device.role is Role.OPERATOR]
    if not those or operators.usable_admins(connection, now, for_update=True):
        return None
    return next((each for each in those if operators.role_of(connection, each.name) is OperatorRole.ADMIN), None)
