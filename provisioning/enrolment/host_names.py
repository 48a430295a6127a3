"""Host names that a profile honours or builds: each belongs to one device, as a host name says who a server is.

Within one configuration, patterns give different devices different names (`provisioning.ca.host_patterns`); but another
device may have a name that was honoured, or built, under an earlier configuration. No device may have a name that a
token grants to a server, or the service's own: with serverAuth it could pose as them. Where a profile has
`shared_host_names`, several devices share the names it honours on purpose, and those that a token grants.
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
    """Reserve for the device those of *names* that are *own*, and return the names it may have; raise `NameRefused`.

    A successor loses a name that is another device's, rather than be refused: a device must be able to renew.
    """
    taken = [name for name in own if not host_names.claim(connection, name, device.id, attempt.now)]
    if taken and not attempt.renewal:
        raise NameRefused(
            Code.CSR_NAME,
            f"the host name {taken[0][:80]!r} belongs to another device: ask for a different one, or "
            "have an operator revoke or decommission that device",
        )
    if taken:
        log.warning(
            "host names left out: they belong to another device",
            code="HOST_NAMES_LEFT_OUT",
            name=device.name,
            host_names=taken,
        )
    return replace(names, dns_names=tuple(name for name in names.dns_names if name not in taken)) if taken else names


def keep_granted(connection: Connection, granted: Sequence[str], device: Device, attempt: Attempt) -> None:
    """Keep the names that a server is *granted* from devices; raise `NameRefused` if a device has one of them.

    Other servers may share it. A server that renews keeps its names, even if a device has got one meanwhile.
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
        log.warning(
            "a device has this server's host name",
            code="HOST_NAME_TAKEN",
            name=device.name,
            host_name=name,
            device=other.name,
        )
