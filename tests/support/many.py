"""A store in which many certificates are already revoked, filled without issuing any of them."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import bindparam, text, update
from sqlalchemy.engine import Connection

from provisioning.store.counters import REVOCATION
from provisioning.store.tables import counters
from provisioning.store.utc_date_time import UtcDateTime

FIRST_SERIAL = 1 << 126


_BASE = 1_000_000
"""Keeps clear of rows that the test creates."""

_DEVICES = """
INSERT INTO devices (id, name, role, group_name, created_at, revoked_at)
SELECT {base} + n, 'gone-' || n, 'device', 'north', :now, :now FROM numbers
"""
_CERTIFICATES = """
INSERT INTO certificates (id, issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after,
                          issued_at, der)
SELECT {base} + n, :issuer, '{prefix}' || {hex}, {base} + n, :key, '{prefix}{prefix}' || {hex} || '{pad}', :now, :later,
       :now, :key
FROM numbers
"""
_REVOCATIONS = """
INSERT INTO revocations (sequence, certificate_id, reason, revoked_at, revoked_by)
SELECT n, {base} + n, 'superseded', :now, 'admin' FROM numbers
"""
_EVENTS = """
INSERT INTO revocation_events (sequence, certificate_id, kind, reason, occurred_at, actor)
SELECT n, {base} + n, 'revoked', 'superseded', :now, 'admin' FROM numbers
"""
_NUMBERS = {
    "sqlite": "(WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < {count}) "
    "SELECT n FROM counted)",
    "postgresql": "generate_series(1, {count}) AS n",
}
_HEX = {"sqlite": "printf('%08x', n)", "postgresql": "lpad(to_hex(n), 8, '0')"}


def fill(connection: Connection, issuer_key_id: bytes, count: int, now: datetime) -> None:
    """Add *count* devices, each with one certificate, all revoked: for the first *count* places of an empty feed."""
    dialect = connection.dialect.name
    parts = {"base": _BASE, "prefix": f"{FIRST_SERIAL:x}"[:24], "pad": "0" * 8, "hex": _HEX[dialect]}
    values = {"now": now, "later": now + timedelta(days=30), "issuer": issuer_key_id.hex(), "key": b"0"}
    if dialect == "postgresql":  # Foreign keys are not checked: they are correct, and checking is half of the work.
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
    for statement in (_DEVICES, _CERTIFICATES, _REVOCATIONS, _EVENTS):
        sql = statement.format(**parts).replace("numbers", _NUMBERS[dialect].format(count=count))
        used = {name: value for name, value in values.items() if f":{name}" in sql}
        times = [bindparam(name, type_=UtcDateTime()) for name in ("now", "later") if name in used]
        connection.execute(text(sql).bindparams(*times), used)
    if dialect == "postgresql":
        connection.exec_driver_sql("SET LOCAL session_replication_role = origin")
    connection.execute(update(counters).where(counters.c.name == REVOCATION).values(value=counters.c.value + count))
