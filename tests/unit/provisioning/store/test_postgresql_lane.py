"""PostgreSQL's writer and looks, in a thread or on the event loop: the same outcome, and the loop is never held up."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import nullcontext, suppress

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from provisioning.api.health import Readiness
from provisioning.errors import Code, Refused
from provisioning.store import database as database_module
from provisioning.store import engines, kept_connection, loop_waits, postgresql_lane
from provisioning.store.database import Database
from provisioning.store.kept_connection import KeptConnection
from provisioning.store.postgresql_group import _WRITERS, SharedTransaction, driver_of
from provisioning.store.revision import SESSION_NAME
from tests.support.notes import HERE, NOTES, PATIENCE, lock, note, noted, somebody_else, thread_of, with_notes
from tests.support.postgresql import PostgresqlServer
from tests.support.requests import NOON


async def test_short_works_run_on_the_event_loop_and_others_do_not(database: Database) -> None:
    assert await asyncio.gather(*(database.write(thread_of, short=True) for _ in range(3))) == [HERE] * 3
    assert await database.write(thread_of) != HERE
    assert await database.write(thread_of, short=True) == HERE
    works = [database.write(thread_of, short=short) for short in (True, False, True)]
    first, long, _ = await asyncio.gather(*works)
    assert (first, long != HERE) == (HERE, True), "though it came behind a short one"


async def test_the_first_connection_is_not_opened_on_the_event_loop(postgresql: PostgresqlServer) -> None:
    with postgresql.database() as url:
        opened = Database(url)
        assert await opened.write(thread_of, short=True) != HERE
        assert await opened.write(thread_of, short=True) == HERE
        await opened.close()


async def test_a_connection_that_could_not_be_set_to_keep_commits_is_not_used(
    postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    """The server's own setting is to forget the last ones if it is killed."""

    def kept(connection: Connection) -> str:
        setting: str = connection.execute(text("SHOW synchronous_commit")).scalar_one()
        return setting

    with postgresql.database() as url:
        opened = Database(url)
        with monkeypatch.context() as patched:
            patched.setattr(kept_connection, "WRITERS_DURABILITY", "SELECT no_such_function()")
            with pytest.raises(ProgrammingError):
                await opened.write(kept, short=short)
        assert await opened.read(kept) == "off"
        assert await opened.write(kept, short=short) == "on"
        await opened.close()


async def test_works_run_in_the_order_in_which_they_came_wherever_they_run(database: Database) -> None:
    seen: list[int] = []
    await asyncio.gather(
        *(
            database.write(lambda _, number=number: seen.append(number), short=number % 3 > 0)  # type: ignore[misc]
            for number in range(10)
        )
    )
    assert seen == list(range(10))


async def test_the_event_loop_goes_on_while_the_server_has_a_lock_that_is_another_programs(database: Database) -> None:
    with lock(database):
        waiting = asyncio.create_task(database.write(thread_of, short=True))
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert not waiting.done()
        assert await database.look(noted) == set()
    assert await waiting == HERE


async def test_who_waits_for_another_process_longer_than_he_may_is_refused_and_the_next_is_not(
    postgresql: PostgresqlServer, short: bool
) -> None:
    with postgresql.database(more=NOTES) as url:
        opened = Database(f"{url}?options=-c%20lock_timeout%3D100ms")
        await opened.write(noted)
        with psycopg.connect(url.replace("+psycopg", "")) as other:
            other.execute(f"SELECT pg_advisory_xact_lock({_WRITERS})".encode())
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(Refused) as refusal:
                    await opened.write(lambda c: note(c, "a"), short=short)
        assert refusal.value.code is Code.UNAVAILABLE
        async with asyncio.timeout(PATIENCE):
            assert await opened.write(lambda c: note(c, "b"), short=short) == "b"
        assert await opened.look(noted) == {"b"}
        await opened.close()


