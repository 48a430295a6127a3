from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from cryptography import x509

from provisioning.ca.crl import CrlIssuer
from provisioning.errors import ConfigurationError
from provisioning.pki.revocation import RevocationReason
from provisioning.revocation import publisher as publisher_module
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store.counters import Counter
from tests.support.fleet import Fleet


def plan(fleet: Fleet, **changes: object) -> CrlPlan:
    issuing = fleet.authority.issuing_ca
    values: dict[str, object] = {
        "name": "issuing-ca",
        "counter": Counter.CRL_ISSUING_CA,
        "life": timedelta(hours=1),
        "debounce_seconds": 0.01,
        "open_issuer": lambda: CrlIssuer(issuing.certificate, issuing.key),
    }
    return CrlPlan(**(values | changes))  # type: ignore[arg-type]


def serials(publisher: CrlPublisher) -> set[int]:
    assert publisher.current is not None
    return {each.serial_number for each in x509.load_der_x509_crl(publisher.current.der)}


async def test_a_list_is_taken_up_again_after_a_restart_and_its_number_only_rises(fleet: Fleet) -> None:
    first = CrlPublisher(fleet.database, plan(fleet), fleet.clock)
    await first.start()
    await first.publish()
    second = CrlPublisher(fleet.database, plan(fleet), fleet.clock)
    await second.start()
    assert second.current == first.current
    assert (await second.publish()).number == 3


async def test_a_certificate_leaves_the_list_after_one_list_past_its_end(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    publisher = CrlPublisher(fleet.database, plan(fleet), fleet.clock)
    await publisher.start()
    assert serials(publisher) == {certificate.serial_number}
    fleet.clock.advance(timedelta(days=31))
    await publisher.publish()
    assert serials(publisher) == {certificate.serial_number}, "RFC 5280 §3.3: once more after its end"
    fleet.clock.advance(timedelta(seconds=1))
    await publisher.publish()
    assert serials(publisher) == set()


async def test_a_burst_makes_one_list_and_a_failure_is_repeated(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "_RETRY_SECONDS", 0.01)
    failures = [ConfigurationError("the key is elsewhere")]
    opened = asyncio.Event()
    loop = asyncio.get_running_loop()
    issuing = fleet.authority.issuing_ca

    def open_issuer() -> CrlIssuer:
        if publisher.current is not None and failures:
            raise failures.pop()
        loop.call_soon_threadsafe(opened.set)
        return CrlIssuer(issuing.certificate, issuing.key)

    publisher = CrlPublisher(fleet.database, plan(fleet, open_issuer=open_issuer), fleet.clock)
    await publisher.start()
    opened.clear()
    task = asyncio.create_task(publisher.run())
    for _ in range(5):
        publisher.changed()
        await asyncio.sleep(0)
    await opened.wait()
    while publisher.current is None or publisher.current.number == 1:  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert failures == []
    assert publisher.current.number == 3, "1 at the start, 2 lost with the failure, 3 for the whole burst"
