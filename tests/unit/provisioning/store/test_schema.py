from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateTable

from provisioning.errors import ConfigurationError, Refused
from provisioning.store import database as database_module
from provisioning.store import schema
from provisioning.store.database import Database
from provisioning.store.tables import metadata


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'fleet.db'}"


async def test_the_migrations_make_exactly_the_tables_that_the_code_uses(url: str) -> None:
    database = Database(url)
    assert await schema.upgrade(database)
    assert not await schema.upgrade(database), "nothing to do the second time"
    differences = await database.write(
        lambda connection: compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True}), metadata
        )
    )
    await database.close()
    assert differences == []


async def test_a_database_of_a_newer_program_is_refused(url: str) -> None:
    database = Database(url)
    await schema.upgrade(database)
    newer = text("UPDATE alembic_version SET version_num = '9999'")
    await database.write(lambda connection: connection.execute(newer))
    with pytest.raises(ConfigurationError, match="schema 9999"):
        await schema.upgrade(database)
    await database.close()


async def test_sqlite_is_set_up_to_keep_what_it_has_committed(url: str) -> None:
    database = Database(url)

    def settings(connection: Connection) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return {name: connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in names}

    for transaction in (database.write, database.read):
        assert await transaction(settings) == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    await database.close()


def change(connection: Connection) -> None:
    connection.execute(text("UPDATE counters SET value = 9"))


def greatest(connection: Connection) -> int:
    return int(connection.execute(text("SELECT max(value) FROM counters")).scalar_one())


async def test_an_exception_undoes_the_transaction(url: str) -> None:
    database = Database(url)
    await schema.upgrade(database)

    def fail(connection: Connection) -> None:
        change(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.write(fail)
    assert await database.read(greatest) == 0
    await database.close()


async def test_who_is_cancelled_waits_for_the_end_of_his_transaction(url: str) -> None:
    database = Database(url)
    await schema.upgrade(database)
    inside, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        change(connection)
        inside.set()
        go_on.wait()

    caller = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(inside.wait)
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await database.read(greatest) == 9, "it had begun, so it was finished"
    await database.close()


async def test_a_store_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'missing' / 'fleet.db'}")
    with pytest.raises(Refused, match="UNAVAILABLE: the store cannot be used now"):
        await database.read(greatest)
    await database.close()


async def test_a_queue_that_is_too_long_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_WAITING", 2)
    database = Database(url)
    await schema.upgrade(database)
    outcomes = await asyncio.gather(*(database.write(greatest) for _ in range(3)), return_exceptions=True)
    assert outcomes[:2] == [0, 0]
    assert isinstance(outcomes[2], Refused)
    await database.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite+aiosqlite:///x", "postgresql://x/y", "nonsense"])
def test_a_database_that_is_not_supported_is_named(url: str) -> None:
    with pytest.raises(ConfigurationError, match="database_url"):
        Database(url)


def test_every_table_can_be_made_on_postgresql() -> None:
    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
