"""A volume that is full under PostgreSQL's tables: the probe finds out when there is room again, by what it may try."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store import schema
from provisioning.store.database import Database
from tests.support.postgresql import PostgresqlServer
from tests.support.small_volume import full, small_volume

_TEMPORARY = "TEMPORARY ON DATABASE small"
_CREATE = "CREATE ON SCHEMA public"


def execute(url: str, *statements: str) -> None:
    """Execute *statements* as the database's superuser."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def small(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A database that is, or whose tables will be, on a volume of their own, and that volume."""
    tables_alone: bool = request.param
    with small_volume() as volume, PostgresqlServer() as server:
        (volume / "tables").mkdir(mode=0o700)
        server.give(volume)
        execute(
            server.url("postgres"),
            f"CREATE TABLESPACE small LOCATION '{volume / 'tables'}'",
            f"CREATE DATABASE small TEMPLATE template0 TABLESPACE {'pg_default' if tables_alone else 'small'}",
            "ALTER DATABASE small SET default_tablespace = small",
        )
        yield server.url("small"), volume


def need_room(connection: Connection) -> None:
    many = "INSERT INTO group_rooms (group_name, taken) SELECT 'mine-' || n, n FROM generate_series(1, 1000000) AS n"
    connection.execute(text(many))


def need_none(connection: Connection) -> None:
    connection.execute(text("UPDATE devices SET name = name"))


@pytest.mark.parametrize("small", [False, True], indirect=True, ids=["the database", "its tables alone"])
@pytest.mark.parametrize(
    ("lacks", "finds_out"),
    [((), True), ((_CREATE,), True), ((_TEMPORARY,), True), ((_CREATE, _TEMPORARY), False)],
    ids=["may both", "may create no tables", "may create no temporary ones", "may neither"],
)
async def test_the_probe_succeeds_when_a_file_can_grow_if_the_user_may_try_either_way(
    small: tuple[str, Path], lacks: tuple[str, ...], *, finds_out: bool
) -> None:
    url, volume = small
    owner = Database(url)
    await schema.upgrade(owner)
    await owner.close()
    execute(
        url,
        "CREATE ROLE writer LOGIN",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO writer",
        "GRANT CREATE ON TABLESPACE small TO writer",
        *(f"REVOKE {right} FROM PUBLIC" for right in (_CREATE, _TEMPORARY)),
        *(f"GRANT {right} TO writer" for right in (_CREATE, _TEMPORARY) if right not in lacks),
    )
    database = Database(url.replace("fleet@", "writer@"))

    def failed() -> bool:
        return database.write_failed

    try:
        with full(volume):
            with pytest.raises(Refused) as refusal:
                await database.write(need_room)
            assert refusal.value.code is Code.UNAVAILABLE
            await database.write(need_none)
            assert failed()
            if finds_out:
                with pytest.raises(Refused):
                    await database.probe()
                assert failed()
            else:
                await database.probe()
                assert not failed(), "it would be unready for ever"
        await database.probe()
        assert not failed()
    finally:
        await database.close()
    with psycopg.connect(url.replace("+psycopg", "")) as other:
        left = other.execute("SELECT relname FROM pg_class WHERE relname = 'fleet_probe'").fetchall()
    assert left == []
