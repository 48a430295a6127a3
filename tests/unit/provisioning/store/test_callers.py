"""What a caller of either store is told, and what is kept of him, when he goes, when it closes, and when he may not."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store import lanes
from provisioning.store.database import Database
from tests.support.postgresql import PostgresqlServer

PATIENCE = 20


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    opened = Database(store_url)
    yield opened
    await opened.close()


def greatest(connection: Connection) -> int:
    return int(connection.execute(text("SELECT max(value) FROM counters")).scalar_one())


def change(connection: Connection) -> None:
    connection.execute(text("UPDATE counters SET value = 9"))


class Held:
    """A work that is under way until it is let go, and then does something else."""

    def __init__(self, then: Callable[[Connection], Any]) -> None:
        self._inside, self._go_on = threading.Event(), threading.Event()
        self._then = then

    def __call__(self, connection: Connection) -> Any:
        self._inside.set()
        assert self._go_on.wait(PATIENCE)
        return self._then(connection)

    async def begun(self) -> None:
        assert await asyncio.to_thread(self._inside.wait, PATIENCE)

    def let_go(self) -> None:
        self._go_on.set()


def fails(connection: Connection) -> None:
    change(connection)
    raise ZeroDivisionError


async def test_of_a_work_that_fails_when_its_caller_has_gone_nothing_is_kept_and_nobody_is_bothered(
    database: Database,
) -> None:
    loop, complaints = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    held = Held(fails)
    caller = asyncio.create_task(database.write(held))
    await held.begun()
    for _ in range(3):  # Whoever cancels may do so again, as anyio does until the task has ended.
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
    held.let_go()
    with pytest.raises(asyncio.CancelledError):
        await caller
    del caller
    assert await database.read(greatest) == 0
    assert complaints == [], "an exception that nobody has heard of"


@pytest.mark.parametrize("ending", ["answered", "failed", "cancelled"])
async def test_whoever_has_had_his_answer_waits_no_more(
    database: Database, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """The queue is bounded: one that was never counted out again would be full one day, and refuse everybody."""
    monkeypatch.setattr(lanes, "_WAITING", 2)
    for _ in range(4):
        held = Held(fails if ending == "failed" else greatest)
        caller = asyncio.create_task(database.write(held))
        await held.begun()
        beside = asyncio.create_task(database.write(greatest))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await database.write(greatest)
        assert refused.value.code is Code.UNAVAILABLE
        if ending == "cancelled":
            caller.cancel()
        held.let_go()
        await asyncio.wait([caller, beside])
        assert beside.result() == 0
        assert caller.cancelled() if ending == "cancelled" else caller.exception() is None or ending == "failed"


async def test_closing_waits_for_who_reads_and_leaves_no_connection_open(store_url: str) -> None:
    opened = Database(store_url)
    held = Held(greatest)
    reading = asyncio.create_task(opened.read(held))
    await held.begun()
    closing = asyncio.create_task(opened.close())
    done, _ = await asyncio.wait([closing], timeout=0.05)
    assert not done
    held.let_go()
    await closing
    assert await reading == 0
    assert not [each for each in threading.enumerate() if each.name.startswith("store-")]
    gc.collect()  # A connection that nobody has closed complains here, and not in another test.


def test_who_reads_for_longer_than_the_event_loop_lives_bothers_nobody(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened, held = Database(sqlite_url), Held(lambda _: None)

    async def ask() -> None:
        opened._reader._submit(held, None, short=False)
        await held.begun()

    with asyncio.Runner() as runner:
        runner.run(ask())
    held.let_go()
    asyncio.run(opened.close())
    assert caplog.records == []


@pytest.mark.parametrize("of", ["table", "schema"])
async def test_who_lacks_a_right_of_postgresql_s_is_refused_as_long_as_he_lacks_it(
    postgresql: PostgresqlServer, of: str
) -> None:
    url = postgresql.new_database()
    opened = Database(url.replace("fleet@", "lacking@", 1))
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as owner:
        owner.execute("CREATE ROLE lacking LOGIN")
        grant, take = "GRANT ALL ON counters TO lacking", "REVOKE ALL ON counters FROM lacking"
        work: Callable[[Connection], Any] = greatest
        if of == "schema":
            grant, take = "GRANT ALL ON SCHEMA public TO lacking", "REVOKE ALL ON SCHEMA public FROM lacking, PUBLIC"

            def work(connection: Connection) -> None:
                connection.execute(text("CREATE TABLE notes (word TEXT)"))

        try:
            owner.execute(take.encode())
            for call in (opened.write(work), opened.write(work, short=True), opened.read(work), opened.look(work)):
                with pytest.raises(Refused, match=r"^UNAVAILABLE: the store cannot be used now; try again$"):
                    await call
            owner.execute(grant.encode())
            await opened.write(work)
        finally:
            await opened.close()
            owner.execute("DROP OWNED BY lacking")
            owner.execute("DROP ROLE lacking")
