"""Sessions through PgBouncer, in each of its modes, and at a former primary that has come back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError, Refused
from provisioning.store import announcements, opened_sessions, revocations
from provisioning.store import database as database_module
from provisioning.store.database import Database
from provisioning.store.loop_waits import LoopConnection
from provisioning.store.opened_sessions import settings_of
from provisioning.store.postgresql_group import driver_of
from provisioning.store.usable import usable
from tests.support.notes import PATIENCE
from tests.support.pgbouncer import PgBouncer
from tests.support.postgresql import PostgresqlServer

IGNORING = {"ignore_startup_parameters": "options"}
_WITH_TRANSACTION_TIMEOUT = 17_00_00


@pytest.fixture
def url(postgresql: PostgresqlServer) -> Iterator[str]:
    with postgresql.database() as url:
        yield url


def shown(name: str, connection: Connection) -> str:
    return str(connection.exec_driver_sql(f"SHOW {name}").scalar_one())


@pytest.mark.parametrize("settings", [{}, IGNORING], ids=["as installed", "leaving options out"])
async def test_a_pool_that_keeps_sessions_is_as_good_as_none(
    postgresql: PostgresqlServer, url: str, settings: dict[str, str]
) -> None:
    """PgBouncer refuses our limits when a session is opened, or leaves them out: they are set all the same."""
    wanted = [("geqo", "off")]
    with psycopg.connect(url.replace("+psycopg", "")) as direct:
        if direct.info.server_version >= _WITH_TRANSACTION_TIMEOUT:
            wanted.append(("transaction_timeout", "1h"))
    options = "%20".join(f"-c%20{name}%3D{value}" for name, value in wanted)
    with PgBouncer(postgresql, "session", **settings) as pooler:
        database = Database(f"{pooler.through(url)}?options={options}")
        heard = asyncio.Event()
        listening = asyncio.create_task(announcements.listen(database.url, heard.set))
        try:
            for name, value in (
                ("statement_timeout", "30s"),
                ("lock_timeout", "10s"),
                ("idle_in_transaction_session_timeout", "5s"),
                ("jit", "off"),
                ("TimeZone", "UTC"),
                ("client_min_messages", "warning"),
                *wanted,
            ):
                assert await database.write(lambda connection, name=name: shown(name, connection)) == value  # type: ignore[misc]
            async with asyncio.timeout(PATIENCE):
                await heard.wait()  # It listens.
                heard.clear()
                await database.write(announcements.announce)
                await heard.wait()
        finally:
            listening.cancel()
            await database.close()


@pytest.mark.parametrize("settings", [{}, IGNORING], ids=["as installed", "leaving options out"])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pool_that_shares_sessions_is_refused_with_the_remedy(
    postgresql: PostgresqlServer, url: str, mode: str, settings: dict[str, str]
) -> None:
    with PgBouncer(postgresql, mode, **settings) as pooler:
        database = Database(pooler.through(url))
        try:
            remedy = r"pool_mode=session behind it in pgbouncer\.ini\. See docs/postgresql\.md$"
            with pytest.raises(ConfigurationError, match=remedy), usable(database):
                await database.write(revocations.newest)
        finally:
            await database.close()


async def test_a_pool_that_begins_to_share_sessions_is_left_until_it_keeps_them_again(
    postgresql: PostgresqlServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RELOAD: what was prepared was not there, which ended the service; or nothing was said, and nobody notified."""
    monkeypatch.setattr(database_module, "_LEAVE_SECONDS", 0.0)
    with PgBouncer(postgresql, "session") as pooler:
        database = Database(pooler.through(url))

        async def looked() -> str:
            try:
                return await database.look(lambda connection: shown("statement_timeout", connection))
            except Refused as refusal:
                return str(refusal.__cause__)

        async def becomes(wanted: str) -> None:
            async with asyncio.timeout(PATIENCE):
                while wanted not in await looked():
                    with psycopg.connect(pooler.through(url).replace("+psycopg", "")) as other:
                        other.execute("SELECT")  # In a transaction, for which it gets what was left last.
                        await looked()

        try:
            await becomes("30s")
            pooler.reload(pool_mode="transaction")
            await becomes("pool_mode=session behind it in pgbouncer.ini")
            for ask in (database.write, database.read):
                with pytest.raises(Refused):
                    await ask(revocations.newest)
            pooler.reload(pool_mode="session")
            await becomes("30s")
            await database.write(revocations.newest)
        finally:
            await database.close()


