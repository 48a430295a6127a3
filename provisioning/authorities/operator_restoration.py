"""Restores operator access when no operator has any: certifies one at the CA itself, without a token.

Theory
------
Tokens are made over HTTPS by an operator with a good certificate. When the last such certificate has expired, or its
key is lost, nobody can make one. Whoever has the directory and can open the issuing CA's key could certify anything
with openssl anyway; here it is recorded and audited like everything that the service issues.

Rules
-----
1. The name is an operator's, or unused: a revoked, suspended or decommissioned one stays so.
2. The operator's earlier certificates stay valid: if a key may be compromised, revoke its certificate by serial number.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from provisioning.authorities.authority import urls_of
from provisioning.authorities.authority_life import AuthorityLife, only_one
from provisioning.authorities.issuing_policy import profiles_of
from provisioning.authorities.own_credentials import OwnCredentials
from provisioning.ca.issuer import IssuanceRefused, Issuer
from provisioning.errors import ConfigurationError
from provisioning.pki.identity import Identity, InvalidIdentity
from provisioning.pki.role import Role
from provisioning.store import devices
from provisioning.store.authorities import DEFAULT_LINE, AuthorityState
from provisioning.store.devices import DeviceState
from provisioning.store.serials import SerialNumbers


async def restore_operator(life: AuthorityLife, name: str) -> None:
    """Certify *name* as an admin, into operator.crt and operator.key; raise `ConfigurationError` if not possible."""
    try:
        Identity(life.settings.trust_domain, Role.OPERATOR, name)
    except InvalidIdentity as error:
        raise ConfigurationError(f"the operator's name: {error}") from error

    def check(connection: Connection) -> None:
        found = devices.find(connection, name)
        if found is None:
            return
        if found.role is not Role.OPERATOR:
            raise ConfigurationError(f"{name} is a {found.role}, not an operator: give another name")
        if found.state is not DeviceState.ACTIVE:
            raise ConfigurationError(
                f"{name} is {found.state} and this command does not change that: give another name"
            )

    await life.database.read(check)
    life.transcript.begin()
    await issue_operator(life, name, as_admin=True)


async def issue_operator(life: AuthorityLife, name: str, *, as_admin: bool) -> None:
    """Issue operator.crt and operator.key by the CA that issues for the service itself."""
    of_line = [each for each in await life.every() if each.line == DEFAULT_LINE]
    active = only_one(of_line, None, AuthorityState.ACTIVE, "active")
    url = life.settings.public_http_url
    urls = None if url is None else urls_of(str(url), active.name)
    issuer = Issuer(active.certificate, life.places.open_for(active.name, active.certificate), urls)
    numbers = SerialNumbers(life.database)
    credentials = OwnCredentials(
        life.files,
        issuer,
        life.database,
        numbers,
        profiles_of(life.settings),
        life.settings.trust_domain,
        life.clock,
    )
    try:
        await credentials.issue_operator(name, as_admin=as_admin)
    except IssuanceRefused as error:
        raise ConfigurationError(f"{name} has no new certificate: {error}") from error
    await numbers.release()
