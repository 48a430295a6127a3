"""One more revocation costs the same, whether nobody or a hundred thousand are revoked already."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from provisioning.ca.crl import CrlIssuer
from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store.counters import Counter
from tests.support.fleet import Fleet
from tests.support.many import fill
from tests.support.openssl import openssl

MANY = 100_000
ROUND = 15


Statement = tuple[str, Any]
_SCAN = {"sqlite": re.compile(r"\bSCAN (\w+)"), "postgresql": re.compile(r"\bSeq Scan on (\w+)")}
_LARGE = {"certificates", "devices", "revocations", "revocation_events", "audit_entries"}


async def statements_to_revoke(fleet: Fleet, name: str) -> list[Statement]:
    """Revoke a new device; return what the database was asked meanwhile."""
    await fleet.enrol(name)
    asked: list[Statement] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        asked.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        await fleet.revocation.revoke_device(name, RevocationReason.SUPERSEDED, by="admin")
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    return asked


def scanned(connection: Connection, asked: list[Statement]) -> set[str]:
    """Return the large tables that the database would read from end to end for one of the statements."""
    dialect = connection.dialect.name
    explain = "EXPLAIN QUERY PLAN" if dialect == "sqlite" else "EXPLAIN"
    found: set[str] = set()
    for statement, parameters in asked:
        if statement.split(None, 1)[0].upper() in {"SELECT", "UPDATE", "DELETE"}:
            plan = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
            found |= set(_SCAN[dialect].findall("\n".join(str(row[-1]) for row in plan)))
    return found & _LARGE


@pytest.mark.timeout(300)
async def test_the_hundred_thousand_and_first_costs_what_the_first_did(fleet: Fleet, tmp_path: Path) -> None:
    issuing = fleet.authority.issuing_ca
    alone = await statements_to_revoke(fleet, "early")
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
    await fleet.database.write(lambda connection: connection.exec_driver_sql("ANALYZE"))
    for number in range(ROUND):
        crowded = await statements_to_revoke(fleet, f"late-{number}")
    assert len(crowded) == len(alone)
    assert await fleet.database.read(lambda connection: scanned(connection, crowded)) == set()

    await publisher.publish()
    assert publisher.current is not None
    assert publisher.delta is not None
    assert (publisher.current.entries, publisher.delta.entries) == (MANY + ROUND, ROUND)
    (tmp_path / "ca.pem").write_bytes(issuing.certificate.public_bytes(Encoding.PEM))
    for crl in (publisher.current.der, publisher.delta.der):
        openssl("crl", "-inform", "DER", "-noout", "-verify", "-CAfile", tmp_path / "ca.pem", data=crl)
    loaded = x509.load_der_x509_crl(publisher.current.der)
    assert len(loaded) == MANY + ROUND
