from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError, Refused
from provisioning.pki.role import Role
from provisioning.store import devices, lanes, missing_parts, revision, schema
from provisioning.store.database import Database
from provisioning.store.every_table import EVERY_TABLE
from tests.support.postgresql import PostgresqlServer


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database: no table yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'fleet.db'}"
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    with server.database("template0") as url:
        yield url


async def test_the_migrations_make_exactly_the_tables_that_the_code_uses(url: str) -> None:
    database = Database(url)
    assert await schema.upgrade(database)
    assert not await schema.upgrade(database), "nothing to do the second time"
    differences = await database.write(
        lambda connection: compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True}), EVERY_TABLE
        )
    )
    await database.close()
    assert differences == []


def test_the_revision_that_is_called_current_is_that_of_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(schema._configuration()).get_current_head() == revision.CURRENT


async def test_a_database_has_no_schema_at_first_and_is_older_at_every_earlier_revision(url: str) -> None:
    database = Database(url)
    assert await database.write(schema.state) is schema.SchemaState.NONE
    await schema.upgrade(database)
    assert await database.write(schema.state) is schema.SchemaState.CURRENT
    for each in ScriptDirectory.from_config(schema._configuration()).walk_revisions():
        note = text("UPDATE alembic_version SET version_num = :it").bindparams(it=each.revision)
        await database.write(partial(Connection.execute, statement=note))
        expected = "current" if each.revision == revision.CURRENT else "older"
        assert await database.write(schema.state) == expected, each.revision
    await database.write(lambda connection: connection.execute(text("DELETE FROM alembic_version")))
    assert await database.write(schema.state) is schema.SchemaState.NONE
    await database.close()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_migration_of_a_large_store_may_take_its_time(url: str) -> None:
    """Otherwise what takes longer than any request may would be undone at every start, and none would succeed."""
    database = Database(url)
    limits = [text(f"SHOW {name}") for name in ("statement_timeout", "idle_in_transaction_session_timeout")]

    def upgrade(connection: Connection) -> list[object]:
        schema._upgrade_and_begin(connection)
        driver: Any = connection.connection.driver_connection
        return [*(connection.scalar(limit) for limit in limits), driver.patient]

    assert await database.write(upgrade) == ["0", "0", True]
    assert await database.write(upgrade) == ["30s", "5s", False], "nothing was left to do"
    await database.close()


async def test_an_upgrade_that_fails_at_its_last_step_leaves_the_store_as_it_was(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the definitions that SQLite's migrations change by hand; and the next start succeeds."""

    def at_0021(connection: Connection) -> None:
        configuration = schema._configuration()
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "0021")

    def tables(connection: Connection) -> list[str]:
        if connection.dialect.name == "sqlite":
            found = "SELECT name || sql FROM sqlite_master WHERE sql IS NOT NULL"
        else:
            found = """
                SELECT table_name || column_name || data_type || is_nullable FROM information_schema.columns
                WHERE table_schema = 'public' UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
            """
        return sorted(connection.execute(text(found)).scalars())

    database = Database(url)
    await database.write(at_0021)
    before, upgrade = await database.read(tables), command.upgrade

    def fails(*arguments: object) -> None:
        upgrade(*arguments)  # type: ignore[arg-type]
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", fails)
        with pytest.raises(ZeroDivisionError):
            await schema.upgrade(database)
    assert await database.read(tables) == before
    assert await database.read(schema._revision) == "0021"
    assert await schema.upgrade(database)
    assert await database.read(missing_parts.missing) == []
    await database.close()


@pytest.mark.parametrize("url", ["fleet:secret@db.example.org/fleet", "db.example.org/fleet?user=a&password=secret"])
async def test_what_is_said_of_a_database_has_no_password(url: str) -> None:
    database = Database(f"postgresql+psycopg://{url}")
    assert "secret" not in database.shown_url
    assert "db.example.org/fleet" in database.shown_url
    await database.close()


async def test_no_store_takes_the_place_of_a_founded_one(url: str, tmp_path: Path) -> None:
    database = Database(url)
    with pytest.raises(ConfigurationError, match=r"no records of this authority|is not there: if it is on PostgreSQL"):
        await schema.upgrade_founded(database, "provisioning")
    assert os.listdir(tmp_path) == [], "nothing was made"  # noqa: PTH208 - no async path here
    assert await database.write(schema.state) is schema.SchemaState.NONE
    with pytest.raises(ConfigurationError, match="no records of this authority"):
        await schema.upgrade_founded(database, "provisioning")
    assert await database.write(schema.state) is schema.SchemaState.NONE
    await schema.upgrade(database)
    with pytest.raises(ConfigurationError, match="no records of this authority"):
        await schema.upgrade_founded(database, "provisioning")
    now = datetime(2026, 3, 1, tzinfo=UTC)
    await database.write(lambda connection: devices.add(connection, "provisioning", Role.SERVICE, None, now))
    assert not await schema.upgrade_founded(database, "provisioning")
    await database.close()


