"""The database: each batch whole or not at all, twice the same as once, and refusals that name the file."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.mqtt.message import Message
from broker.store.batch import Batch, Moved
from broker.store.database_files import StoreError
from broker.store.journal import Journal
from broker.store.sqlite import _GATHER_SECONDS, _KEPT_LOG_BYTES, SqliteStore
from tests.support.batches import SESSION, TABLES, contents, dispatch, filled, stored


def test_writing_twice_is_writing_once(store: SqliteStore) -> None:
    store._apply(filled())
    once = contents(store)
    assert all(once.values())
    one, two = b"\1" + bytes(7), (b"\1" + bytes(7)) * 2
    assert once["deliveries"] == [(9, 5, 2, 0, b"", "$share/g/t", 1, one), (10, 5, 1, 0, b"", "", 3, two)]
    assert (once["remaining"], once["progress"]) == ([(10, 2)], [(9 * 64, 77, 1)])
    store._apply(filled())
    assert contents(store) == once


def test_the_log_of_changes_shrinks_again_when_a_long_look_at_the_file_is_over(store: SqliteStore) -> None:
    log = store.path.with_name("broker.db-wal")
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as looking:
        looking.execute("BEGIN")
        looking.execute("SELECT count(*) FROM messages").fetchone()
        for number in range(10):
            batch = filled()
            batch.messages[5] = (b"t", b"x" * 4_000_000 + b"%d" % number, 2, False, b"", None)
            store._apply(batch)
        assert log.stat().st_size > 40_000_000
    for _ in range(2):  # The first one moves all of it into the file.
        store._apply(filled())
    assert log.stat().st_size <= _KEPT_LOG_BYTES


def test_a_session_that_replaces_another_of_its_name_may_be_written_twice(store: SqliteStore) -> None:
    store._apply(filled())
    batch = Batch()
    batch.sessions.update({1: None, 2: SESSION})
    for _ in range(2):
        store._apply(batch)
        assert [row[0] for row in store.rows("SELECT id FROM sessions")] == [2]
        assert store.rows("SELECT * FROM subscriptions") == []


def test_a_batch_that_fails_changes_nothing(store: SqliteStore) -> None:
    store._apply(filled())
    before = contents(store)
    batch = Batch()
    batch.retained["t"] = None
    batch.deliveries[11] = dispatch(11, 5, 1)
    batch.incoming[999, 1] = True  # No such session.
    with pytest.raises(sqlite3.IntegrityError):
        store._apply(batch)
    assert contents(store) == before
    store._apply(Batch(retained={"t": None}))
    assert store.rows("SELECT * FROM retained") == []


def test_everything_can_be_taken_away(store: SqliteStore) -> None:
    store._apply(filled())
    store._apply(
        Batch(
            subscriptions={(1, "fleet/#"): None},
            done=[(9,)],
            remaining={10: 0},
            finished=[(9 * 64,)],
            unreferenced=[(5,)],
            incoming={(1, 3): False},
            retained={"t": None},
        )
    )
    assert {table: len(rows) for table, rows in contents(store).items()} == dict.fromkeys(TABLES, 0) | {"sessions": 1}


def test_a_session_that_changes_is_written_anew_with_all_that_it_has(store: SqliteStore) -> None:
    """Its row is the same: what refers to it stays."""
    store._apply(filled())
    given = ("backend", "spiffe://d/service/other", False, 61, 9.5, b"will", b"gone", 1, 1, b"p", 30, 5, "a:1", "a")
    changed = (*given, "b:2", "b", "b:2 c:3")
    store._apply(Batch(sessions={1: changed}))
    assert store.rows("SELECT * FROM sessions") == [(1, *changed)]
    assert len(store.rows("SELECT * FROM subscriptions")) == len(store.rows("SELECT * FROM incoming")) == 1


def test_what_changes_or_is_taken_away_is_that_and_nothing_beside_it(store: SqliteStore) -> None:
    batch = filled()
    batch.sessions[2] = ("other", *SESSION[1:])
    for row in (1, 2):
        for topic_filter in ("fleet/#", "other/#"):
            batch.subscriptions[row, topic_filter] = batch.subscriptions[1, "fleet/#"]
        for place in (8, 9, 10):
            batch.incoming[row, place] = True
    for number in (4, 5, 6):
        batch.messages[number] = batch.messages[5]
    for topic in ("s", "t"):
        batch.retained[topic] = batch.retained["t"]
    store._apply(batch)
    store._apply(
        Batch(
            subscriptions={(1, "fleet/#"): None, (1, "other/#"): (1, True, True, 2, b"7", 0)},
            unreferenced=[(5,)],
            incoming={(1, 9): False},
            retained={"t": None, "s": (b"s", b"new", 0, True, b"", None, "", 5)},
        )
    )
    assert store.rows("SELECT session, topic_filter, qos, identifiers FROM subscriptions") == [
        (1, "other/#", 1, b"7"),
        (2, "fleet/#", 2, b""),
        (2, "other/#", 2, b""),
    ]
    assert store.rows("SELECT id FROM messages") == [(4,), (6,)]
    assert store.rows("SELECT * FROM incoming") == [(1, 3), (1, 8), (1, 10), (2, 8), (2, 9), (2, 10)]
    assert store.rows("SELECT topic_name, payload, number FROM retained") == [("s", b"new", 5)]


def test_when_the_clock_is_set_what_this_process_has_stored_is_moved_once_and_nothing_older(store: SqliteStore) -> None:
    batch = Batch()
    for row, ended_at in ((1, 50.0), (2, 50.0), (3, None)):
        batch.sessions[row] = (f"client-{row}", SESSION[1], True, 60, ended_at, *(None,) * 12)
    for number, expires_at in ((5, 70.0), (6, 70.0), (7, None), (8, 70.0), (9, 70.0)):
        batch.messages[number] = (b"t", b"x", 1, False, b"", expires_at)
    for number, expires_at in ((3, 80.0), (4, 80.0), (5, None)):
        batch.retained[f"t/{number}"] = (b"t", b"x", 1, True, b"", expires_at, "", number)
    store._apply(batch)
    later = Batch()
    later.move(Moved(4.0, frozenset({1}), 5, {8: 4.0}, 3))
    later.move(Moved(6.0, frozenset(), 5, {9: 6.0}, 3))
    for _ in range(2):
        store._apply(later)
        assert store.rows("SELECT id, ended_at FROM sessions") == [(1, 50.0), (2, 60.0), (3, None)]
        assert [end for (end,) in store.rows("SELECT expires_at FROM messages")] == [70.0, 80.0, None, 76.0, 74.0]
        assert store.rows("SELECT number, expires_at FROM retained") == [(3, 80.0), (4, 90.0), (5, None)]


def test_a_commit_waits_for_the_disk_and_reads_of_others_wait_for_no_commit(store: SqliteStore, tmp_path: Path) -> None:
    """FULL, not NORMAL, which in WAL mode loses what was committed last when the power fails."""
    assert store.rows("PRAGMA synchronous") == [(2,)]
    assert store.rows("PRAGMA journal_mode") == [("wal",)]
    for made in ("broker.db", "broker.db-wal", "broker.lock"):
        assert (tmp_path / made).stat().st_mode & 0o077 == 0, "the messages of all clients"


def test_the_directory_that_a_database_needs_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "broker.db"
    SqliteStore(path).close()
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_was_replayed_is_forgotten_with_the_subscription_or_when_it_is_replaced(store: SqliteStore) -> None:
    for change in (None, (2, False, False, 0, b"", 0)):
        store._apply(filled())
        store._apply(Batch(replayed={(1, "fleet/#"): [3, 4]}))
        assert store.rows("SELECT number FROM replayed") == [(3,), (4,)]
        store._apply(Batch(subscriptions={(1, "fleet/#"): change}))
        assert store.rows("SELECT number FROM replayed") == []


def test_what_is_no_database_is_refused_and_let_go(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.write_bytes(b"x" * 5000)
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be used as the broker's database: file is not a database"):
            SqliteStore(path)


def open_below(directory: Path) -> list[str]:
    """Return the files in *directory* that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # The directory's own, which is closed by now.
            found.append(str(descriptor.readlink()))
    return sorted(each for each in found if each.startswith(str(directory)))


