"""The feed's numbers on PostgreSQL, two transactions stepped by hand, without the lock that all writers take first.

A sequence of the database's own would give the second number at once: whoever then reads up to it, before the first
transaction commits, misses that one for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from provisioning.store import counters
from provisioning.store.tables import counters as counters_table
from tests.support.postgresql import PostgresqlServer

PATIENCE = 20
_WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = :pid")
_VALUE = select(counters_table.c.value).where(counters_table.c.name == counters.REVOCATION)


@pytest.fixture
def three(postgresql: PostgresqlServer) -> Iterator[list[Connection]]:
    """Two that write, and one that looks."""
    with postgresql.database() as url:
        engine = create_engine(url, poolclass=NullPool, isolation_level="READ COMMITTED")
        with engine.connect() as first, engine.connect() as second, engine.connect() as looks:
            yield [first, second, looks.execution_options(isolation_level="AUTOCOMMIT")]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_the_second_number_is_given_when_the_first_is_seen_or_was_never_taken(
    three: list[Connection], ends: str
) -> None:
    first, second, looks = three
    pid = second.execute(text("SELECT pg_backend_pid()")).scalar_one()
    (one,) = counters.take(first, counters.REVOCATION)
    later = asyncio.create_task(asyncio.to_thread(counters.take, second, counters.REVOCATION))
    async with asyncio.timeout(PATIENCE):
        while not looks.execute(_WAITING, {"pid": pid}).scalar_one():
            await asyncio.sleep(0.01)
        assert not later.done()
        getattr(first.connection.driver_connection, ends)()
        (two,) = await later
    assert (two, looks.execute(_VALUE).scalar_one()) == ((one + 1, one) if ends == "commit" else (one, one - 1))
