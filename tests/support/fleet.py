"""The service's parts in this process, on a real store, with a clock that the test moves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509

from provisioning.ca.ceremony import Authority, found_authority
from provisioning.ca.issuer import Issuer
from provisioning.ca.profile import ProfileConfig, ProfileName, profile_of
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.groups import GroupService
from provisioning.enrolment.issuing import Issuing
from provisioning.enrolment.service import EnrolmentService, MadeKey
from provisioning.enrolment.tokens import TokenOrder, TokenService
from provisioning.pki.keys import PrivateKey
from provisioning.pki.role import Role
from provisioning.revocation.service import RevocationService
from provisioning.revocation.suspension import SuspensionService
from provisioning.store import authorities, schema
from provisioning.store.database import Database
from provisioning.store.serials import SerialNumbers, new_serial
from tests.support.requests import NOON, csr_der


@dataclass
class Clock:
    """The time; it stands still until moved."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, delta: timedelta) -> None:
        self.now += delta


@dataclass
class Enrolment:
    """The service, with its answers decoded."""

    service: EnrolmentService

    async def enrol(
        self, csr_der: bytes, token: TokenCredential | None, *rest: Any, **presented: Any
    ) -> x509.Certificate:
        return x509.load_der_x509_certificate(await self.service.enrol(csr_der, token, *rest, **presented))

    async def reenrol(
        self, csr_der: bytes, certificate: x509.Certificate | None, *rest: Any, **presented: Any
    ) -> x509.Certificate:
        return x509.load_der_x509_certificate(await self.service.reenrol(csr_der, certificate, *rest, **presented))

    async def enrol_with_server_key(self, csr_der: bytes, *presented: Any) -> MadeKey:
        return await self.service.enrol_with_server_key(csr_der, *presented)


@dataclass
class Fleet:
    """Everything between a request and the store."""

    database: Database
    clock: Clock
    authority: Authority
    serial_numbers: SerialNumbers
    issuer: Issuer
    enrolment: Enrolment
    token_service: TokenService
    revocation: RevocationService
    suspension: SuspensionService
    groups: GroupService
    told: list[str] = field(default_factory=list)

    async def token(self, device: str = "meter-17", group: str | None = "north", role: Role = Role.DEVICE) -> str:
        (issued,) = await self.token_service.create(TokenOrder([device], group, role), by="admin")
        return issued.token

    async def enrol(self, device: str = "meter-17", csr: bytes | None = None) -> x509.Certificate:
        """Return a first certificate for *device*."""
        credential = TokenCredential(device, await self.token(device))
        return await self.enrolment.enrol(csr or csr_der(names=[device]), credential)

    async def reenrol(self, certificate: x509.Certificate, csr: bytes) -> x509.Certificate:
        return await self.enrolment.reenrol(csr, certificate)


def successor_csr(certificate: x509.Certificate, key: PrivateKey | None = None) -> bytes:
    """Return a request, for *key* or a new one, that may succeed *certificate*."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    *attributes, common_name = certificate.subject
    return csr_der(key, names=[str(common_name.value)], extensions=[names], attributes=attributes)


def new_authority() -> Authority:
    """Found the authority of a fleet."""
    return found_authority("fleet.internal", NOON, (new_serial(), new_serial()))


@contextlib.asynccontextmanager
async def open_fleet(
    store_url: str,
    authority: Authority | None = None,
    configured: Sequence[ProfileConfig] = (),
    *,
    is_current: bool = False,
) -> AsyncIterator[Fleet]:
    """Build the parts on a store, with the profiles *configured* and the built-in ones.

    With another fleet's *authority* they are a second process of the same service. The schema of a store that
    *is_current* is not checked.
    """
    database = Database(store_url)
    try:
        if not is_current:
            await schema.upgrade(database)
        clock = Clock()
        authority = authority or new_authority()
        root, issuing = authority.root_ca.certificate, authority.issuing_ca.certificate
        await database.write(lambda connection: authorities.adopt(connection, root, issuing, clock()))
        issuer = Issuer(authority.issuing_ca.certificate, authority.issuing_ca.key)
        serial_numbers = SerialNumbers(database)
        profiles = {name.value: profile_of(ProfileConfig(name, timedelta(days=30))) for name in ProfileName} | {
            config.name: profile_of(config) for config in configured
        }
        told: list[str] = []
        neighbours = (lambda _: told.append("feed"), lambda _: told.append("crl"))
        enrolment = EnrolmentService(
            database=database,
            issuing=lambda _line: Issuing(issuer),
            serial_numbers=serial_numbers,
            profiles=profiles,
            trust_domain="fleet.internal",
            clock=clock,
            after_commit=neighbours,
        )
        yield Fleet(
            database,
            clock,
            authority,
            serial_numbers,
            issuer,
            Enrolment(enrolment),
            TokenService(database, clock, profiles),
            RevocationService(database, clock, neighbours),
            SuspensionService(database, clock, neighbours),
            GroupService(database, profiles, clock),
            told,
        )
    finally:
        await database.close()
