"""What counts many rows joins tables as wholes, also while PostgreSQL has no statistics: after a restore, say."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.store import devices
from tests.support.fleet import Fleet
from tests.support.many import fill

MANY = 30_000
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
