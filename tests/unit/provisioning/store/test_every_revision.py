"""A store of each earlier schema, with rows in every table, comes to the present one with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection

from provisioning.enrolment.claims import ClaimOrder, _self_signed
from provisioning.pki.keys import generate_key
from provisioning.store import revision, schema
from provisioning.store.database import Database
from tests.support.postgresql import PostgresqlServer
from tests.support.rows_of_any_schema import RowsOfAnySchema, lost

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DEFINITIONS = {
    "sqlite": "SELECT type, name, sql FROM sqlite_master ORDER BY type, name",
    "postgresql": """
        SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION SELECT 'constraint', conname, conrelid::regclass || ' ' || pg_get_constraintdef(oid)
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION SELECT 'trigger', tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        UNION SELECT 'column', table_name || '.' || column_name,
            concat_ws(' ', ordinal_position, data_type, character_maximum_length, is_nullable, column_default)
            FROM information_schema.columns WHERE table_schema = 'public'
        ORDER BY 1, 2, 3
    """,
}


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Return the URLs of empty databases."""
    if request.param == "sqlite":
        numbers = iter(range(9))
        yield lambda: f"sqlite:///{tmp_path / f'{next(numbers)}.db'}"
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    with server.database("template0") as one, server.database("template0") as other:
        urls = iter([one, other])
        yield lambda: next(urls)


def revisions() -> list[str]:
    """Return the schemas, oldest first."""
    script = ScriptDirectory.from_config(schema._configuration())
    return [each.revision for each in script.walk_revisions()][::-1]


def configuration(connection: Connection) -> Config:
    config = schema._configuration()
    config.attributes["connection"] = connection
    return config


def definitions(connection: Connection) -> list[tuple[object, ...]]:
    """Return what the database has, as it says itself."""
    return [tuple(row) for row in connection.exec_driver_sql(DEFINITIONS[connection.dialect.name])]


async def test_no_row_of_any_earlier_schema_is_lost_and_the_tables_become_what_new_ones_are(
    new_url: Callable[[], str],
) -> None:
    """Each schema gets rows of its own in all of its tables, and those of the schemas before."""
    order = ClaimOrder("batch", "line", 2, timedelta(days=9))
    rows = RowsOfAnySchema(_self_signed(order, generate_key(), NOW).public_bytes(Encoding.DER))

    def upgrade_step_by_step(connection: Connection) -> list[tuple[object, ...]]:
        for each in revisions():
            before = rows.every(connection)
            command.upgrade(configuration(connection), each)
            after = rows.every(connection)
            assert lost(before, after) == [], each
            assert before.keys() <= after.keys()
            if each != revision.CURRENT:
                rows.add(connection)
        assert all(after[each] for each in before), "a row for every table but those that are new"
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        return definitions(connection)

    async def defined(work: Callable[[Connection], list[tuple[object, ...]]], *, new: bool = False) -> list[object]:
        database = Database(new_url())
        if new:
            await schema.upgrade(database)
        found = await database.write(work)
        await database.close()
        return list(found)

    assert await defined(upgrade_step_by_step) == await defined(definitions, new=True)
