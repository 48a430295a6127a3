"""Which complete lists are in the store, for the next start."""

from __future__ import annotations

from datetime import timedelta

import pytest

from provisioning.ca.crl import CrlIssuer
from provisioning.revocation import publisher as publisher_module
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store import crls
from provisioning.store.counters import crl_counter
from tests.support.fleet import Fleet


async def test_a_long_list_is_stored_when_it_is_time_for_one_and_not_for_each_change(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start has one that is half a life old at most, and the store's one writer is spared the others."""
    monkeypatch.setattr(publisher_module, "_STORED_BYTES", 0)
    issuing, name = fleet.authority.issuing_ca, "issuing-ca"

    async def sleep(seconds: float) -> None:
        fleet.clock.advance(timedelta(seconds=seconds))

    def issuer() -> CrlIssuer:
        return CrlIssuer(issuing.certificate, issuing.key)

    plan = CrlPlan(name, crl_counter(name), timedelta(hours=1), 0.01, issuer)
    publisher = CrlPublisher(fleet.database, plan, fleet.clock, sleep)
    await publisher.start()
    kept = [publisher.current]
    for minutes in (1, 30):
        fleet.clock.advance(timedelta(minutes=minutes))
        await publisher.publish()
        kept.append(await fleet.database.read(lambda connection: crls.newest(connection, name)))
    assert kept == [kept[0], kept[0], publisher.current]
    assert kept[0] != publisher.current