async def test_a_transaction_that_does_not_end_is_late(
    database: Database, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_LATE_SECONDS", 0.02)
    await database.write(lambda c: note(c, "a"), short=short)
    late = [database.write_is_late]
    readiness = Readiness(database, dict, list, {}, lambda: NOON)
    with lock(database):
        waiting = asyncio.create_task(database.write(lambda c: note(c, "b"), short=short))
        async with asyncio.timeout(PATIENCE):
            while not database.write_is_late:
                await asyncio.sleep(0.01)
        assert await readiness.checks()["store"]() == "slow"
        assert database._writer.seconds_at_work() < PATIENCE, "since it began, and not since the machine did"
    assert await waiting == "b"
    assert [*late, database.write_is_late] == [False, False], "nothing is to be written"


async def test_who_is_cut_off_whenever_a_transaction_begins_is_refused_and_goes_on_when_that_is_over(
    database: Database, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept connection may have broken while it rested, so another is tried; a new one has not."""
    begun: list[None] = []
    with somebody_else(database) as other, monkeypatch.context() as patched:
        begin = SharedTransaction.begin

        def cut_off(transaction: SharedTransaction) -> None:
            pid = driver_of(transaction._connection).info.backend_pid
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            begun.append(None)
            begin(transaction)

        patched.setattr(SharedTransaction, "begin", cut_off)
        async with asyncio.timeout(PATIENCE):
            for tries in (2, 3):
                with pytest.raises(Refused) as refusal:
                    await database.write(lambda c: note(c, "a"), short=short)
                assert refusal.value.code is Code.UNAVAILABLE
                assert len(begun) == tries
    async with asyncio.timeout(PATIENCE):
        assert await database.write(lambda c: note(c, "b"), short=short) == "b"
    assert await database.look(noted) == {"b"}


@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.usefixtures("patient")
async def test_a_work_that_is_undone_does_not_give_the_writers_lock_away(
    database: Database, short: bool, contended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[bool] = []
    begin = SharedTransaction.begin

    def begun(transaction: SharedTransaction) -> None:
        begin(transaction)
        alone.append(transaction.alone)

    monkeypatch.setattr(SharedTransaction, "begin", begun)

    def fails(connection: Connection) -> None:
        note(connection, "a")
        raise ZeroDivisionError

    def held(connection: Connection) -> int:
        mine = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()"
        count: int = connection.execute(text(mine)).scalar_one()
        return count

    with lock(database) if contended else nullcontext():
        waiting = [asyncio.create_task(database.write(work, short=short)) for work in (fails, held, fails, held)]
        await asyncio.sleep(0.05)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in outcomes] == [ZeroDivisionError, int] * 2
    assert outcomes[1::2] == [1, 1]
    assert alone == [not contended]
    assert await database.look(noted) == set()


async def test_a_group_is_short_for_a_while_after_another_process_was_in_the_way(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_lane, "_ALONE_SECONDS", PATIENCE)
    monkeypatch.setattr(postgresql_lane, "_GROUP_SECONDS", 0.0)
    monkeypatch.setattr(postgresql_lane, "_LONGEST_GROUP_SECONDS", 0.0)
    begun: list[None] = []
    begin = SharedTransaction.begin
    monkeypatch.setattr(SharedTransaction, "begin", lambda transaction: begun.append(begin(transaction)))

    async def transactions_of_three() -> int:
        begun.clear()
        await asyncio.gather(*(database.write(thread_of, short=True) for _ in range(3)))
        return len(begun)

    assert await transactions_of_three() == 1
    with lock(database):
        waiting = asyncio.create_task(database.write(thread_of, short=True))
        await asyncio.sleep(0.05)
    await waiting
    assert await transactions_of_three() == 3
    database._writer._crowded_until = 0.0  # type: ignore[attr-defined]
    assert await transactions_of_three() == 1


async def test_other_events_are_served_between_the_steps_of_works_that_go_together(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_waits, "_SLICE_SECONDS", -1.0)
    loop = asyncio.get_running_loop()
    seen: list[str] = []

    def work(_connection: Connection) -> None:
        seen.append("work")
        loop.call_soon(seen.append, "other")

    await asyncio.gather(
        *(database.write(work, lambda n=number: {n}, short=True) for number in range(3))  # type: ignore[misc]
    )
    assert seen == ["work", "other"] * 3


@pytest.mark.usefixtures("patient")
async def test_a_work_that_goes_on_after_a_statement_has_failed_fails_and_nobody_else(
    database: Database, short: bool
) -> None:
    def heedless(connection: Connection) -> str:
        note(connection, "heedless")
        with suppress(IntegrityError):
            note(connection, "a")
        return "as if nothing had happened"

    a, b = (lambda c: note(c, "a")), (lambda c: note(c, "b"))
    for apart in (None, lambda: {object()}):
        for calls in ((a, heedless, b), (a, b, heedless)):  # The last one is followed by nobody who would notice.
            found = await asyncio.gather(
                *(database.write(call, apart, short=short) for call in calls), return_exceptions=True
            )
            failed = found.pop(calls.index(heedless))
            assert found == ["a", "b"]
            assert isinstance(failed, Exception)
            assert await database.look(noted) == {"a", "b"}
            await database.write(lambda c: c.execute(text("DELETE FROM notes")))


async def test_what_the_server_rolls_back_at_the_commit_is_not_called_committed(database: Database) -> None:
    engine = database._writer._engine

    def commit_what_has_failed() -> None:
        kept = KeptConnection(engine)
        try:
            with kept.transaction(lambda: None) as transaction, suppress(psycopg.Error):
                driver_of(transaction._connection).execute("SELECT 1/0")
        finally:
            kept.drop()

    with pytest.raises(OperationalError, match="ROLLBACK"):
        await asyncio.to_thread(commit_what_has_failed)


async def test_what_the_server_only_remarks_at_the_commit_is_no_failure(database: Database, short: bool) -> None:
    def make(connection: Connection) -> None:
        remark = "CREATE FUNCTION remark() RETURNS trigger LANGUAGE plpgsql"
        connection.exec_driver_sql(f"{remark} AS $$ BEGIN RAISE NOTICE 'so'; RETURN NEW; END $$")
        at_commit = "CREATE CONSTRAINT TRIGGER remarks AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED"
        connection.exec_driver_sql(f"{at_commit} FOR EACH ROW EXECUTE FUNCTION remark()")

    def listeners(connection: Connection) -> int:
        return len(driver_of(connection)._notice_handlers)

    await database.write(make)
    before = await database.write(listeners)
    for word in "abc":
        assert await database.write(lambda c, word=word: note(c, word), short=short) == word  # type: ignore[misc]
    assert await database.look(noted) == {*"abc"}
    assert await database.write(listeners) == before, "none is left behind by each commit"


@pytest.mark.usefixtures("patient")
async def test_if_the_commit_fails_everybody_is_told_and_nothing_is_kept(database: Database, short: bool) -> None:
    def tables(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
        child = "CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)"
        connection.execute(text(child))

    await database.write(tables)
    orphan = text("INSERT INTO children VALUES (7)")
    outcomes = await asyncio.gather(
        *(database.write(call, short=short) for call in (lambda c: note(c, "a"), lambda c: c.execute(orphan))),
        return_exceptions=True,
    )
    assert [type(each) for each in outcomes] == [IntegrityError] * 2
    assert await database.look(noted) == set()
    assert await database.write(lambda c: note(c, "a"), short=short) == "a"


async def test_a_caller_who_is_cancelled_waits_for_the_end_of_his_transaction(database: Database, short: bool) -> None:
    with lock(database):
        waiting = asyncio.create_task(database.write(lambda c: note(c, "a"), short=short))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.sleep(0.02)
        assert not waiting.done()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await database.look(noted) == {"a"}


async def test_closing_finishes_what_waits_and_leaves_no_session(postgresql: PostgresqlServer, short: bool) -> None:
    with postgresql.database(more=NOTES) as url:
        opened = Database(url)
        await opened.write(noted)
        waiting = [
            asyncio.create_task(opened.write(lambda connection, word=word: note(connection, word), short=short))  # type: ignore[misc]
            for word in "abc"
        ]
        looking = asyncio.create_task(opened.look(noted))
        await asyncio.sleep(0)
        await opened.close()
        with somebody_else(opened) as other:
            ours = f"datname = current_database() AND application_name = '{SESSION_NAME}'"
            count = f"SELECT count(*) FROM pg_stat_activity WHERE {ours}"
            async with asyncio.timeout(PATIENCE):
                while other.execute(count.encode()).fetchone() != (0,):
                    other.rollback()  # What it is told is of one moment until then.
                    await asyncio.sleep(0.01)
    assert await asyncio.gather(*waiting) == ["a", "b", "c"]
    assert looking.done()


async def test_a_look_sees_what_was_committed_before_it_was_asked_and_changes_nothing(database: Database) -> None:
    for number in range(20):
        word = str(number)
        await database.write(lambda c, word=word: note(c, word), short=True)  # type: ignore[misc]
        assert word in await database.look(noted)
    found = await asyncio.gather(database.look(thread_of), database.look(lambda c: note(c, "0")), database.look(noted),
                                 return_exceptions=True)  # fmt: skip
    assert found[0] == HERE
    assert isinstance(found[1], IntegrityError)
    assert not isinstance(found[2], BaseException)
    assert len(found[2]) == 20


async def test_a_connection_that_was_cut_while_it_rested_costs_no_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_RESTED_SECONDS", 0.0)
    await asyncio.gather(*(database.read(noted) for _ in range(4)))
    with somebody_else(database) as other:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ended = other.execute(f"SELECT pg_terminate_backend(pid, 5000) {others}".encode()).fetchall()
    assert len(ended) > 1
    assert await asyncio.gather(*(database.read(noted) for _ in range(4))) == [set()] * 4


async def test_all_that_a_read_sees_is_of_one_moment(database: Database) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def twice(connection: Connection) -> list[set[str]]:
        first = noted(connection)
        inside.set()
        assert go_on.wait(PATIENCE)
        return [first, noted(connection)]

    reading = asyncio.create_task(database.read(twice))
    await asyncio.to_thread(inside.wait, PATIENCE)
    await database.write(lambda connection: note(connection, "a"))
    go_on.set()
    assert await reading == [set(), set()]
    assert await database.read(noted) == {"a"}


@pytest.mark.parametrize("seed", range(6))
async def test_works_that_meet_end_as_if_each_had_come_alone(
    postgresql: PostgresqlServer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread, on the event loop, and one after the other: the same answers, and the same in the store."""
    monkeypatch.setattr(loop_waits, "_SLICE_SECONDS", 0.0)
    chosen = random.Random(seed)
    plan = [
        (chosen.choice("abcdefgh"), chosen.choice(["", "", "", "before", "after"]), chosen.random() < 0.7)
        for _ in range(12)
    ]

    def work(connection: Connection, word: str, fails: str) -> str:
        if fails == "before":
            raise KeyError(word)
        note(connection, word)
        if fails == "after":
            raise ZeroDivisionError
        return word

    async def run(database: Database, *, short: bool, alone: bool) -> tuple[list[object], set[str]]:
        calls = [
            database.write(
                lambda c, word=word, fails=fails: work(c, word, fails),  # type: ignore[misc]
                (lambda word=word: {word}) if apart else None,  # type: ignore[misc]
                short=short,
            )
            for word, fails, apart in plan
        ]
        if alone:
            answers = [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls]
        else:
            answers = await asyncio.gather(*calls, return_exceptions=True)
        return [each if isinstance(each, str) else type(each) for each in answers], await database.look(noted)

    found = []
    for short, alone in ((False, True), (False, False), (True, False), (True, True)):
        async with with_notes(postgresql) as database:
            found.append(await run(database, short=short, alone=alone))
    assert found[1:] == found[:1] * 3
