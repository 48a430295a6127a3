"""What counts many rows joins tables as wholes, also while PostgreSQL has no statistics: after a restore, say."""

from __future__ import annotations

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.store import devices, inventory
from provisioning.store.certificates import CertificateState
from tests.support.fleet import Fleet, open_fleet
from tests.support.many import fill
from tests.support.postgresql import PostgresqlServer

MANY = 30_000
_ROWS_READ = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'certificates'"
_LOOKED_UP = "SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_xact_user_tables WHERE relname IN (:first, :second)"


async def test_the_devices_that_can_connect_are_not_looked_up_one_by_one(fleet: Fleet) -> None:
    def stand(connection: Connection) -> None:
        fill(connection, fleet.issuer.key_id, MANY, fleet.clock())
        connection.execute(text("UPDATE devices SET revoked_at = NULL WHERE id % 3 > 0"))
        connection.execute(text("DELETE FROM revocations WHERE sequence % 2 = 0"))

    def count(connection: Connection) -> tuple[int, int]:
        found = devices.count_certified(connection, fleet.clock())
        if connection.dialect.name == "sqlite":
            return found, 0
        names = {"first": "certificates", "second": "revocations"}
        assert connection.execute(text("SHOW enable_nestloop")).scalar_one() == "on"
        return found, int(connection.execute(text(_LOOKED_UP), names).scalar_one())

    await fleet.database.write(stand)
    found, looked_up = await fleet.database.read(count)
    assert found == MANY // 3
    assert looked_up < 100


async def test_certificates_are_counted_by_indexes_alone(postgresql: PostgresqlServer) -> None:
    """A row has a kilobyte, its entry in an index 45 bytes. On SQLite every index has the rows' numbers."""

    def count(connection: Connection) -> tuple[dict[CertificateState, int], int, int]:
        # Few rows would be read as a whole, and what a helping process has read is not told in this transaction.
        for setting in ("enable_seqscan = off", "max_parallel_workers_per_gather = 0"):
            connection.execute(text(f"SET LOCAL {setting}"))
        states, certified = inventory.count(connection, now), devices.count_certified(connection, now)
        return states, certified, int(connection.execute(text(_ROWS_READ)).scalar_one())

    with postgresql.database() as url:
        async with open_fleet(url) as fleet:
            now = fleet.clock()

            def stand(connection: Connection) -> None:
                fill(connection, fleet.issuer.key_id, 3000, now)
                connection.execute(text("UPDATE devices SET revoked_at = NULL"))
                connection.execute(text("DELETE FROM revocations WHERE sequence % 3 = 0"))

            await fleet.database.write(stand)
            with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
                other.execute("VACUUM ANALYZE certificates, revocations")  # As the server does now and then.
            states, certified, read = await fleet.database.read(count)
    assert (states[CertificateState.REVOKED], states[CertificateState.ACTIVE]) == (2000, 1000)
    assert certified == 1000
    assert read == 0
