from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from provisioning.errors import ConfigurationError
from provisioning.store import schema
from provisioning.store.database import Database
from provisioning.store.tables import metadata


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'fleet.db'}"


async def test_the_migrations_make_exactly_the_tables_that_the_code_uses(url: str) -> None:
    database = Database(url)
    assert await schema.upgrade(database)
    assert not await schema.upgrade(database), "nothing to do the second time"
    async with database.write() as connection:
        differences = await connection.run_sync(
            lambda synchronous: compare_metadata(
                MigrationContext.configure(synchronous, opts={"compare_type": True}), metadata
            )
        )
    await database.close()
    assert differences == []


async def test_a_database_of_a_newer_program_is_refused(url: str) -> None:
    database = Database(url)
    await schema.upgrade(database)
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="schema 9999"):
        await schema.upgrade(database)
    await database.close()


async def test_sqlite_is_set_up_to_keep_what_it_has_committed(url: str) -> None:
    database = Database(url)
    for transaction in (database.write, database.read):
        async with transaction() as connection:
            found = {
                name: (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
        assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    await database.close()


async def test_an_exception_undoes_the_transaction(url: str) -> None:
    database = Database(url)
    await schema.upgrade(database)
    with contextlib.suppress(ZeroDivisionError):
        async with database.write() as connection:
            await connection.execute(text("UPDATE counters SET value = 9"))
            raise ZeroDivisionError
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT max(value) FROM counters"))).scalar_one() == 0
    await database.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite:///x", "postgresql://x/y"])
def test_a_database_that_is_not_supported_is_named(url: str) -> None:
    with pytest.raises(ConfigurationError, match="database_url begins with"):
        Database(url)


def test_every_table_can_be_made_on_postgresql() -> None:
    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
