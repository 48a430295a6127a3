"""What connections to PostgreSQL are opened with, and that several servers may be named."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from sqlalchemy.engine import URL, Connection, make_url

from provisioning.errors import Code, Refused
from provisioning.store import announcements
from provisioning.store.database import Database
from provisioning.store.postgresql_group import driver_of
from tests.support.postgresql import PostgresqlServer

PATIENCE = 20
NAMES = ("statement_timeout", "lock_timeout", "tcp_user_timeout", "search_path", "idle_in_transaction_session_timeout")
WATCHED = {"tcp_user_timeout": "20000", "keepalives_idle": "5", "keepalives_interval": "5", "keepalives_count": "4"}


@asynccontextmanager
async def opened(url: URL) -> AsyncIterator[Database]:
    database = Database(url.render_as_string(hide_password=False))
    try:
        yield database
    finally:
        await database.close()


def limits(connection: Connection) -> tuple[str | dict[str, str], ...]:
    """Return what the server has been told, and how the connection is watched."""
    told = [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in NAMES]
    return (*told, driver_of(connection).info.get_parameters())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", ("30s", "10s", "5000", "public")),
        ("-c search_path=elsewhere", ("30s", "10s", "5000", "elsewhere")),
        ("-c lock_timeout=3s", ("30s", "3s", "5000", "public")),
        ("-c idle_in_transaction_session_timeout=7s", ("30s", "10s", "5000", "public")),
    ],
)
async def test_no_connection_waits_without_an_end_whatever_its_url_says_besides(
    postgresql: PostgresqlServer, options: str, expected: tuple[str, ...]
) -> None:
    with postgresql.database() as url:
        asked = make_url(url).update_query_dict({"options": options} if options else {})
        async with opened(asked) as database:
            for ask, rest in ((database.write, "5s"), (database.look, "5s"), (database.read, "1min")):
                *told, resting, parameters = await ask(limits)
                assert tuple(told) == expected
                assert resting == ("7s" if "idle" in options else rest)
                assert isinstance(parameters, dict)
                assert parameters.items() >= WATCHED.items()


async def test_tables_of_another_schema_which_comes_first_hide_none_of_the_store_s(
    postgresql: PostgresqlServer,
) -> None:
    """A copy for a closer look, in a schema called like the user: the service read it, without its revocations."""
    whose = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'revocations'::regclass"

    def found(connection: Connection) -> str:
        return str(connection.exec_driver_sql(whose).scalar_one())

    with (
        postgresql.database() as url,
        psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as administrator,
    ):
        async with opened(make_url(url)) as running, opened(make_url(url)) as started:
            assert await running.read(found) == "public"
            try:
                administrator.execute("CREATE SCHEMA fleet")
                administrator.execute("CREATE TABLE fleet.revocations (LIKE public.revocations)")
                assert administrator.execute(whose.encode()).fetchone() == ("fleet",)
                for database in (running, started):
                    assert {await ask(found) for ask in (database.read, database.look, database.write)} == {"public"}
            finally:
                administrator.execute("DROP SCHEMA fleet CASCADE")


@pytest.mark.parametrize(
    ("of_the_database", "of_the_url", "counts"),
    [("off", "", "on"), ("local", "", "local"), ("remote_apply", "", "remote_apply"), ("on", "off", "off")],
)
async def test_what_is_answered_is_on_disk_unless_the_url_says_otherwise(
    postgresql: PostgresqlServer, of_the_database: str, of_the_url: str, counts: str
) -> None:
    def found(connection: Connection) -> str:
        return str(connection.exec_driver_sql("SHOW synchronous_commit").scalar_one())

    with postgresql.database() as url:
        asked = make_url(url)
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as administrator:
            administrator.execute(
                f"ALTER DATABASE {asked.database} SET synchronous_commit = {of_the_database}".encode()
            )
        if of_the_url:
            asked = asked.update_query_dict({"options": f"-c synchronous_commit={of_the_url}"})
        async with opened(asked) as database:
            assert await database.write(found) == counts


async def test_a_connection_on_which_that_cannot_be_said_writes_nothing_nor_reads_what_is_hidden(
    postgresql: PostgresqlServer,
) -> None:
    """Where an administrator has taken the right to ask for it away, and the database's own setting forgets.

    Or has put a policy on a table.
    """

    def found(connection: Connection) -> tuple[str, ...]:
        asked = ("synchronous_commit", "idle_in_transaction_session_timeout")
        return tuple(connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in asked)

    def ends(connection: Connection) -> int:
        return int(connection.exec_driver_sql("SELECT count(*) FROM ends").scalar_one())

    with postgresql.database(template="template0") as url:
        asked = make_url(url)
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as administrator:

            def say(statement: str) -> None:
                administrator.execute(statement.encode())

            say("CREATE ROLE restricted LOGIN")
            say(f"ALTER DATABASE {asked.database} SET synchronous_commit = off")
            say("REVOKE SELECT ON pg_settings FROM PUBLIC")
            try:
                async with opened(asked.set(username="restricted")) as database:
                    for _ in range(2):
                        with pytest.raises(Refused) as refusal:
                            await database.write(found)
                        assert refusal.value.code is Code.UNAVAILABLE
                    say("GRANT SELECT ON pg_settings TO PUBLIC")
                    assert await database.write(found) == ("on", "5s")
                    say("CREATE TABLE ends AS SELECT 1 AS id")
                    say("GRANT SELECT ON ends TO PUBLIC")
                    assert await database.read(ends) == 1
                    say("ALTER TABLE ends ENABLE ROW LEVEL SECURITY")
                    for ask in (database.read, database.look, database.write):
                        with pytest.raises(Refused) as refusal:  # And not 0: nobody would be revoked.
                            await ask(ends)
                        assert refusal.value.code is Code.UNAVAILABLE
            finally:
                say("DROP ROLE restricted")


async def test_the_one_of_several_servers_that_takes_changes_is_used_and_listened_to(
    postgresql: PostgresqlServer,
) -> None:
    with postgresql.database() as url, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{port}" for port in (nobody.getsockname()[1], make_url(url).port)]
        both = make_url(url).set(host=None, port=None)
        both = both.update_query_dict({"host": hosts, "target_session_attrs": "read-write"})
        heard = asyncio.Event()
        async with opened(both) as database:
            listening = asyncio.create_task(announcements.listen(database.url, heard.set))
            async with asyncio.timeout(PATIENCE):
                await heard.wait()
                heard.clear()
                await database.write(announcements.announce)
                await heard.wait()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
