"""Holds of an earlier version, which did not say whose they were, when its store is upgraded."""

from __future__ import annotations

from alembic import command
from sqlalchemy import select, text
from sqlalchemy.engine import Connection

from provisioning.store import schema, tables
from provisioning.store.database import Database

BEFORE = """
INSERT INTO claims (id, name, group_name, fingerprint_sha256, der, maximum_devices, trial_seconds, created_at,
                    created_by, expires_at)
    VALUES (1, 'batch', 'line', 'c', CAST('c' AS {blob}), 9, 3600, '2026-01-01 00:00:00', 'admin',
            '2027-01-01 00:00:00');
INSERT INTO devices (id, name, role, created_at, suspended_at) VALUES
    (1, 'active', 'device', '2026-01-01 00:00:00', NULL),
    (2, 'suspended', 'device', '2026-01-01 00:00:00', '2026-02-01 10:00:00.500000');
INSERT INTO certificates
    (id, issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der)
    SELECT number, 'aa', 's' || number, CASE WHEN number > 3 THEN 2 ELSE 1 END, CAST('k' AS {blob}), 'f' || number,
           '2026-01-01 00:00:00', '2027-01-01 00:00:00', '2026-01-01 00:00:00', CAST('0' AS {blob})
    FROM (SELECT 1 AS number UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5) AS numbers;
INSERT INTO activations (certificate_id, claim_id, device_id, expires_at) VALUES (2, 1, 1, '2026-01-01 01:00:00');
INSERT INTO revocations (sequence, certificate_id, reason, revoked_at, revoked_by) VALUES
    (1, 1, 'certificateHold', '2026-01-02 00:00:00', 'anna'),
    (2, 2, 'certificateHold', '2026-01-02 00:00:00', 'claim'),
    (3, 3, 'keyCompromise', '2026-01-02 00:00:00', 'anna'),
    (4, 4, 'certificateHold', '2026-02-01 09:59:59', 'anna'),
    (5, 5, 'certificateHold', '2026-02-01 10:00:00', 'berta')
"""


async def test_a_hold_that_its_device_s_suspension_does_not_explain_is_the_certificate_s_own(store_url: str) -> None:
    """It stays when the device is resumed. A trial's is nobody's, and one that began with the device's is only that."""
    database = Database(store_url)

    def back_and_forth(connection: Connection) -> dict[int, bool]:
        configuration = schema._configuration()
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, "0039")
        blob = "BLOB" if connection.dialect.name == "sqlite" else "BYTEA"
        for statement in BEFORE.format(blob=blob).split(";"):
            connection.execute(text(statement))
        command.upgrade(configuration, "0040")
        rows = connection.execute(select(tables.revocations.c.certificate_id, tables.revocations.c.by_itself))
        return {row[0]: row[1] for row in rows}

    by_itself = await database.write(back_and_forth)
    await database.close()
    assert by_itself == {1: True, 2: False, 3: False, 4: True, 5: False}
