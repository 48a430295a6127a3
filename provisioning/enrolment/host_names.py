"""Host names that a profile honours: each is one device's, as a host name says who a server is.

What a profile makes of the device's own name is nobody else's anyway (`provisioning.ca.host_patterns`), and where a
profile has `shared_host_names`, or a token grants the name, several have it on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.engine import Connection

from provisioning.ca.name_policy import NameRefused, SubjectNames
from provisioning.enrolment.attempt import Attempt
from provisioning.errors import Code
from provisioning.store import host_names
from provisioning.store.devices import Device


def own_names(
    connection: Connection, names: SubjectNames, own: Sequence[str], device: Device, attempt: Attempt
) -> SubjectNames:
    """Make those of *names* that are *own* the device's, and return what it may have; raise `NameRefused`.

    A successor goes without a name that is another's, rather than be refused: a device must be able to renew.
    """
    taken = [name for name in own if not host_names.claim(connection, name, device.id, attempt.now)]
    if taken and not attempt.renewal:
        raise NameRefused(
            Code.CSR_NAME,
            f"the host name {taken[0][:80]!r} is another device's: ask for one of your own, or have an operator revoke "
            "or decommission that device",
        )
    return replace(names, dns_names=tuple(name for name in names.dns_names if name not in taken)) if taken else names