async def test_who_only_looks_is_told_what_the_schema_is_and_changes_nothing(url: str) -> None:
    database = Database(url)

    def said(check: Callable[[Connection, Database], None]) -> Callable[[Connection], str]:
        def look(connection: Connection) -> str:
            try:
                check(connection, database)
            except ConfigurationError as error:
                return str(error)
            return ""

        return look

    if database.url.get_backend_name() == "sqlite":
        await database.write(lambda connection: connection.execute(text("CREATE TABLE something (x INTEGER)")))
    for check in (schema.check_current, schema.check_has_audit_log):
        assert "holds no records" in await database.read(said(check))

    def first(connection: Connection) -> None:
        config = schema._configuration()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")

    await database.write(first)
    assert "schema 0001, older than this version's" in await database.read(said(schema.check_current))
    assert "schema 0001, from before there was an audit log" in await database.read(said(schema.check_has_audit_log))
    assert await database.read(schema.state) is schema.SchemaState.OLDER
    await schema.upgrade(database)
    assert [await database.read(said(each)) for each in (schema.check_current, schema.check_has_audit_log)] == ["", ""]
    note = text("UPDATE alembic_version SET version_num = '9999'")
    await database.write(lambda connection: connection.execute(note))
    refusal = await database.read(said(schema.check_current))
    assert "install the newer version again, or, to go back, restore the copy of before the upgrade" in refusal
    await database.close()


async def test_a_database_of_a_newer_program_is_refused(url: str) -> None:
    database = Database(url)
    await schema.upgrade(database)
    newer = text("UPDATE alembic_version SET version_num = '9999'")
    await database.write(lambda connection: connection.execute(newer))
    with pytest.raises(ConfigurationError, match="schema 9999"):
        await schema.upgrade(database)
    await database.close()


async def test_processes_that_start_at_once_migrate_once(postgresql: PostgresqlServer) -> None:
    url = postgresql.new_database(template="template0")
    databases = [Database(url) for _ in range(3)]
    changed = await asyncio.gather(*(schema.upgrade(each) for each in databases))
    assert sorted(changed) == [False, False, True]
    for each in databases:
        await each.close()


async def test_sqlite_is_set_up_to_keep_what_it_has_committed(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")

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


@pytest.mark.parametrize("url", ["sqlite:////nowhere/fleet.db", "postgresql+psycopg://secret@127.0.0.1:1/fleet"])
async def test_a_store_that_cannot_be_used_is_unavailable_and_strangers_are_not_told_why(url: str) -> None:
    database = Database(url)
    with pytest.raises(Refused, match=r"^UNAVAILABLE: the store cannot be used now; try again$"):
        await database.read(greatest)
    await database.close()


async def test_a_queue_that_is_too_long_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_WAITING", 2)
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


@pytest.mark.parametrize("url", ["postgresql+psycopg://fleet:hush/fleet", "postgresql+psycopg://fleet:hush@db:x/fleet"])
def test_a_port_that_is_no_number_is_said_without_it(url: str) -> None:
    """It may be a password: the host was forgotten. It was in a traceback."""
    with pytest.raises(ConfigurationError, match=r"^database_url: .* as the port, .* is no number") as refused:
        Database(url)
    assert "hush" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+psycopg://fleet:a/b@c@db/fleet", "write @ as %40"),
        ("postgresql+psycopg://fleet:hush@db/fleet?sslmod=require", "invalid connection option .sslmod."),
    ],
)
def test_a_url_that_libpq_would_not_read_as_it_was_meant_is_refused_before_it_is_asked(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^database_url.*{said}") as refused:
        Database(url)
    assert "hush" not in str(refused.value)
    assert "c@db" not in str(refused.value), "the end of a password"


def test_a_password_and_a_socket_that_a_url_can_name_are_taken() -> None:
    for url in ("postgresql+psycopg://fleet:a%2Fb%40c@db/fleet", "postgresql+psycopg://fleet@/fleet?host=@abstract"):
        assert Database(url).url.username == "fleet"


def test_without_the_driver_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"in the clone, \.venv/bin/pip install -e '\.\[postgres\]'$"):
        Database("postgresql+psycopg://127.0.0.1/fleet")
