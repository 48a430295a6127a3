"""Nobody is enrolled under the service's own name: every way in is tried, and each role of a token."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.ca.issuer import IssuanceRequest
from provisioning.ca.profile import ProfileConfig, profile_of
from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.tokens import TokenOrder, digest_of, new_token
from provisioning.errors import Code, Refused
from provisioning.pki.identity import PROVISIONING, Identity
from provisioning.pki.keys import generate_key, spki_fingerprint
from provisioning.pki.role import Role
from provisioning.store import certificates, devices, tokens
from provisioning.store.serials import new_serial
from provisioning.store.tokens import TokenGrant
from tests.support.fleet import Fleet, open_fleet, successor_csr
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON, csr_der
from tests.support.ways import HOUR, claim, group, pending, refusal, register

SERVES = ProfileConfig(
    "service",
    timedelta(days=30),
    extended_key_usages=("clientAuth", "serverAuth"),
    honoured_domains=("fleet.example",),
)
"""With this, a token for the name was all that it took to be the service to every client of it."""


@pytest.fixture
async def fleet(store_url: str) -> AsyncIterator[Fleet]:
    async with open_fleet(store_url, configured=[SERVES]) as opened:
        yield opened


async def token_from_before(fleet: Fleet, grant: TokenGrant) -> str:
    """Return a token that was made when nothing kept anybody from making it."""
    token, now = new_token(), fleet.clock()

    def record(connection: Connection) -> None:
        tokens.add(connection, [(digest_of(token), grant)], created_by="admin", now=now, expires_at=now + HOUR)

    await fleet.database.write(record)
    return token


async def the_service_itself(fleet: Fleet) -> x509.Certificate:
    """Record the service with a certificate that it could renew with, were it a device."""
    key, profile = generate_key(), profile_of(SERVES)
    identity, now = Identity("fleet.internal", Role.SERVICE, PROVISIONING), fleet.clock()
    prepared = fleet.issuer.prepare(profile, IssuanceRequest(identity, key.public_key(), new_serial(), now))
    certificate = fleet.issuer.issue(prepared)

    def record(connection: Connection) -> None:
        device = devices.add(connection, PROVISIONING, Role.SERVICE, None, now)
        certificates.add(connection, certificates.issued(certificate), device.id, now)

    await fleet.database.write(record)
    return certificate


@pytest.mark.parametrize("role", Role)
async def test_nobody_makes_a_token_for_it(fleet: Fleet, role: Role) -> None:
    order = TokenOrder(["meter-1", PROVISIONING], "north" if role is Role.DEVICE else None, role)
    with pytest.raises(Refused, match="the name of the provisioning service itself, which renews its own") as caught:
        await fleet.token_service.create(order, by="admin")
    assert caught.value.code is Code.PROTECTED


@pytest.mark.parametrize("known", [True, False], ids=["the service is recorded", "it is not"])
async def test_a_token_from_before_buys_nothing(fleet: Fleet, known: bool) -> None:
    if known:
        await the_service_itself(fleet)
    host = x509.SubjectAlternativeName([x509.DNSName("ca.fleet.example")])
    for role, device in itertools.product(Role, (PROVISIONING, None)):
        named = "north" if role is Role.DEVICE or device is None else None
        token = await token_from_before(fleet, TokenGrant(device, named, role))
        with pytest.raises(Refused) as caught:
            await fleet.enrolment.enrol(
                csr_der(names=[PROVISIONING], extensions=[host]), TokenCredential(PROVISIONING, token)
            )
        assert caught.value.code is Code.PROTECTED, (role, device)


async def test_the_service_s_own_certificate_buys_no_successor(fleet: Fleet) -> None:
    certificate = await the_service_itself(fleet)
    with pytest.raises(Refused) as caught:
        await fleet.reenrol(certificate, successor_csr(certificate))
    assert caught.value.code is Code.PROTECTED


async def test_no_other_way_leads_to_it(fleet: Fleet) -> None:
    await group(fleet, "claim", "manufacturer", "listed", "approval")
    assert await refusal(fleet, PROVISIONING, certificate=await claim(fleet)) is Code.PROTECTED
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid(PROVISIONING)
    assert await refusal(fleet, PROVISIONING, certificate=idevid) is Code.PROTECTED
    key = generate_key()
    entry = PROVISIONING, spki_fingerprint(key.public_key()).hex()
    await DeviceListService(fleet.database, fleet.clock).add("line", [entry], by="admin")
    assert await refusal(fleet, PROVISIONING, key=key, label="line") is Code.PROTECTED
    other = generate_key()
    number = await pending(fleet, PROVISIONING, key=other, label="line")
    await ApprovalService(fleet.database, fleet.clock).decide(number, approve=True, by="admin")
    assert await refusal(fleet, PROVISIONING, key=other, label="line") is Code.PROTECTED
