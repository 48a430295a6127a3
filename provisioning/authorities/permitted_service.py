"""Whether a CA from elsewhere may certify what it would have to: our trust domain, and the service itself.

The keeper of an external root may confine a CA to some names (`provisioning.ca.permitted_names`). One that is confined
to the devices' host names lets the service have no certificate that a client accepts, and it is the service's issuer
from its activation on. Only the default line issues the service's certificate; any line's are of the trust domain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from cryptography import x509

from provisioning.authorities.own_credentials import names_of, server_names_of
from provisioning.ca.permitted_names import names_refused
from provisioning.ca.server_names import split_names
from provisioning.config import Settings
from provisioning.directory.files import SERVER, AuthorityFiles, read_certificate
from provisioning.errors import ConfigurationError
from provisioning.pki.extension import UNUSABLE, extension
from provisioning.pki.identity import PROVISIONING, Identity
from provisioning.pki.role import Role
from provisioning.store.authorities import DEFAULT_LINE


def check_service_permitted(settings: Settings, line: str, path: Iterable[x509.Certificate]) -> None:
    """Raise `ConfigurationError` if name constraints in *path*, a CA's of *line* and its root, forbid names of ours."""
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(Identity(settings.trust_domain, Role.SERVICE, PROVISIONING, None).uri)
    ]
    if line == DEFAULT_LINE:
        names += _of_the_service(settings)
    for each, whose in zip(path, ("its", "its root's"), strict=True):
        constraints = extension(each, x509.NameConstraints)
        refused = [] if constraints is None else names_refused(constraints, names)
        if refused:
            raise ConfigurationError(
                f"{whose} name constraints do not permit {', '.join(refused)}, which the service's own certificate "
                "has: no client would accept the service as soon as this CA issues; have it signed with these names "
                "permitted"
            )


def _of_the_service(settings: Settings) -> Iterable[x509.GeneralName]:
    """Return the host names and addresses of the HTTPS server: those configured, or those that it has."""
    hosts, addresses = split_names(server_names_of(settings))
    if not settings.server_names:
        # Another host has it, perhaps.
        with contextlib.suppress(ConfigurationError, x509.ExtensionNotFound, *UNUSABLE):
            hosts, addresses = names_of(read_certificate(AuthorityFiles(settings.directory).certificate(SERVER)))
    return [*map(x509.DNSName, hosts), *map(x509.IPAddress, addresses)]
