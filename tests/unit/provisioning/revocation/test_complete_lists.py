"""Complete lists: which are in the store, for the next start, and that one without deltas waits for nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509

from provisioning.ca.crl import CrlIssuer
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import publisher as publisher_module
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store import crls
from provisioning.store.counters import crl_counter
from tests.support.fleet import Fleet

NAME = "issuing-ca"


@pytest.fixture
async def publisher(fleet: Fleet) -> CrlPublisher:
    issuing = fleet.authority.issuing_ca

    async def sleep(seconds: float) -> None:
        fleet.clock.advance(timedelta(seconds=seconds))

    def issuer() -> CrlIssuer:
        return CrlIssuer(issuing.certificate, issuing.key)

    plan = CrlPlan(NAME, crl_counter(NAME), timedelta(hours=1), 0.01, issuer)
    return CrlPublisher(fleet.database, plan, fleet.clock, sleep)


async def test_a_long_list_is_stored_when_it_is_time_for_one_and_not_for_each_change(
    fleet: Fleet, publisher: CrlPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start has one that is half a life old at most, and the store's one writer is spared the others."""
    monkeypatch.setattr(publisher_module, "_STORED_BYTES", 0)
    await publisher.start()
    kept = [publisher.current]
    for minutes in (1, 30):
        fleet.clock.advance(timedelta(minutes=minutes))
        await publisher.publish()
        kept.append(await fleet.database.read(lambda connection: crls.newest(connection, NAME)))
    assert kept == [kept[0], kept[0], publisher.current]
    assert kept[0] != publisher.current


async def test_a_list_without_deltas_says_at_once_what_is_revoked_though_it_is_not_affordable_yet(
    fleet: Fleet, publisher: CrlPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_COMPLETE_SHARE", 1e9)
    await publisher.start()
    certificate = await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    await publisher.publish_changes()
    assert publisher.current is not None
    assert [each.serial_number for each in x509.load_der_x509_crl(publisher.current.der)] == [certificate.serial_number]
