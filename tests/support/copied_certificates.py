"""A device that has very many certificates in a service's store, without issuing any of them."""

from __future__ import annotations

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.support.provisioning import ProvisioningService

_COLUMNS = "issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der"
_COPIES = {
    "sqlite": f"""
INSERT INTO certificates ({_COLUMNS})
WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < :copies)
SELECT issuer_key_id, printf('7%031x', n), device_id, randomblob(32), printf('%064x', n), not_before, not_after,
       issued_at, der
FROM counted CROSS JOIN certificates WHERE device_id = (SELECT id FROM devices WHERE name = :name)
""",  # noqa: S608
    "postgresql": f"""
INSERT INTO certificates ({_COLUMNS})
SELECT issuer_key_id, '7' || lpad(to_hex(n), 31, '0'), device_id, sha256(n::text::bytea), lpad(to_hex(n), 64, '0'),
       not_before, not_after, issued_at, der
FROM generate_series(1, :copies) AS n CROSS JOIN certificates
WHERE device_id = (SELECT id FROM devices WHERE name = :name)
""",  # noqa: S608
}


def copy_certificate(service: ProvisioningService, name: str, copies: int) -> None:
    """Give the device called *name*, which has one certificate, so many more."""
    engine = create_engine(service.database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(_COPIES[engine.dialect.name]), {"copies": copies, "name": name})
