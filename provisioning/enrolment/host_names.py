"""Host names that a profile honours or builds: each belongs to one device, as a host name says who a server is.

Within one configuration, patterns give different devices different names (`provisioning.ca.host_patterns`); but another
device may have a name that was honoured, or built, under an earlier configuration. No device may have a name that a
token grants to a server, or the service's own: with serverAuth it could pose as them. Where a profile has
`shared_host_names`, several devices share the names it honours on purpose, and those that a token grants.

With serverAuth, two more count. A **Common Name** that has the form of a host name: where a certificate has no host
name, OpenSSL's clients, Python's and mosquitto's among them, compare the Common Name, in any case of letters. And an
**address** of a server; devices may have one after the other, as networks give them, so they own none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace

import structlog
from sqlalchemy.engine import Connection

from provisioning.ca.name_policy import NameRefused, SubjectNames
from provisioning.ca.profile import Profile
from provisioning.ca.server_names import InvalidServerName, IpAddress, check_host_name
from provisioning.enrolment.attempt import Attempt
from provisioning.errors import Code
from provisioning.pki.identity import Identity
from provisioning.store import host_names
from provisioning.store.devices import Device

log = structlog.get_logger(__name__)


def reserve(
    connection: Connection,
    profile: Profile,
    identity: Identity,
    held: SubjectNames,
    names: SubjectNames,
    device: Device,
    attempt: Attempt,
) -> SubjectNames:
    """Reserve the host names of *device*'s certificate, and return the names it may have; raise `NameRefused`.

    *names* are those that *profile* allows, *held* what was granted or its predecessor has.
    """
    own = profile.names.own_host_names(identity, held, names)
    called = host_name_in(identity.name) if profile.serves else None
    if profile.names.granted:
        granted = [each for each in names.dns_names if each not in own]
        if called is not None and called not in granted:
            granted.append(called)
        keep_granted(connection, granted, device, attempt)
    elif profile.serves:
        if called is not None:
            _keep_called(connection, called, device, attempt)
        names = _without_servers_addresses(connection, names, device, attempt)
    return own_names(connection, names, own, device, attempt)


def host_name_in(name: str) -> str | None:
    """Return the host name for which a client may take the Common Name *name*, None if it is none.

    A dot at the end says that the name is complete: curl takes it away on both sides before it compares.
    """
    try:
        return check_host_name(name.lower().removesuffix("."))
    except InvalidServerName:
        return None


def _keep_called(connection: Connection, called: str, device: Device, attempt: Attempt) -> None:
    """Reserve for the device the host name that it is *called*. One that has another's already renews with it."""
    address = _address(called)
    if host_names.claim(connection, called, device.id, attempt.now) and (
        address is None or not host_names.addresses_of_servers(connection, [address], device.id, attempt.now)
    ):
        return
    if not attempt.renewal:
        raise _of_another("host name", called)
    log.warning(
        "a device is called by another's host name", code="HOST_NAME_TAKEN", device=device.name, host_name=called
    )


def _address(text: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _without_servers_addresses(
    connection: Connection, names: SubjectNames, device: Device, attempt: Attempt
) -> SubjectNames:
    """Return *names* without a server's addresses; raise `NameRefused` instead unless the device renews."""
    if not names.ip_addresses:
        return names
    taken = host_names.addresses_of_servers(connection, names.ip_addresses, device.id, attempt.now)
    if not taken:
        return names
    if not attempt.renewal:
        raise _of_another("address", str(min(taken, key=str)))
    _left_out(device, sorted(map(str, taken)))
    return replace(names, ip_addresses=tuple(each for each in names.ip_addresses if each not in taken))


def _of_another(what: str, name: str) -> NameRefused:
    return NameRefused(
        Code.CSR_NAME,
        f"the {what} {name[:80]!r} belongs to another device: ask for a different one, or "
        "have an operator revoke or decommission that device",
    )


def _left_out(device: Device, names: Sequence[str]) -> None:
    log.warning(
        "host names left out: they belong to another device",
        code="HOST_NAMES_LEFT_OUT",
        name=device.name,
        host_names=names,
    )


def own_names(
    connection: Connection, names: SubjectNames, own: Sequence[str], device: Device, attempt: Attempt
) -> SubjectNames:
    """Reserve for the device those of *names* that are *own*, and return the names it may have; raise `NameRefused`.

    A successor loses a name that is another device's, rather than be refused: a device must be able to renew.
    """
    taken = [name for name in own if not host_names.claim(connection, name, device.id, attempt.now)]
    if taken and not attempt.renewal:
        raise _of_another("host name", taken[0])
    if taken:
        _left_out(device, taken)
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
