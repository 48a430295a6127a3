"""What a database on PostgreSQL lacks of its schema is named, also what only guards its rows."""

from __future__ import annotations

import subprocess

import psycopg
import pytest

from provisioning.doctor.doctor import _whole
from provisioning.errors import ConfigurationError
from provisioning.store import missing_parts, schema
from provisioning.store.database import Database
from tests.support.fleet import open_fleet
from tests.support.postgresql import PostgresqlServer, binary


def made_by(name: str, url: str) -> str:
    """Return the statement of a dump that makes the constraint or trigger called *name*."""
    dump = [binary("pg_dump"), "--schema-only", url.replace("+psycopg", "")]
    statements = subprocess.run(dump, capture_output=True, text=True, check=True).stdout.split(";\n")
    return next(each for each in statements if f" CONSTRAINT {name} " in each or f"CREATE TRIGGER {name} " in each)


@pytest.mark.parametrize(
    ("statement", "lacks"),
    [
        ("ALTER TABLE host_names DROP CONSTRAINT pk_host_names", "the primary key of host_names (name)"),
        ("ALTER TABLE devices DROP CONSTRAINT uq_devices_name", "the uniqueness of devices (name)"),
        (
            "ALTER TABLE certificates DROP CONSTRAINT uq_certificates_serial_issuer_key_id",
            "the uniqueness of certificates (serial, issuer_key_id)",
        ),
        (
            "ALTER TABLE revocations DROP CONSTRAINT fk_revocations_certificate_id",
            "the reference of revocations (certificate_id)",
        ),
        ("DROP TRIGGER audit_entries_append_only ON audit_entries", "the trigger audit_entries_append_only"),
    ],
)
async def test_what_guards_the_rows_must_be_there(postgresql: PostgresqlServer, statement: str, lacks: str) -> None:
    with postgresql.database() as url:
        async with open_fleet(url) as fleet:
            await fleet.enrol("meter-1")
            assert await fleet.database.read(missing_parts.missing) == []
        again = made_by(statement.partition("CONSTRAINT ")[2] or "audit_entries_append_only", url)
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
            other.execute(statement.encode())
        database = Database(url)
        assert await database.read(missing_parts.missing) == [lacks]
        whole = await database.read(lambda connection: _whole(connection, database))
        is_torn = "TRIGGER" not in statement  # Of the trigger alone doctor says how to make it again.
        assert (whole.check == "tables" and "restore the store" in str(whole.remedy)) is is_torn
        with pytest.raises(ConfigurationError, match="not restored to the end") as refused:
            await schema.upgrade_founded(database, "meter-1")
        assert f" lacks {lacks}: it was " in str(refused.value)
        assert "pg_dump --schema-only of a new store has the statements" in str(refused.value)
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
            other.execute(again.encode())
        await schema.upgrade_founded(database, "meter-1")
        await database.close()
