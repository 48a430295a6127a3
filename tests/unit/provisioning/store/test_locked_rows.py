"""Another program's lock on a row: whoever needs that row pays for it, and nobody else who waits for the writer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import patience, tokens
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.lanes import Apart, Outcome
from provisioning.store.patience import _IN_VAIN_SECONDS, BRIEF_SECONDS
from provisioning.store.postgresql_group import SharedTransaction
from tests.support.fleet import Fleet, open_fleet
from tests.support.notes import lock, note, noted, somebody_else
from tests.support.postgresql import PostgresqlServer
from tests.support.together import Together, enrolment, log_of

WAIT = 1.0
"""How long a work waits for a lock here, in seconds."""
OPTIONS = f"?options=-clock_timeout%3D{int(WAIT * 1000)}"
NOTES = "CREATE TABLE notes (word TEXT UNIQUE); INSERT INTO notes VALUES ('theirs');"
THEIRS = "SELECT word FROM notes WHERE word = 'theirs' FOR UPDATE"
MANY = 12
Work = Callable[[Connection], object]


@pytest.fixture
async def database(postgresql: PostgresqlServer) -> AsyncIterator[Database]:
    """A store with notes, one of which is theirs, where works wait a second for a lock."""
    with postgresql.database(more=NOTES) as url:
        opened = Database(url + OPTIONS)
        try:
            await opened.write(noted)
            yield opened
        finally:
            await opened.close()


@pytest.fixture
async def fleet(postgresql: PostgresqlServer) -> AsyncIterator[Fleet]:
    with postgresql.database() as url:
        async with open_fleet(url + OPTIONS) as opened:
            yield opened


def theirs(connection: Connection) -> None:
    connection.execute(text("UPDATE notes SET word = word WHERE word = 'theirs'"))


def ours(word: str) -> Work:
    return lambda connection: note(connection, word)


def is_unavailable(outcome: object) -> bool:
    return isinstance(outcome, Refused) and outcome.code is Code.UNAVAILABLE


async def all_of(database: Database, works: list[Work], way: str, *, short: bool) -> list[object]:
    """Let *works* wait for the writer until all of them do, and return their outcomes."""

    def apart(number: int) -> Apart | None:
        return (lambda: [number]) if way == "together" else None

    with lock(database):
        asked = [
            asyncio.create_task(database.write(work, apart(number), short=short))
            for number, work in enumerate([noted, *works])
        ]
        while database._writer._waiting < len(asked):
            await asyncio.sleep(0)
    return (await asyncio.gather(*asked, return_exceptions=True))[1:]


@pytest.mark.parametrize("way", ["together", "one by one"])
async def test_who_needs_no_locked_row_is_served_though_another_has_waited_in_vain(
    database: Database, way: str, short: bool
) -> None:
    works: list[Work] = [ours(f"{number}") for number in range(MANY)]
    works.insert(MANY // 2, theirs)
    with somebody_else(database, THEIRS):
        begun = time.monotonic()
        told = await all_of(database, works, way, short=short)
        took = time.monotonic() - begun
    assert is_unavailable(told.pop(MANY // 2))
    assert told == [f"{number}" for number in range(MANY)]
    assert await database.read(noted) == {"theirs", *map(str, range(MANY))}
    assert took < 3 * WAIT, "nobody waits as long a second time"
    assert await all_of(database, [theirs], way, short=short) == [None]


@pytest.mark.parametrize("way", ["together", "one by one"])
async def test_those_who_all_need_it_wait_in_vain_for_a_bounded_time_however_many_they_are(
    database: Database, way: str, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 3 * int(_IN_VAIN_SECONDS / BRIEF_SECONDS)
    attempt, tried, waits = SharedTransaction.attempt, list[int](), list[float | None]()

    def noted_attempt(transaction: SharedTransaction, work: Work, wait: float | None = None) -> Outcome:
        waits.append(wait)
        return attempt(transaction, work, wait)

    def work(number: int) -> Work:
        def does(connection: Connection) -> None:
            tried.append(number)
            theirs(connection)

        return does

    monkeypatch.setattr(SharedTransaction, "attempt", noted_attempt)
    with somebody_else(database, THEIRS):
        told = await all_of(database, [work(number) for number in range(many)], way, short=short)
        assert all(map(is_unavailable, told)), told
        assert waits.count(None) <= 2, "one that came first and needs none, and one that waits as long as it may"
        assert waits.count(BRIEF_SECONDS) < many / 2, "the others hardly waited"
        assert set(tried) == set(range(many)), "nobody was refused without a try"
    assert await all_of(database, [theirs], way, short=short) == [None], "and nothing of it is left"


@pytest.mark.parametrize("way", ["together", "one by one"])
async def test_who_comes_after_one_that_waited_in_vain_holds_nobody_up_as_long_again(
    database: Database, way: str, short: bool
) -> None:
    with somebody_else(database, THEIRS):
        assert is_unavailable((await all_of(database, [theirs], way, short=short))[0])
        begun = time.monotonic()
        for number in range(10):
            theirs_again, mine = await all_of(database, [theirs, ours(f"{number}")], way, short=short)
            assert is_unavailable(theirs_again)
            assert mine == f"{number}"
        assert time.monotonic() - begun < 8 * WAIT, "and not ten times as long"
    assert await all_of(database, [theirs], way, short=short) == [None]


AT_COMMIT = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait();
"""
"""It stands for NOTIFY, which waits at the commit for those of all other databases of the server."""


