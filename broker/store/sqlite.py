"""The broker's database: SQLite in WAL mode, one writing thread, one transaction per batch.

Rules
-----
1. ``synchronous=FULL``: when a commit returns, the batch has been through fsync, so that kill -9 and a power failure
   lose nothing that was acknowledged.
2. One process at a time: a lock file beside the database is held while it is open, and so is the database itself, which
   may have several names (`provisioning.program.sqlite_lock`). Both are released with the process.
3. The event loop never waits for the disk: batches are written in a thread of their own, one at a time.
4. A write that fails (full disk, I/O error, read-only file system) changes nothing: the transaction is rolled back, the
   batch is reopened, and retried every second until it succeeds, even if it is empty by then: only a write shows
   whether the store can be written. `on_failure` and `on_written` tell the engine. One thing is left: where only the
   fsync failed, SQLite's log holds the batch until the next write, and a broker that is killed before finds it.
5. A damaged database is not opened, and nothing is written into files that are not those that were opened
   (`broker.store.database_files`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from broker.histogram import Histogram
from broker.store.batch import Batch, Moved, Row
from broker.store.database_files import DatabaseFiles, StoreError, examine, lock_file_of
from broker.store.dispatch import packed, thinned
from broker.store.journal import Journal
from broker.store.outage import Outage
from broker.store.schema import AFTER_THE_FIRST_DAY, FIRST_DAY, MIGRATIONS, SCHEMA, VERSION
from broker.store.soundness import of_another_schema, refuse_damaged, refuse_foreign, refuse_unsound, unusable
from provisioning.program.durable_names import make_folder
from provisioning.program.log_growth import LogGrowth, held_up
from provisioning.program.sqlite_lock import hold

log = structlog.get_logger("broker")

_COLUMNS = "PRAGMA table_info(sessions)"
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 5.0
"""Between two looks whether a log that is held up still is, while nothing is written."""
_GATHER_SECONDS = 0.002
_KEPT_LOG_BYTES = 16 * 1024 * 1024
"""The write-ahead log is cut back to this size: large batches, or a long backup, make it grow, and it would stay so."""


class _Written(NamedTuple):
    """What is known after a commit."""

    seconds: float
    log: tuple[int, str | None] | None
    """What `_log_state` returned."""


class SqliteStore:
    """The database file of one broker."""

    def __init__(self, path: Path) -> None:
        """Open or create *path*; raise `StoreError` if that cannot be done."""
        self.path = path
        self.commit_seconds = Histogram()
        """How long writing batches has taken."""
        self._journal: Journal | None = None
        self._on_written: Callable[[], None] = lambda: None
        self._on_failure: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._gathering: asyncio.TimerHandle | None = None
        self._outage = Outage(path)
        self._growth = LogGrowth(path, log)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        try:
            make_folder(path.parent)
            self._lock = os.open(lock_file_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unusable(path, error) from error
        with contextlib.ExitStack() as held:
            held.callback(os.close, self._lock)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (doubt := examine(path, self._lock)) is not None:
                    log.warning("the store's last changes are gone", code="STORE_LOG_MISSING", detail=doubt)
                if not path.exists():
                    log.info("an empty store is created", code="STORE_CREATED", path=str(path))
                path.touch(mode=0o600)
                held.callback(os.close, hold(path))
                self._files = DatabaseFiles(path, self._lock)
                self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            except BlockingIOError:
                raise StoreError(f"{path} is in use by another broker: give each its own state_dir") from None
            except (sqlite3.Error, OSError) as error:
                raise unusable(path, error) from error
            self._held = held.pop_all()
        try:
            self._prepare()
            self._files.opened()
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise unusable(path, error) from error

    def _prepare(self) -> None:
        refuse_foreign(self._database)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("PRAGMA foreign_keys=ON")
        self._database.execute(f"PRAGMA journal_size_limit={_KEPT_LOG_BYTES}")
        for statement in ("BEGIN IMMEDIATE", f"PRAGMA user_version={VERSION}", "ROLLBACK"):
            self._database.execute(statement)  # One that may not be written would refuse every message.
        refuse_damaged(self._database)
        self._migrate()
        refuse_unsound(self._database)

    def _migrate(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        self._database.create_function("packed", 1, lambda session: packed([session]), deterministic=True)
        if version == 0:
            self._database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
        if version == 1 and any(column[1] == FIRST_DAY for column in self._database.execute(_COLUMNS)):
            self._database.execute("PRAGMA foreign_keys=OFF")
            self._database.executescript(f"BEGIN; {AFTER_THE_FIRST_DAY} COMMIT;")
            self._database.execute("PRAGMA foreign_keys=ON")
        while version in MIGRATIONS:
            version += 1
            self._database.executescript(f"BEGIN; {MIGRATIONS[version - 1]} PRAGMA user_version={version}; COMMIT;")
        if version not in {0, VERSION}:
            self.close()
            raise of_another_schema(self.path, version)

    def rows(self, query: str) -> list[Row]:
        """Return the rows of a SELECT; for start-up only. Raises `StoreError`."""
        try:
            return self._database.execute(query).fetchall()
        except sqlite3.Error as error:
            raise unusable(self.path, error) from error

    def each(self, query: str) -> Iterator[Row]:
        """Yield the same rows one by one: a million need not be in memory at once. Raises `StoreError`."""
        try:
            # `yield from` would close the cursor of a reading that was given up, perhaps after the database.
            for row in self._database.execute(query):  # noqa: UP028
                yield row
        except sqlite3.Error as error:
            raise unusable(self.path, error) from error

    def attach(
        self,
        journal: Journal,
        loop: asyncio.AbstractEventLoop,
        on_written: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        """Write what *journal* gathers; call back on the loop after each batch. Raises `StoreError`."""
        try:
            # Started now: later no thread may be available, and a batch would be neither written nor retried.
            self._thread.submit(_begin)
        except RuntimeError as error:
            limits = "the limit of threads or of memory, the user's or the unit's, is too low"
            raise StoreError(f"{self.path} cannot be written: {error}; {limits}") from error
        self._journal = journal
        self._loop = loop
        self._on_written = on_written
        self._on_failure = on_failure

    def begin(self) -> None:
        """Write the open batch soon, if none is being written; called at the end of each turn.

        A connected subscriber acknowledges within a millisecond or two, and what is acknowledged need not be written.
        So a batch is collected for that long; if nothing is left of it, its answers are sent at once.
        """
        journal = self._journal
        if journal is None or self._loop is None or not journal.dirty or journal.writing is not None:
            return
        if journal.failed:  # It is retried every second; meanwhile the promises of answers may have become obsolete.
            if journal.open.answers and not journal.open.holds_answers:
                self._on_written()
        elif not journal.open.changes:
            journal.take()
            self._on_written()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(_GATHER_SECONDS, self._write_gathered)

    def _write_gathered(self) -> None:
        self._gathering = None
        batch = self._journal.take() if self._journal is not None else None
        if batch is None:
            return
        if batch.changes:
            self._write(batch)
        else:
            self._on_written()

    def _write(self, batch: Batch) -> None:
        loop = self._loop
        if loop is None:
            raise AssertionError("the store is attached before it writes")
        future = self._thread.submit(self._apply_timed, batch)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._done, done))

    def _done(self, future: Future[_Written]) -> None:
        error = future.exception()
        if self._journal is None:
            return  # Closed meanwhile, which has written the rest.
        if error is None:
            written = future.result()
            self.commit_seconds.observe(written.seconds)
            self._log_seen(self._journal, written.log)
            if self._loop is not None:
                self._outage.over(self._loop.time())
            self._on_written()
            self.begin()
        elif self._loop is not None:
            self._outage.failed(error, self._loop.time())
            self._on_failure()
            self._retry = self._loop.call_later(_RETRY_SECONDS, self._try_again)

    def _log_seen(self, journal: Journal, state: tuple[int, str | None] | None) -> None:
        if state is None:
            return  # The next write looks again; and first of all whether the files are there.
        log_bytes, held = state
        self._growth.seen(log_bytes, held)
        journal.held_log_bytes = 0 if held is None else log_bytes
        if held is not None and self._looking is None and self._loop is not None:
            self._looking = self._loop.call_later(_LOOK_SECONDS, self._look_at_log)

    def _look_at_log(self) -> None:
        """Have it moved, or find out that it still cannot be: the next write may be hours away."""
        self._looking = None
        if (loop := self._loop) is not None and self._journal is not None:
            future = self._thread.submit(self._log_state)
            future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._looked_at_log, done))

    def _looked_at_log(self, done: Future[tuple[int, str | None] | None]) -> None:
        if self._journal is not None:
            self._log_seen(self._journal, done.result())

    def _log_state(self, unusual: int = 0) -> tuple[int, str | None] | None:
        """Return how long the log is, and why that is not moved if it cannot be; shorter than *unusual*: unasked.

        None: the system does not tell. What was committed is on disk all the same: if it counted as unwritten, what is
        cleared or acknowledged meanwhile would be struck from it.
        """
        try:
            log_bytes = self._files.note_log()
        except OSError:
            return None
        return log_bytes, held_up(self._database, self.path) if log_bytes >= unusual else None

    def _try_again(self) -> None:
        self._retry = None
        batch = self._journal.take(probe=True) if self._journal is not None else None
        if batch is not None:
            self._write(batch)

    def close(self) -> None:
        """Write what is left, and close the file. Blocks. Later turns find nothing to do."""
        for timer in (self._retry, self._gathering, self._looking):
            if timer is not None:
                timer.cancel()
        self._thread.shutdown(wait=True)
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.open.seal()
            try:
                if self._files.log_is_short:
                    self._check_not_cut()
                for batch in (journal.writing, journal.open):
                    if batch is not None and batch.changes:
                        self._commit(batch)
            except (sqlite3.Error, StoreError, OSError) as error:
                log.error("the store cannot be written", code="STORE_FAILED", detail=str(error), path=str(self.path))
        with self._files.closing():
            self._database.close()
        self._held.close()

    def _apply_timed(self, batch: Batch) -> _Written:
        started = time.perf_counter()
        self._apply(batch)
        seconds = time.perf_counter() - started
        return _Written(seconds, self._log_state(self._growth.unusual))

    def _apply(self, batch: Batch) -> None:
        """Write *batch* in one transaction. Idempotent. Raises `StoreError` if it would be written into lost files."""
        if (lost := self._files.lost(self._database)) is not None:
            if self._files.log_is_gone:
                self._database.execute("PRAGMA wal_checkpoint(FULL)")  # So that not even kill -9 costs anything.
            raise StoreError(lost)
        self._commit(batch)

    def _commit(self, batch: Batch) -> None:
        while not self._committed(batch):
            self._check_not_cut()

    def _committed(self, batch: Batch) -> bool:
        """Write *batch*; or nothing, and return False, if the log is shorter than it was."""
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            if batch.changes:
                apply_changes(database, batch)
            else:  # Something must be written, to find out whether it can be.
                database.execute(f"PRAGMA user_version={VERSION}")
            if self._files.log_is_short:  # Last: from here on it is on disk, or reported.
                database.execute("ROLLBACK")
                return False
            database.execute("COMMIT")
        except BaseException:
            database.rollback()
            raise
        batch.moved = None
        return True

    def _check_not_cut(self) -> None:
        if (cut := self._files.cut(self._database)) is not None:
            raise StoreError(cut)


def apply_changes(database: sqlite3.Connection, batch: Batch) -> None:
    """Write the changes of *batch*: a row after those that it refers to, and removed before them."""
    many = partial(_many, database)
    if batch.moved is not None:
        _move_times(database, batch.moved)
    many("DELETE FROM sessions WHERE id=?", [(row,) for row, values in batch.sessions.items() if values is None])
    many(
        "INSERT INTO sessions VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO UPDATE SET "
        "owner=excluded.owner, v5=excluded.v5, expiry_interval=excluded.expiry_interval, "
        "ended_at=excluded.ended_at, will_topic=excluded.will_topic, will_payload=excluded.will_payload, "
        "will_qos=excluded.will_qos, will_retain=excluded.will_retain, will_properties=excluded.will_properties, "
        "will_expiry_interval=excluded.will_expiry_interval, will_delay=excluded.will_delay, "
        "certificate=excluded.certificate, authorities=excluded.authorities, "
        "will_certificate=excluded.will_certificate, will_authorities=excluded.will_authorities, "
        "will_cas=excluded.will_cas",
        [(row, *values) for row, values in batch.sessions.items() if values is not None],
    )
    many(
        "DELETE FROM subscriptions WHERE session=? AND topic_filter=?",
        [key for key, values in batch.subscriptions.items() if values is None],
    )
    many(
        "INSERT OR REPLACE INTO subscriptions VALUES (?,?,?,?,?,?,?,?)",
        [(*key, *values) for key, values in batch.subscriptions.items() if values is not None],
    )
    many(  # After the subscriptions: replacing one deletes what was replayed to it.
        "INSERT OR IGNORE INTO replayed VALUES (?,?,?)",
        [(*key, number) for key, numbers in batch.replayed.items() for number in numbers],
    )
    many(
        "INSERT OR REPLACE INTO messages VALUES (?,?,?,?,?,?,?)",
        [(row, *values) for row, values in batch.messages.items()],
    )
    many(
        "INSERT OR REPLACE INTO deliveries VALUES (?,?,?,?,?,?,?,?)", [each.row() for each in batch.deliveries.values()]
    )
    if batch.remaining or batch.done:
        _apply_ends(database, batch)
    many(
        "INSERT OR REPLACE INTO progress VALUES (?,?,?)",
        [(sequence, *values) for sequence, values in batch.progress.items()],
    )
    many("INSERT OR REPLACE INTO progress VALUES (?,?,0)", list(batch.sent.items()))
    many("DELETE FROM progress WHERE sequence=?", batch.finished)
    many("DELETE FROM messages WHERE id=?", batch.unreferenced)
    many("INSERT OR IGNORE INTO incoming VALUES (?,?)", [key for key, known in batch.incoming.items() if known])
    many(
        "DELETE FROM incoming WHERE session=? AND packet_id=?",
        [key for key, known in batch.incoming.items() if not known],
    )
    many("DELETE FROM retained WHERE topic_name=?", [(t,) for t, values in batch.retained.items() if values is None])
    many(
        "INSERT OR REPLACE INTO retained VALUES (?,?,?,?,?,?,?,?,?)",
        [(topic, *values) for topic, values in batch.retained.items() if values is not None],
    )


def _apply_ends(database: sqlite3.Connection, batch: Batch) -> None:
    """Write which sessions are done with what they were to get."""
    remaining, listed_anew, over = [], [], []
    for number, left in batch.remaining.items():
        if not left:
            over.append((number,))
        elif number in batch.thinned:
            listed_anew.append((number,))
            found = database.execute("SELECT places, sessions FROM deliveries WHERE id=?", (number,)).fetchone()
            listed, sessions = found
            row = left, thinned(listed, sessions, left), number
            database.execute("UPDATE deliveries SET places=?, sessions=? WHERE id=?", row)
        else:
            remaining.append((number, left))
    _many(database, "INSERT OR REPLACE INTO remaining VALUES (?,?)", remaining)
    _many(database, "DELETE FROM remaining WHERE id=?", over + listed_anew)
    _many(database, "DELETE FROM deliveries WHERE id=?", batch.done + over)


def _many(database: sqlite3.Connection, statement: str, rows: list[Any]) -> None:
    if rows:
        database.executemany(statement, rows)


def _move_times(database: sqlite3.Connection, moved: Moved) -> None:
    """Move the times that were stored before the clock was set, as *moved* says."""
    ended = database.execute("SELECT id, ended_at FROM sessions WHERE ended_at IS NOT NULL").fetchall()
    times = [(at + moved.seconds, row) for row, at in ended if row not in moved.earlier]
    _many(database, "UPDATE sessions SET ended_at = ? WHERE id = ?", times)
    moves = "UPDATE messages SET expires_at = expires_at + ? WHERE id > ? AND expires_at IS NOT NULL"
    database.execute(moves, (moved.seconds, moved.message))
    back = "UPDATE messages SET expires_at = expires_at - ? WHERE id = ?"
    _many(database, back, [(seconds, row) for row, seconds in moved.kept.items()])
    moves = "UPDATE retained SET expires_at = expires_at + ? WHERE number > ? AND expires_at IS NOT NULL"
    database.execute(moves, (moved.seconds, moved.retained))


def _begin() -> None:
    """Do nothing: the task for which the thread is started."""
