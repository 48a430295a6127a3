"""The busiest rows on PostgreSQL, after a transaction elsewhere has kept all of their former versions."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import psycopg
from sqlalchemy.engine import Connection

from provisioning.store import audit, schema
from provisioning.store.audit import Action
from provisioning.store.database import Database
from tests.support.postgresql import PostgresqlServer

KEY = b"k" * 32
MANY = 3000
_OFTEN = "DO $$BEGIN FOR each IN 1..{} LOOP UPDATE audit_head SET number = number; END LOOP; END$$"
_SCANS = "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'audit_head'"


async def test_the_log_s_end_is_not_searched_for_among_former_ones(postgresql: PostgresqlServer) -> None:
    """They are gone, but the pages are not: the only row is on the last one."""
    url = postgresql.new_database()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
        other.execute(_OFTEN.format(MANY).encode())
        other.execute("VACUUM audit_head")
    database = Database(url, KEY)
    try:

        def log(connection: Connection) -> int:
            before = int(connection.exec_driver_sql(_SCANS).scalar_one())
            audit.append(connection, datetime.now(UTC), "admin", Action.REVOKED, "meter-1", {})
            audit.append(connection, datetime.now(UTC), "admin", Action.REVOKED, "meter-2", {})
            return int(connection.exec_driver_sql(_SCANS).scalar_one()) - before

        assert await database.write(log) == 0
    finally:
        await database.close()


async def test_former_versions_that_are_kept_are_counted(postgresql: PostgresqlServer) -> None:
    url = postgresql.new_database()
    database = Database(url, KEY)
    try:
        assert await database.read(schema.former_rows) < MANY // 2
        with psycopg.connect(url.replace("+psycopg", "")) as other:
            other.execute(_OFTEN.format(MANY).encode())
        async with asyncio.timeout(60):  # The server reports what a session has done when that ends.
            while await database.read(schema.former_rows) < MANY // 2:
                await asyncio.sleep(0.05)
    finally:
        await database.close()
