"""The CAs of a service that starts: what was decided while none ran."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from cryptography import x509
from sqlalchemy import select

from provisioning.authorities.authority import open_authority
from provisioning.authorities.authority_revocation import AuthorityRevocation
from provisioning.authorities.live_authorities import LiveAuthorities
from provisioning.ca.ceremony import ISSUING_LIFE
from provisioning.ca.issuer import Issuer
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.ocsp import OcspResponder
from provisioning.revocation.publisher import CrlPublisher
from provisioning.revocation.service import RevocationService
from provisioning.store import tables
from provisioning.store.serials import SerialNumbers
from tests.support.ceremonies import Ceremonies

ROOT = "root-ca"


def opened(fleet_cas: Ceremonies) -> LiveAuthorities:
    async def issue_with(_issuer: Issuer) -> None: ...

    settings, database, clock = fleet_cas.settings, fleet_cas.database, fleet_cas.clock
    return LiveAuthorities(
        authority=open_authority(settings),
        settings=settings,
        public_url="http://ca.example.org",
        database=database,
        serial_numbers=SerialNumbers(database),
        responder=OcspResponder(database, [], clock, settings.ocsp_life),
        clock=clock,
        on_trust=lambda _certificates: None,
        on_active=issue_with,
    )


async def listed_by_next_service(fleet_cas: Ceremonies, number: int) -> set[int]:
    """Run the CAs until the root's list after *number* is there; return the serial numbers in it."""
    live = opened(fleet_cas)
    await live.start()
    running = asyncio.create_task(live.run())
    try:
        async with asyncio.timeout(20):
            while (crl := live.publishers[ROOT].current) is None or crl.number <= number:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return {each.serial_number for each in x509.load_der_x509_crl(crl.der)}


async def newest(fleet_cas: Ceremonies) -> int:
    live = opened(fleet_cas)
    await live.start()
    crl = live.publishers[ROOT].current
    assert crl is not None
    return crl.number


async def test_a_ca_that_was_revoked_while_no_service_ran_is_listed_though_another_has_ended_meanwhile(
    fleet_cas: Ceremonies,
) -> None:
    """The list is as long as before: who compares lengths leaves the CA good until the root's next list is due."""
    fleet_cas.clock.advance(ISSUING_LIFE - timedelta(days=10))
    before = await newest(fleet_cas)
    for revoked in ("issuing-ca", "issuing-2"):
        await fleet_cas.successor()
        fleet_cas.clock.advance(timedelta(seconds=5))
        await AuthorityRevocation(fleet_cas.life).begin(revoked, RevocationReason.CA_COMPROMISE)
        serial = next(each.certificate.serial_number for each in await fleet_cas.life.every() if each.name == revoked)
        assert serial in await listed_by_next_service(fleet_cas, before)
        before = await newest(fleet_cas)
        fleet_cas.clock.advance(timedelta(days=20))


async def test_a_list_that_says_all_is_not_made_again_by_the_next_service(fleet_cas: Ceremonies) -> None:
    await fleet_cas.successor()
    await AuthorityRevocation(fleet_cas.life).begin("issuing-ca", RevocationReason.CA_COMPROMISE)
    await listed_by_next_service(fleet_cas, await newest(fleet_cas))
    live = opened(fleet_cas)
    await live.start()
    assert not live.publishers[ROOT]._changed.is_set()


async def test_what_another_process_revokes_while_a_list_is_first_made_is_in_the_next_one(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event may be read before anybody knows of the list that has to be told."""
    live, revoked = opened(fleet_cas), set[int]()
    first = CrlPublisher.start

    async def start(publisher: CrlPublisher) -> None:
        await first(publisher)
        if publisher._plan.name == "issuing-ca":
            (serial, *_) = await fleet_cas.database.read(
                lambda connection: connection.scalars(select(tables.certificates.c.serial)).all()
            )
            service = RevocationService(fleet_cas.database, fleet_cas.clock, ())
            await service.revoke_serial(serial, RevocationReason.UNSPECIFIED, by="another process")
            revoked.add(int(serial, 16))

    monkeypatch.setattr(CrlPublisher, "start", start)
    await live.start()
    assert revoked
    fleet_cas.clock.advance(timedelta(seconds=5))  # Else the list is of the future, and made again for that.
    running = asyncio.create_task(live.run())
    try:
        async with asyncio.timeout(20):
            while not revoked <= listed(live.publishers["issuing-ca"]):  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def listed(publisher: CrlPublisher) -> set[int]:
    assert publisher.current is not None
    return {each.serial_number for each in x509.load_der_x509_crl(publisher.current.der)}
