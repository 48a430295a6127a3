"""Two versions of the service at one database of PostgreSQL's: one of them has to be gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import psycopg
import pytest
from alembic import command
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.role import Role
from provisioning.store import audit, devices, revocations, schema
from provisioning.store.database import Database
from provisioning.store.revision import CURRENT
from tests.support.postgresql import PostgresqlServer

OWNER = "provisioning"
OLD = "0027"


@pytest.fixture
def url(postgresql: PostgresqlServer) -> Iterator[str]:
    """A founded authority's store of an older version."""
    with postgresql.database("template0") as url:
        asyncio.run(_found(url))
        yield url


async def _found(url: str) -> None:
    def first(connection: Connection) -> None:
        config = schema._configuration()
        config.attributes["connection"] = connection
        command.upgrade(config, OLD)
        audit.begin(connection)
        devices.add(connection, OWNER, Role.SERVICE, None, datetime(2026, 3, 1, tzinfo=UTC))

    async with opened(url) as database:
        await database.write(first)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


def session(url: str, name: str = "") -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("+psycopg", ""), application_name=name, autocommit=True)


def schema_of(administrator: psycopg.Connection[tuple[object, ...]]) -> object:
    row = administrator.execute("SELECT version_num FROM alembic_version").fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("name", ["fleet-provisioning", f"fleet-provisioning {OLD}"])
async def test_a_schema_that_an_older_version_uses_is_not_changed(
    url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(schema, "_PATIENCE_SECONDS", 0.0)
    async with opened(url) as database:
        with session(url, name) as older, session(url) as administrator:
            words = (
                rf"schema {OLD}, older than .* sessions {older.info.backend_pid} from 127\.0\.0\.1\): stop every pro"
            )
            with pytest.raises(ConfigurationError, match=words):
                await schema.upgrade_founded(database, OWNER)
            assert schema_of(administrator) == OLD
        monkeypatch.undo()
        assert await schema.upgrade_founded(database, OWNER), "who is gone is in nobody's way"


async def test_an_older_version_that_is_about_to_end_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = asyncio.Event()
    look = asyncio.sleep

    async def looks_again(seconds: float) -> None:
        looked.set()
        await look(seconds)

    monkeypatch.setattr(schema, "_PATIENCE_SECONDS", 60.0)
    async with opened(url) as database:
        with session(url, "fleet-provisioning") as older:
            monkeypatch.setattr(asyncio, "sleep", looks_again)
            upgrading = asyncio.create_task(schema.upgrade_founded(database, OWNER))
            await looked.wait()
            older.close()
            assert await upgrading


async def test_sessions_of_the_same_version_and_of_others_programs_are_in_nobodys_way(url: str) -> None:
    async with opened(url) as database, opened(url) as beside:
        await beside.read(schema.state)
        with session(url, "psql"), session(url, "fleet-provisioning-backup"):
            assert await schema.upgrade_founded(database, OWNER)


async def check_refused(database: Database, wrong: str) -> None:
    with capture_logs() as said:
        for ask in (database.probe(), database.read(revocations.newest), database.look(revocations.newest)):
            with pytest.raises(Refused) as caught:
                await ask
            assert caught.value.code is Code.UNAVAILABLE
    warnings = [each for each in said if each["event"] == "store cannot be used"]
    assert all(wrong in each["detail"] for each in warnings)
    assert [each["times"] for each in warnings] == [1], "the same words are logged once a minute"


async def test_a_process_does_not_go_on_with_a_schema_that_is_not_its_own(url: str) -> None:
    async with opened(url) as database:
        await schema.upgrade_founded(database, OWNER)
        database.keep_to(CURRENT)
        with session(url) as administrator:
            for schema_there, what in (
                (
                    "0039",
                    (
                        "it is a copy from before it was changed; restart this process, which changes it again, and "
                        "repeat what is lost (docs/backup.md); or it was downgraded on purpose: then stop this process"
                    ),
                ),
                ("9999", "another version has changed it; stop this process, and start the newer version"),
            ):
                administrator.execute("UPDATE alembic_version SET version_num = %s", (schema_there,))
                administrator.execute(
                    "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                await check_refused(database, f"schema {schema_there}, this process is for {CURRENT}: {what}")
            administrator.execute("UPDATE alembic_version SET version_num = %s", (CURRENT,))
        await database.probe()