async def test_a_pool_with_one_session_is_refused(
    postgresql: PostgresqlServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each of our connections would wait for the others, for minutes."""
    monkeypatch.setattr(opened_sessions, "_PROBE_SECONDS", 0.2)
    with PgBouncer(postgresql, "session", default_pool_size=1) as pooler:
        database = Database(pooler.through(url))
        try:
            with pytest.raises(ConfigurationError, match=r"Raise pool_size in pgbouncer\.ini\."), usable(database):
                await database.write(revocations.newest)
        finally:
            await database.close()


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("-c lock_timeout=10s  -cjit=off", [("lock_timeout", "10s"), ("jit", "off")]),
        ("--statement-timeout=5s", [("statement_timeout", "5s")]),
        (r"-c search_path=a,\ b -c x.y=c\\d", [("search_path", "a, b"), ("x.y", r"c\d")]),
        ("-c a=b=c endpoint=x", [("a", "b=c")]),
        ("", []),
    ],
)
def test_options_are_read_as_libpq_reads_them(options: str, settings: list[tuple[str, str]]) -> None:
    assert list(settings_of(options)) == settings


async def test_a_server_that_does_not_tell_its_timeline_is_not_compared(url: str) -> None:
    """Some that speak PostgreSQL's protocol have no write-ahead log: the session was left for it, and so each one."""
    with psycopg.connect(url.replace("+psycopg", "")) as administrator:
        administrator.execute(
            "CREATE FUNCTION public.pg_current_wal_lsn() RETURNS pg_lsn LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'not supported here' USING ERRCODE = 'feature_not_supported'; END $$"
        )
    database = Database(url + "?options=-c%20search_path%3Dpublic,pg_catalog")
    assert await database.read(lambda connection: shown("search_path", connection)) == "public"
    await database.close()


@pytest.fixture
def primary() -> Iterator[PostgresqlServer]:
    with PostgresqlServer() as server:
        yield server


@pytest.fixture
def standby(primary: PostgresqlServer) -> Iterator[PostgresqlServer]:
    with PostgresqlServer(standby_of=primary) as server:
        yield server


async def test_the_first_session_elsewhere_is_doubted_and_a_former_primary_that_comes_back_is_refused(
    primary: PostgresqlServer, standby: PostgresqlServer
) -> None:
    database = Database(
        f"postgresql+psycopg://fleet@/postgres?host=127.0.0.1:{primary.port}&host=127.0.0.1:{standby.port}"
        "&target_session_attrs=any"
    )
    reasons: list[str] = []

    async def reached() -> bool:
        try:
            return await database.write(lambda connection: bool(connection.scalar(text("SELECT true"))), short=True)
        except Refused as refusal:
            reasons.append(str(refusal.__cause__))
            return False

    async def becomes_reached() -> None:
        async with asyncio.timeout(PATIENCE):
            while not await reached():
                pass

    async def reading() -> list[int]:
        """Return which sessions are used by those who only read."""
        asked = text("SELECT pg_backend_pid()")
        return [await ask(lambda connection: connection.scalar(asked)) for ask in (database.look, database.read)]

    def moves(driver: LoopConnection) -> None:
        """As when a session is opened elsewhere while the former server is still there."""
        driver.silences.moves += 1

    try:
        assert await reached()
        await reading()
        primary.stop()
        at_standby = await reading()
        assert database.lost_ends.in_doubt, "a standby answers questions, too"
        database.lost_ends.compared(database.lost_ends.doubts)
        standby.promote()
        await becomes_reached()
        assert database.lost_ends.in_doubt, "what the feed has not compared yet may be lost"
        assert not {*at_standby} & {*(before := await reading())}, (
            "a session there does not tell when it is none any more"
        )
        await database.write(lambda connection: moves(driver_of(connection)))
        assert not {*before} & {*await reading()}, "who compares asks the server that is in doubt, not a former one"
        primary.start()
        standby.stop()
        for _ in range(2):
            assert not await reached()
        assert "is a former primary that has come back (timeline 1, this service has used 2)" in reasons[-1]
        primary.stop()
        standby.start()
        await becomes_reached()
    finally:
        await database.close()
