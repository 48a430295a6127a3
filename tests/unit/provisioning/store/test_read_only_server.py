"""A server that takes no changes any more, and keeps its sessions: a former primary, or one whose settings say so."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store import database as database_module
from provisioning.store.database import Database
from tests.support.postgresql import PostgresqlServer

_SHOW = "SHOW default_transaction_read_only"
_COUNT = "INSERT INTO counters (name, value) VALUES ('{}', 1)"


@pytest.fixture
def url(postgresql: PostgresqlServer) -> Iterator[str]:
    url = postgresql.new_database()
    says(url, "SET default_transaction_read_only = on")
    yield url
    says(url, "RESET default_transaction_read_only")


def says(url: str, setting: str) -> None:
    """Change a setting of the database, for the sessions that are opened from now on."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
        other.execute("SET default_transaction_read_only = off")
        other.execute(f"ALTER DATABASE {url.rpartition('/')[2]} {setting}".encode())


def shown(connection: Connection) -> str:
    return str(connection.exec_driver_sql(_SHOW).scalar_one())


@pytest.mark.parametrize("short", [True, False])
async def test_sessions_that_can_change_nothing_are_left(
    url: str, monkeypatch: pytest.MonkeyPatch, *, short: bool
) -> None:
    database = Database(url)

    async def write(name: str) -> None:
        def insert(connection: Connection) -> None:
            connection.exec_driver_sql(_COUNT.format(name))

        await database.write(insert, short=short)

    try:
        assert await database.read(shown) == await database.look(shown) == "on"
        monkeypatch.setattr(database_module, "_LEAVE_SECONDS", 3600.0)
        for each in ("refused", "refused too"):
            with pytest.raises(Refused) as caught:
                await write(each)
            assert caught.value.code is Code.UNAVAILABLE
        says(url, "RESET default_transaction_read_only")
        monkeypatch.setattr(database_module, "_LEAVE_SECONDS", 0.0)
        await write("done")
        assert not database.write_failed
        assert await database.read(shown) == await database.look(shown) == "off", "the others are left, too"
    finally:
        await database.close()


async def test_who_only_asks_leaves_them_too(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would ever be refused: a feed would go on to read a former primary, where nobody revokes any more."""
    database = Database(url)
    try:
        assert await database.read(shown) == await database.look(shown) == "on"
        says(url, "RESET default_transaction_read_only")
        monkeypatch.setattr(database_module, "_LEAVE_SECONDS", 0.0)
        assert await database.look(shown) == await database.read(shown) == "off"
    finally:
        await database.close()


async def test_they_are_not_left_with_each_refusal(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no server takes changes, reading goes on with the connections that there are."""
    monkeypatch.setattr(database_module, "_LEAVE_SECONDS", 3600.0)
    database = Database(url)
    sessions = set()

    def session(connection: Connection) -> int:
        return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())

    try:
        for number in range(4):
            with pytest.raises(Refused):
                await database.write(
                    lambda connection, number=number: connection.exec_driver_sql(_COUNT.format(number))  # type: ignore[misc]
                )
            sessions.add(await database.look(session))
    finally:
        await database.close()
    assert len(sessions) == 1
