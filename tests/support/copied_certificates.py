"""Gives a device very many certificates in a service's store without issuing any of them."""

from __future__ import annotations

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.support.provisioning import ProvisioningService

_COLUMNS = "issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der"
_COPIES = {
    "sqlite": f"""
INSERT INTO certificates ({_COLUMNS})
WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < :copies)
SELECT issuer_key_id, printf('7%031x', n), device_id, {{key}}, printf('%064x', n), not_before, not_after,
       issued_at, der
FROM counted CROSS JOIN certificates WHERE device_id = (SELECT id FROM devices WHERE name = :name)
""",
    "postgresql": f"""
INSERT INTO certificates ({_COLUMNS})
SELECT issuer_key_id, '7' || lpad(to_hex(n), 31, '0'), device_id, {{key}}, lpad(to_hex(n), 64, '0'),
       not_before, not_after, issued_at, der
FROM generate_series(1, :copies) AS n CROSS JOIN certificates
WHERE device_id = (SELECT id FROM devices WHERE name = :name)
""",
}


_KEYS = {"sqlite": "randomblob(32)", "postgresql": "sha256(n::text::bytea)"}


def copy_certificate(service: ProvisioningService, name: str, copies: int, *, same_key: bool = False) -> None:
    """Give the device *name*, which has one certificate, *copies* more: for keys of their own, or for the same one."""
    engine = create_engine(service.database_url, poolclass=NullPool)
    key = "spki_sha256" if same_key else _KEYS[engine.dialect.name]
    with engine.begin() as connection:
        copied = text(_COPIES[engine.dialect.name].format(key=key))
        connection.execute(copied, {"copies": copies, "name": name})


def serial_of_copy(number: int) -> str:
    """Return the serial number of a copy; they are counted from 1."""
    return f"7{number:031x}"
