"""Whether a CA may certify what it would have to: our trust domain, the service itself, and brokers and other servers.

The keeper of an external root may confine a CA to some names (`provisioning.ca.permitted_names`). One that is confined
to the devices' host names lets the service have no certificate that a client accepts, and it is the service's issuer
from its activation on; and that of each broker, from its next renewal on. Only the default line issues theirs; any
line's are of the trust domain.

Rules
-----
1. It is asked before a CA is announced, and again before it is activated: by then the service may have other names, and
   there may be other brokers.
2. No file is read in a transaction: `OwnNames` are read before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.authorities.own_credentials import SERVER_NAME, names_of, server_names_of
from provisioning.ca.permitted_names import names_refused
from provisioning.ca.server_names import IpAddress, split_names
from provisioning.config import Settings
from provisioning.directory.files import SERVER, AuthorityFiles, read_certificate
from provisioning.errors import ConfigurationError
from provisioning.pki.extension import UNUSABLE, extension
from provisioning.pki.identity import PROVISIONING, Identity
from provisioning.pki.role import Role
from provisioning.store.authorities import DEFAULT_LINE
from provisioning.store.host_names import ServersNames, names_of_servers

_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class OwnNames:
    """The names in the service's own certificate."""

    identity: x509.GeneralName
    hosts: Sequence[x509.GeneralName]

    def check_permitted(self, line: str, path: Mapping[str, x509.Certificate]) -> None:
        """Raise `ConfigurationError` if name constraints in the *path* of a CA of *line* forbid one of these names.

        *path* is the CA and its root, or one of them, each by whose the constraints are called.
        """
        names = [self.identity, *(self.hosts if line == DEFAULT_LINE else ())]
        for whose, each in path.items():
            if refused := _refused(each, names):
                raise ConfigurationError(
                    f"{whose} name constraints do not permit {', '.join(refused)}, which the service's own certificate "
                    "has: no client would accept the service as soon as this CA issues; have one signed with these "
                    "names permitted, under another root if need be"
                )


def own_names(settings: Settings) -> OwnNames:
    """Return the names of the HTTPS server: those configured, or those that its certificate has."""
    hosts, addresses = split_names(server_names_of(settings))
    if not settings.server_names:
        # Another host has it, perhaps.
        with contextlib.suppress(ConfigurationError, x509.ExtensionNotFound, *UNUSABLE):
            hosts, addresses = names_of(read_certificate(AuthorityFiles(settings.directory).certificate(SERVER)))
    identity = x509.UniformResourceIdentifier(Identity(settings.trust_domain, Role.SERVICE, PROVISIONING, None).uri)
    return OwnNames(identity, _general(hosts, addresses))


def check_servers_permitted(
    servers: Mapping[str, ServersNames], line: str, path: Mapping[str, x509.Certificate], or_else: str = ""
) -> None:
    """Raise `ConfigurationError` if name constraints in the *path* of a CA of *line* forbid a name of one of *servers*.

    *or_else* is what the error proposes besides.
    """
    if line != DEFAULT_LINE:
        return
    for whose, each in path.items():
        refused = [
            f"{', '.join(names)} of {server}"
            for server, (hosts, addresses) in sorted(servers.items())
            if (names := _refused(each, _general(hosts, addresses)))
        ]
        if refused:
            more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
            raise ConfigurationError(
                f"{whose} name constraints do not permit {'; '.join(refused[:_SHOWN])}{more}: no client would accept "
                "the certificates that they get from this CA; have one signed with these names permitted, under "
                f"another root if need be, or decommission what is no more{or_else}"
            )


def names_of_others(connection: Connection, now: datetime) -> Mapping[str, ServersNames]:
    """Return the names of brokers, and of other servers that have some, except the service's own."""
    return names_of_servers(connection, now, but=SERVER_NAME)


def _general(hosts: Sequence[str], addresses: Sequence[IpAddress]) -> Sequence[x509.GeneralName]:
    return [*map(x509.DNSName, hosts), *map(x509.IPAddress, addresses)]


def _refused(certificate: x509.Certificate, names: Sequence[x509.GeneralName]) -> Sequence[str]:
    constraints = extension(certificate, x509.NameConstraints)
    return [] if constraints is None else names_refused(constraints, names)