@pytest.mark.usefixtures("store")
def test_only_one_broker_uses_a_database(tmp_path: Path) -> None:
    before = open_below(tmp_path)
    with pytest.raises(StoreError, match="in use by another broker: give each its own state_dir"):
        SqliteStore(tmp_path / "broker.db")
    assert open_below(tmp_path) == before
    assert (tmp_path / "broker.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("parent", [True, False])
def test_a_place_where_no_database_can_be_is_said_with_the_remedy_and_let_go(tmp_path: Path, parent: bool) -> None:
    path = tmp_path / "a" / "broker.db"
    if parent:
        path.parent.touch()
    else:
        path.mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"a/broker\.db cannot be used .*; see that this user can write it"):
            SqliteStore(path)
    assert open_below(tmp_path) == []


class Reports:
    """What the store has said."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.changed = asyncio.Event()
        self.said: list[str] = []

    def written(self) -> None:
        self.journal.written()
        self.say("written")

    def failed(self) -> None:
        self.journal.not_written(0.0)
        self.say("failed")

    def say(self, word: str) -> None:
        self.said.append(word)
        self.changed.set()

    async def wait_for(self, *said: str) -> None:
        while self.said != list(said):
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 30)


async def test_a_batch_is_written_in_the_background_and_said(store: SqliteStore) -> None:
    journal = Journal(0.0)
    reports = Reports(journal)
    store.attach(journal, asyncio.get_running_loop(), reports.written, reports.failed)
    journal.save_session(1, SESSION)
    store.begin()
    store.begin()
    await reports.wait_for("written")
    assert len(store.rows("SELECT * FROM sessions")) == 1
    assert not journal.dirty


async def test_who_has_begun_needs_no_further_thread_and_who_gets_none_does_not_begin(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(0.0)
    reports = Reports(journal)
    other = SqliteStore(tmp_path / "other" / "broker.db")
    store.attach(journal, asyncio.get_running_loop(), reports.written, reports.failed)

    def none(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with pytest.raises(StoreError, match="can't start new thread; the limit of threads or of memory"):
        other.attach(Journal(0.0), asyncio.get_running_loop(), reports.written, reports.failed)
    other.close()
    journal.save_session(1, SESSION)
    store.begin()
    await reports.wait_for("written")


async def test_a_batch_of_which_nothing_is_left_is_said_without_the_disk(store: SqliteStore) -> None:
    journal = Journal(0.0)
    reports = Reports(journal)
    store.attach(journal, asyncio.get_running_loop(), reports.written, reports.failed)
    journal.add(1, delivery := stored())
    journal.remove(delivery)
    store.begin()
    assert reports.said == ["written"]


async def test_a_batch_of_which_nothing_is_left_when_it_has_been_gathered_is_said_too(store: SqliteStore) -> None:
    journal = Journal(0.0)
    reports = Reports(journal)
    store.attach(journal, asyncio.get_running_loop(), reports.written, reports.failed)
    journal.add(1, delivery := stored())
    store.begin()
    journal.remove(delivery)
    assert reports.said == []
    await reports.wait_for("written")
    assert journal.writing is None, "or nothing would be written any more"


@pytest.mark.parametrize("defect", [False, True])
async def test_a_batch_that_cannot_be_written_is_tried_again(store: SqliteStore, defect: bool) -> None:
    journal = Journal(0.0)
    reports = Reports(journal)
    store.attach(journal, asyncio.get_running_loop(), reports.written, reports.failed)
    journal.retain("t", Message(b"t", b"x", 1, retain=True))
    if defect:
        journal.open.messages[1] = 7  # type: ignore[assignment]  # No row of ours.
    else:
        journal.incoming(999, 1, known=True)  # No such session.
    batch = journal.open
    with capture_logs() as said:
        store.begin()
        await reports.wait_for("failed")
    assert [(each["code"], each["exc_info"] is not None) for each in said] == [("STORE_FAILED", defect)]
    assert store._retry is not None
    assert store._retry.when() > asyncio.get_running_loop().time() + 0.1, "it is not tried without end"
    assert journal.failed
    batch.incoming.clear()
    batch.messages.clear()
    await reports.wait_for("failed", "written")
    assert len(store.rows("SELECT * FROM retained")) == 1
    assert not journal.failed


class Asker:
    """A connection and its session, that are to be answered."""

    def __init__(self) -> None:
        self.outbox: list[bytes] = []
        self.session = self

    def flush(self) -> None: ...

    def unanswered(self, now: float) -> None:
        raise AssertionError(now)

    def send_again(self, now: float) -> None:
        raise AssertionError(now)


def held_up(store: SqliteStore) -> tuple[Journal, Reports, threading.Event]:
    """Let *store* write for a journal, but nothing before the event."""
    journal, goes_on = Journal(0.0), threading.Event()
    reports = Reports(journal)
    store.attach(journal, asyncio.get_running_loop(), reports.written, reports.failed)
    store._thread.submit(goes_on.wait, 30)
    return journal, reports, goes_on


async def test_what_waits_only_for_its_turn_is_not_answered_before_the_batch_that_is_being_written(
    store: SqliteStore,
) -> None:
    """Else the answers of that batch would be sent, too, while a power failure could still undo what they promise."""
    asker = Asker()
    journal, reports, goes_on = held_up(store)
    journal.retain("t", Message(b"t", b"x", 1, retain=True))
    journal.answer(asker, b"stored")
    store._write_gathered()
    journal.answer(asker, b"behind it")
    store.begin()
    assert (asker.outbox, reports.said) == ([], [])
    goes_on.set()
    await reports.wait_for("written")
    assert asker.outbox == [b"stored", b"behind it"]


async def test_what_comes_while_a_batch_is_written_is_written_without_a_further_turn(store: SqliteStore) -> None:
    journal, reports, goes_on = held_up(store)
    journal.retain("first", Message(b"first", b"x", 1, retain=True))
    store._write_gathered()
    journal.retain("second", Message(b"second", b"x", 1, retain=True))
    goes_on.set()
    await reports.wait_for("written", "written")
    assert len(store.rows("SELECT * FROM retained")) == 2


async def test_who_began_to_wait_meanwhile_for_an_end_of_which_nothing_is_left_is_called(store: SqliteStore) -> None:
    journal, reports, goes_on = held_up(store)
    journal.retain("a", Message(b"a", b"x", 1, retain=True))
    store._write_gathered()
    journal.ended("/device/meter-1", unfinished=False)
    journal.when_ended("/device/meter-1", lambda _now: None)
    goes_on.set()
    await reports.wait_for("written", "written")
    assert len(journal.watching) == 1


async def test_a_store_that_failed_is_tried_again_though_nothing_is_left_to_write(store: SqliteStore) -> None:
    """Else every message would be refused for ever."""
    journal = Journal(0.0)
    reports = Reports(journal)
    store.attach(journal, asyncio.get_running_loop(), reports.written, reports.failed)
    journal.incoming(999, 1, known=True)  # No such session.
    store.begin()
    await reports.wait_for("failed")
    journal.open.incoming.clear()
    reports.written()
    assert (journal.dirty, journal.failed) == (False, True)
    await reports.wait_for("failed", "written", "written")
    assert not journal.failed


@pytest.mark.parametrize("promises", [True, False])
async def test_while_the_store_fails_who_is_promised_nothing_is_answered_at_the_end_of_the_turn(
    store: SqliteStore, promises: bool
) -> None:
    journal, asker = Journal(0.0), Asker()
    reports = Reports(journal)
    store.attach(journal, asyncio.get_running_loop(), reports.written, reports.failed)
    journal.incoming(999, 1, known=True)  # No such session.
    store.begin()
    await reports.wait_for("failed")
    if not promises:  # The client has gone meanwhile, with what was noted of it.
        journal.open.incoming.clear()
    journal.answer(asker, b"answer")
    assert asker.outbox == []
    store.begin()
    assert asker.outbox == ([] if promises else [b"answer"])
    assert reports.said == (["failed"] if promises else ["failed", "written"])
    assert journal.failed, "whether it can be written is not known yet"


def test_a_batch_that_is_only_to_find_out_whether_the_store_can_be_written_does_so(store: SqliteStore) -> None:
    with contextlib.closing(sqlite3.connect(store.path)) as other:
        before = other.execute("PRAGMA data_version").fetchone()
        store._apply(Batch(probe=True))
        assert other.execute("PRAGMA data_version").fetchone() != before, "nothing was written"


async def test_closing_writes_what_is_left(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "broker.db")
    journal = Journal(0.0)
    store.attach(journal, asyncio.get_running_loop(), lambda: None, lambda: None)
    journal.save_session(1, SESSION)
    store.begin()
    journal.subscribe(1, "t", (1, False, False, 0, b"", False))
    store.close()
    again = SqliteStore(tmp_path / "broker.db")
    assert len(again.rows("SELECT * FROM subscriptions")) == 1
    again.close()


async def test_closing_waits_for_the_batch_that_is_being_written(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "broker.db")
    journal, go, written = Journal(0.0), threading.Event(), threading.Event()
    store.attach(journal, asyncio.get_running_loop(), lambda: None, lambda: None)

    def slow() -> None:
        go.wait(30)
        written.set()

    store._thread.submit(slow)
    threading.Timer(0.1, go.set).start()
    store.close()
    assert written.is_set()


async def test_a_turn_that_ends_after_closing_finds_nothing_to_do(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    defects: list[object] = []
    loop.set_exception_handler(lambda _loop, context: defects.append(context))
    store = SqliteStore(tmp_path / "broker.db")
    journal = Journal(0.0)
    reports = Reports(journal)
    store.attach(journal, loop, reports.written, reports.failed)
    journal.save_session(1, SESSION)
    store.begin()
    store._write_gathered()  # The batch is with the thread when the store closes.
    store.close()
    journal.save_session(2, ("other", *SESSION[1:]))
    store.begin()
    passed = asyncio.Event()
    loop.call_later(10 * _GATHER_SECONDS, passed.set)
    await passed.wait()
    assert (reports.said, defects) == ([], [])
    again = SqliteStore(tmp_path / "broker.db")
    assert len(again.rows("SELECT * FROM sessions")) == 1
    again.close()


@pytest.mark.parametrize("first_fails", [False, True])
async def test_closing_writes_the_batch_that_is_under_way_before_what_came_after_it(
    tmp_path: Path, first_fails: bool
) -> None:
    store = SqliteStore(tmp_path / "broker.db")
    journal = Journal(0.0)
    store.attach(journal, asyncio.get_running_loop(), lambda: None, lambda: None)
    journal.save_session(1, SESSION)
    for topic in ("kept", "cleared"):
        journal.retain(topic, Message(topic.encode(), b"x", 1, retain=True))
    batch = journal.open
    if first_fails:
        batch.incoming[999, 1] = True  # No such session.
    store.begin()
    store._write_gathered()
    journal.retain("cleared", None)
    journal.subscribe(1, "t", (1, False, False, 0, b"", False))
    store._thread.submit(lambda: None).result()  # The thread is through with it, and the loop has not heard of it.
    batch.incoming.clear()
    store.close()
    again = SqliteStore(tmp_path / "broker.db")
    assert again.rows("SELECT topic_name FROM retained") == [("kept",)]
    assert again.rows("SELECT topic_filter FROM subscriptions") == [("t",)]
    again.close()
