"""One more revocation costs the same, whether nobody or a hundred thousand are revoked already."""

from __future__ import annotations

import statistics
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.ca.crl import CrlIssuer
from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store.counters import Counter
from tests.support.fleet import Fleet
from tests.support.many import fill
from tests.support.openssl import openssl

MANY = 100_000
ROUND = 15


async def seconds_to_revoke(fleet: Fleet, names: list[str]) -> float:
    for name in names:
        await fleet.enrol(name)
    taken = []
    for name in names:
        begun = time.perf_counter()
        await fleet.revocation.revoke_device(name, RevocationReason.SUPERSEDED, by="admin")
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


@pytest.mark.timeout(300)
async def test_the_hundred_thousand_and_first_costs_what_the_first_did(fleet: Fleet, tmp_path: Path) -> None:
    issuing = fleet.authority.issuing_ca
    alone = await seconds_to_revoke(fleet, [f"early-{number}" for number in range(ROUND)])
    await fleet.database.write(lambda connection: connection.exec_driver_sql("DELETE FROM revocation_events"))
    await fleet.database.write(lambda connection: connection.exec_driver_sql("DELETE FROM revocations"))
    await fleet.database.write(lambda connection: connection.exec_driver_sql("UPDATE counters SET value = 0"))
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, MANY, fleet.clock()))
    plan = CrlPlan(
        "issuing-ca",
        Counter.CRL_ISSUING_CA,
        timedelta(days=1),
        0.01,
        lambda: CrlIssuer(issuing.certificate, issuing.key),
        delta_url="http://ca.example.org/crl/issuing-ca.delta.crl",
    )
    publisher = CrlPublisher(fleet.database, plan, fleet.clock)
    await publisher.start()
    crowded = await seconds_to_revoke(fleet, [f"late-{number}" for number in range(ROUND)])
    assert crowded < 5 * alone, f"{alone * 1000:.1f} ms alone, {crowded * 1000:.1f} ms among {MANY:,}"

    await publisher.publish()
    assert publisher.current is not None
    assert publisher.delta is not None
    assert (publisher.current.entries, publisher.delta.entries) == (MANY + ROUND, ROUND)
    (tmp_path / "ca.pem").write_bytes(issuing.certificate.public_bytes(Encoding.PEM))
    for crl in (publisher.current.der, publisher.delta.der):
        openssl("crl", "-inform", "DER", "-noout", "-verify", "-CAfile", tmp_path / "ca.pem", data=crl)
    loaded = x509.load_der_x509_crl(publisher.current.der)
    assert len(loaded) == MANY + ROUND