async def test_a_commit_waits_as_long_as_ever_since_all_are_refused_with_it(database: Database, short: bool) -> None:
    with somebody_else(database, AT_COMMIT) as other:
        other.commit()
    with somebody_else(database, THEIRS):
        assert is_unavailable((await all_of(database, [theirs], "one by one", short=short))[0])
    with somebody_else(database, "SELECT pg_advisory_xact_lock(42)") as other:
        writing = asyncio.create_task(database.write(ours("mine"), short=short))
        waiting = b"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted"
        while not writing.done() and other.execute(waiting).fetchone() != (1,):
            await asyncio.sleep(0)
        await asyncio.wait({writing}, timeout=4 * BRIEF_SECONDS)
        assert not writing.done(), writing.exception()
        other.rollback()
        assert await writing == "mine"


async def test_who_comes_a_minute_after_one_that_waited_in_vain_waits_as_long_as_ever(
    database: Database, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_CAUTIOUS_SECONDS", 0.0)
    with somebody_else(database, THEIRS) as other:
        early = await asyncio.gather(database.write(theirs, short=short), return_exceptions=True)
        assert is_unavailable(early[0])
        later = asyncio.create_task(database.write(theirs, short=short))
        await asyncio.sleep(6 * BRIEF_SECONDS)
        assert not later.done()
        other.rollback()
        await later


async def test_of_devices_that_enrol_together_only_the_one_whose_row_is_locked_is_refused_and_keeps_its_token(
    fleet: Fleet, companies: list[int], together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, briefly = SharedTransaction.attempt, []

    def noted_attempt(transaction: SharedTransaction, work: Work, wait: float | None = None) -> Outcome:
        briefly.append(wait is not None)
        return attempt(transaction, work, wait)

    certificate = await fleet.enrol("meter-3")
    calls = [await enrolment(fleet, f"meter-{number}") for number in range(6)]

    async def revoked() -> object:
        return await fleet.revocation.revoke_serial(
            f"{certificate.serial_number:x}", RevocationReason.SUPERSEDED, by="admin"
        )

    monkeypatch.setattr(SharedTransaction, "attempt", noted_attempt)
    with somebody_else(fleet.database, "SELECT id FROM devices WHERE name = 'meter-3' FOR UPDATE"):
        *told, revocation = await together(fleet, *calls, revoked)
    assert companies == [6], "they went together, and the revocation of the same device after them"
    assert briefly == [False, *[True] * 7], "after the one before them each by itself, and no second time as long"
    assert is_unavailable(told.pop(3))
    names = [next(iter(each.subject)).value for each in told]
    assert names == [f"meter-{number}" for number in (0, 1, 2, 4, 5)]
    assert len({each.serial_number for each in told}) == 5
    assert is_unavailable(revocation)
    entries = [subject for action, subject in await log_of(fleet) if action == Action.CERTIFICATE_SIGNED]
    assert sorted(entries) == ["meter-0", "meter-1", "meter-2", "meter-3", "meter-4", "meter-5"]
    assert await fleet.database.read(lambda connection: tokens.count_open(connection, fleet.clock())) == 1
    await calls[3]()
    assert await fleet.database.read(lambda connection: tokens.count_open(connection, fleet.clock())) == 0
