"""A database that the tests use one after another is as new each time, whatever one of them has left behind."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.support.fleet import open_fleet
from tests.support.postgresql import PostgresqlServer


def connected(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def content(url: str) -> tuple[object, ...]:
    """Return all rows, where the sequences are, and the large objects."""
    with connected(url) as session:
        tables = [
            f"{name}" for (name,) in session.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ]
        rows = {name: session.execute(f"TABLE {name}".encode()).fetchall() for name in tables}
        sequences = session.execute("SELECT sequencename, last_value FROM pg_sequences").fetchall()
        objects = session.execute("SELECT FROM pg_largeobject_metadata").fetchall()
    return {name: sorted(map(repr, each)) for name, each in rows.items()}, sorted(sequences), objects


async def test_rows_are_gone_and_those_of_a_new_database_are_back(postgresql: PostgresqlServer) -> None:
    new = content(postgresql.new_database())
    with postgresql.database() as url:
        async with open_fleet(url) as fleet:
            await fleet.enrol()
        with connected(url) as session:
            session.execute("INSERT INTO counters SELECT 'c' || n, n FROM generate_series(1, 5000) AS n")
            session.execute("SELECT lo_create(0)")
        assert content(url) != new
    with postgresql.database() as again:
        assert (again, content(again)) == (url, new)


def test_a_session_that_was_left_behind_is_ended_with_what_it_had_begun(postgresql: PostgresqlServer) -> None:
    with postgresql.database() as url:
        left = psycopg.connect(url.replace("+psycopg", ""))
        left.execute("INSERT INTO counters VALUES ('left', 1)")
    with postgresql.database() as again, connected(again) as session:
        assert again == url
        assert session.execute("SELECT FROM counters WHERE name = 'left'").fetchall() == []
        with pytest.raises(psycopg.OperationalError):
            left.commit()
    left.close()


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "CREATE TABLE more ()",
        "CREATE INDEX more ON certificates (device_id)",
        "ANALYZE counters",
        "VACUUM counters",
        "ALTER DATABASE {} SET work_mem = '1MB'",
    ],
)
def test_what_is_more_than_rows_is_nobody_else_s(postgresql: PostgresqlServer, statement: str) -> None:
    with postgresql.database() as url:
        name = url.rpartition("/")[2]
        with connected(url) as session:
            session.execute(statement.format(name).encode())
    with postgresql.database() as another:
        assert another != url


def test_one_whose_sessions_were_all_ended_is_not_used_again(postgresql: PostgresqlServer) -> None:
    with postgresql.database() as url, connected(url) as session:
        ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        assert session.execute(f"{ended} AND pid <> pg_backend_pid()".encode()).fetchall() == [(True,)]
    with postgresql.database() as another:
        assert another != url
