"""A store with a history: long-revoked certificates, inserted directly while the store is closed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import create_engine, insert, text
from sqlalchemy.engine import Connection

from provisioning.store.tables import certificates, devices, revocation_events, revocations

_BASE = 1_000_000_000  # Keeps the history's rows clear of all others.


def add_history(url: str, issuer_key_id: str, count: int) -> None:
    """Insert *count* revoked certificates into the store, which must be closed."""
    now = datetime.now(UTC)
    engine = create_engine(url)
    with engine.begin() as connection:
        for start in range(1, count + 1, 10_000):
            _add_rows(connection, issuer_key_id, range(start, min(start + 10_000, count + 1)), now)
        connection.execute(
            text("UPDATE counters SET value = value + :count WHERE name = 'revocation'"), {"count": count}
        )
    engine.dispose()


def _add_rows(connection: Connection, issuer_key_id: str, numbers: range, now: datetime) -> None:
    rows = [
        {"id": _BASE + n, "name": f"gone-{n}", "role": "device", "group_name": "bench", "created_at": now,
         "revoked_at": now, "issuer_key_id": issuer_key_id, "serial": f"{(1 << 126) + n:x}", "device_id": _BASE + n,
         "spki_sha256": n.to_bytes(32), "fingerprint_sha256": f"{n:064x}", "not_before": now,
         "not_after": now + timedelta(days=30), "issued_at": now, "der": b"0", "sequence": n,
         "certificate_id": _BASE + n, "reason": "superseded", "revoked_by": "admin", "kind": "revoked",
         "occurred_at": now, "actor": "admin"}
        for n in numbers
    ]  # fmt: skip
    for table in (devices, certificates, revocations, revocation_events):
        columns = set(table.c.keys())
        if table in (revocations, revocation_events):
            columns -= {"id"}
        connection.execute(insert(table), [{k: v for k, v in row.items() if k in columns} for row in rows])
