"""Host names that a profile honours or builds: each is one device's, as a host name says who a server is.

What patterns make of devices' names differs (`provisioning.ca.host_patterns`), but for those of one configuration only:
another device may have what was honoured, or built, by an earlier one. A name that a token grants to a server is no
device's either, nor is the service's own: with serverAuth it could pose as them. Where a profile has
`shared_host_names`, what it honours several have on purpose, and so they have what a token grants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog
from sqlalchemy.engine import Connection

from provisioning.ca.name_policy import NameRefused, SubjectNames
from provisioning.enrolment.attempt import Attempt
from provisioning.errors import Code
from provisioning.store import host_names
from provisioning.store.devices import Device

log = structlog.get_logger(__name__)


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
            f"the host name {taken[0][:80]!r} is another's: ask for one of your own, or have an operator revoke or "
            "decommission who has it",
        )
    if taken:
        log.warning("host names left out: they are another's", name=device.name, host_names=taken)
    return replace(names, dns_names=tuple(name for name in names.dns_names if name not in taken)) if taken else names


def keep_granted(connection: Connection, granted: Sequence[str], device: Device, attempt: Attempt) -> None:
    """Keep the names that a server is *granted* from devices; raise `NameRefused` if one has such a name.

    Other servers may share it. A server that renews keeps its names, whoever has come by one meanwhile.
    """
    for name in granted:
        other = host_names.keep_from_devices(connection, name, device.id, attempt.now)
        if other is None:
            continue
        if not attempt.renewal:
            raise NameRefused(
                Code.CSR_NAME,
                f"the host name {name[:80]!r}, which the token grants, is that of device {other.name}, which could "
                "pose as the server: have an operator decommission it, or grant another name",
            )
        log.warning("a device has this server's host name", name=device.name, host_name=name, device=other.name)
