"""A store in which many certificates are revoked already, filled without issuing any of them."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import insert, update
from sqlalchemy.engine import Connection

from provisioning.store.counters import Counter
from provisioning.store.tables import certificates, counters, devices, revocation_events, revocations

FIRST_SERIAL = 1 << 126


def fill(connection: Connection, issuer_key_id: bytes, count: int, now: datetime) -> None:
    """Add *count* devices, each with one certificate, all revoked: for the first *count* places of an empty feed."""
    numbers = range(1, count + 1)
    base = 1_000_000  # Out of the way of rows that the test makes.
    connection.execute(
        insert(devices),
        [
            {"id": base + number, "name": f"gone-{number}", "role": "device", "group_name": "north", "created_at": now,
             "revoked_at": now}
            for number in numbers
        ],
    )  # fmt: skip
    connection.execute(
        insert(certificates),
        [
            {"id": base + number, "issuer_key_id": issuer_key_id.hex(), "serial": f"{FIRST_SERIAL + number:x}",
             "device_id": base + number, "spki_sha256": number.to_bytes(32), "fingerprint_sha256": f"{number:064x}",
             "not_before": now, "not_after": now + timedelta(days=30), "issued_at": now, "der": b"0"}
            for number in numbers
        ],
    )  # fmt: skip
    revoked = [
        {"sequence": number, "certificate_id": base + number, "reason": "superseded", "revoked_at": now,
         "revoked_by": "admin", "kind": "revoked", "occurred_at": now, "actor": "admin"}
        for number in numbers
    ]  # fmt: skip
    for table in (revocations, revocation_events):
        columns = set(table.c.keys())
        connection.execute(insert(table), [{k: v for k, v in row.items() if k in columns} for row in revoked])
    connection.execute(
        update(counters).where(counters.c.name == Counter.REVOCATION.value).values(value=counters.c.value + count)
    )
