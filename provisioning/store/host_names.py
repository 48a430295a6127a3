"""The owner of each host name: a name that a device has requested, or was given, is in no other device's certificate.

Rules
-----
1. Claiming and issuing are one transaction: an issuance that fails claims nothing.
2. A device owns a name for as long as it has, or may have again, a certificate with it. The name is free when the
   device was revoked or decommissioned, or only ever had trials that ended without an activation.
3. A server's name, which a token grants or the service gives itself, is also owned by its first holder: other servers
   may share it, no device may have it (`provisioning.enrolment.host_names`). When that server is ended, another server
   that has a certificate with the name becomes the owner.
4. The database decides between two simultaneous claims: the second waits for the first one's commit.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from sqlalchemy import bindparam, select, update
from sqlalchemy.engine import Connection

from provisioning.pki.extension import UNREADABLE
from provisioning.pki.role import Role
from provisioning.store.certificates import EXPIRY, NOT_ENDED_ABOVE, NOT_REVOKED, with_ends_above
from provisioning.store.claims import never_activated
from provisioning.store.devices import Device, device_from, of_roles
from provisioning.store.dialect_insert import insert_into
from provisioning.store.prepared import Prepared
from provisioning.store.tables import certificates, devices, host_names
from provisioning.store.utc_date_time import UtcDateTime

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
ServersNames = tuple[Sequence[str], Sequence[IpAddress]]
"""The host names and the addresses in one server's certificate."""

_HOLDER: Final = Prepared(
    select(devices).select_from(host_names.join(devices)).where(host_names.c.name == bindparam("wanted")), at_once=True
)
_MOVE: Final = Prepared(
    update(host_names)
    .where(host_names.c.name == bindparam("wanted"), host_names.c.device_id == bindparam("holder"))
    .values(device_id=bindparam("new_device")),
    at_once=True,
)
# In two steps: in one, SQLite would read every certificate of the fleet to find those of a few servers.
_OTHER_SERVERS: Final = Prepared(
    select(devices.c.id).where(
        *of_roles(*(each for each in Role if each is not Role.DEVICE)),
        devices.c.revoked_at.is_(None),
        devices.c.decommissioned_at.is_(None),
        devices.c.id != bindparam("holder"),
    )
)
"""Looked for again each time that a device asks for a name which an ended server has left to another one."""
_OF_SERVER: Final = Prepared(
    select(certificates.c.id, certificates.c.device_id, certificates.c.der).where(
        certificates.c.device_id == bindparam("wanted"), bindparam("now", type_=UtcDateTime) < EXPIRY
    ),
    at_once=True,
)
_SERVERS: Final = select(devices.c.id, devices.c.name).where(
    *of_roles(*(each for each in Role if each is not Role.DEVICE)),
    devices.c.revoked_at.is_(None),
    devices.c.decommissioned_at.is_(None),
)
_GOOD_OF_SERVER: Final = Prepared(
    select(certificates.c.id, certificates.c.der)
    .select_from(with_ends_above(certificates))
    .where(
        certificates.c.device_id == bindparam("wanted"),
        bindparam("now", type_=UtcDateTime) < EXPIRY,
        NOT_REVOKED,
        NOT_ENDED_ABOVE,
    ),
    at_once=True,
)


@functools.cache
def _add(dialect: str) -> Prepared:
    insert = insert_into(host_names, dialect)
    return Prepared(insert.on_conflict_do_nothing(index_elements=[host_names.c.name]), told_by="name")


def holder(connection: Connection, name: str) -> Device | None:
    """Return the owner of the host name, None if it has none."""
    row = _HOLDER.first(connection, {"wanted": name})
    return None if row is None else device_from(row)


def claim(connection: Connection, name: str, device_id: int, now: datetime) -> bool:
    """Make the device the host name's owner; return False if it has another *now*."""
    values = {"name": name, "device_id": device_id}
    if _add(connection.dialect.name).run(connection, values) == 1:
        return True
    holder = device_from(_HOLDER.one(connection, {"wanted": name}))
    if holder.id == device_id:
        return True
    if not holder.state.is_end and not never_activated(holder, now):
        return False
    heir = None if holder.role is Role.DEVICE else _another_server(connection, name, holder, now)
    new = device_id if heir is None else heir
    # Of two that see it as free, only one still finds the holder that it read.
    return _MOVE.run(connection, {"wanted": name, "holder": holder.id, "new_device": new}) == 1 and new == device_id


def keep_from_devices(connection: Connection, name: str, server_id: int, now: datetime) -> Device | None:
    """Make the server the host name's owner; return the device that owns it *now*, None if no device does."""
    if claim(connection, name, server_id, now):
        return None
    other = holder(connection, name)
    return other if other is not None and other.role is Role.DEVICE else None


def addresses_of_servers(
    connection: Connection, wanted: Collection[IpAddress], device_id: int, now: datetime
) -> set[IpAddress]:
    """Return those of the *wanted* addresses for which a server has a certificate, other than this device.

    Nothing is recorded of addresses: the certificates of servers, which are few, are searched.
    """
    servers = [server for (server,) in _OTHER_SERVERS.rows(connection, {"holder": device_id})]
    found: set[IpAddress] = set()
    for _, _, der, _ in _OF_SERVER.placed(connection, servers, {"now": now}):
        written = {each for each in wanted if each.packed in der}
        if written:
            found |= written & set(_names_in(der, x509.IPAddress))
    return found


def names_of_servers(connection: Connection, now: datetime, *, but: str) -> Mapping[str, ServersNames]:
    """Return which names each server's newest certificate has that is good, or suspended, by the servers' names.

    The one called *but* is left out, and so are those without such a certificate, or without a name in it.
    """
    called = {server: name for server, name in connection.execute(_SERVERS) if name != but}
    newest: dict[int, tuple[int, bytes]] = {}
    servers = list(called)
    for identifier, der, place in _GOOD_OF_SERVER.placed(connection, servers, {"now": now}):
        server = servers[place - 1]
        newest[server] = max(newest.get(server, (0, b"")), (identifier, der))
    names = {
        called[server]: (_names_in(der, x509.DNSName), _names_in(der, x509.IPAddress))
        for server, (_, der) in newest.items()
    }
    return {server: found for server, found in names.items() if any(found)}


def _another_server(connection: Connection, name: str, holder: Device, now: datetime) -> int | None:
    """Return the id of a server that has a certificate with the host name beside *holder*, None if none has."""
    others = [server for (server,) in _OTHER_SERVERS.rows(connection, {"holder": holder.id})]
    found = sorted(_OF_SERVER.placed(connection, others, {"now": now}))
    written = name.encode()  # To look for it takes a fortieth of what parsing takes.
    for _, device, der, _ in found:
        if written in der and name in _names_in(der, x509.DNSName):
            return int(device)
    return None


def _names_in(der: bytes, kind: type[x509.DNSName | x509.IPAddress]) -> list[Any]:
    try:
        extensions = x509.load_der_x509_certificate(der).extensions
        return extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(kind)
    except (*UNREADABLE, x509.ExtensionNotFound):  # An imported one: not signed by this service.
        return []
