"""A broker in memory on a real database; the test controls its writing, failing and dying.

broker = StoredBroker(tmp_path)
backend = broker.service(session_expiry_interval=60)   # writes by itself whenever idle …
broker.held = True                                     # … until told not to
meter.send(publication(…))                             # waits
broker.write()                                         # one batch: its answers leave
broker.fail()                                          # a batch that cannot be written
broker.fail(logged=True)                               # … by a failed fsync: `killed(logged=True)` finds it
after = broker.killed()                                # what was not written is gone; another process begins

A missing database starts as a copy of a new one: creating its tables takes longer than most of these tests.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from broker.process.recovery import recover
from broker.store.batch import Batch
from broker.store.journal import Journal
from broker.store.sqlite import SqliteStore, apply_changes
from tests.support.due import do_what_is_due
from tests.support.pki import shared_service
from tests.support.wire import MemoryBroker, WireClient

_VERSIONS = slice(18, 20)
"""Where a database's header says whether it has a log."""
WALL_OFFSET = 1_700_000_000.0


@functools.cache
def _new_database() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "broker.db"
        SqliteStore(path).close()
        return path.read_bytes()


class StoredBroker(MemoryBroker):
    """A `MemoryBroker` with a journal, and a database in *directory*."""

    def __init__(self, directory: Path, *, now: float = 1000.0, **limits: Any) -> None:
        super().__init__(**limits)
        self.directory = directory
        self.limits = limits
        self.now = now
        self.keep_fresh()
        self.held = False
        self._after: StoredBroker | None = None
        self._logged: bytes | None = None
        """The database, if SQLite's log holds a batch that it could not sync."""
        database = directory / "broker.db"
        if not database.exists():
            database.write_bytes(_new_database())
        self.store = SqliteStore(database)
        self.store._database.execute("PRAGMA synchronous=OFF")  # No machine dies in these tests, only brokers do.
        self.journal: Journal = recover(self.engine, self.store, now, now + WALL_OFFSET)
        do_what_is_due(self.engine, now)  # As the process does in its first second.
        self.journal.again = lambda: self.engine.turn.later(lambda: self.engine.go_on(self.now))
        self.engine.turn.after = self._release_what_needs_no_disk

    def settle(self) -> None:
        super().settle()
        while not self.held and self.write():
            pass

    def write(self) -> bool:
        """Write one batch, as the store's thread does; return whether there was one."""
        batch = self.journal.take(probe=self.journal.failed)
        if batch is None:
            return False
        self.store._apply(batch)
        self._logged = None
        self.engine.stored(self.now)
        super().settle()
        return True

    def write_slowly(self) -> None:
        """Write one batch; whatever the event loop does because of that takes a second."""
        batch = self.journal.take()
        assert batch is not None
        self.store._apply(batch)
        self.engine.stored(self.now)
        while self._soon:
            self.now += 1.0
            self._soon.popleft()()

    def fail(self, *, logged: bool = False) -> None:
        """Fail to write the open batch, which is kept, as the store's thread does on a full disk.

        *logged*: only its sync fails, so that it is in the log until something else is written there.
        """
        batch = self.journal.take(probe=self.journal.failed)
        assert batch is not None, "nothing to write"
        if logged:
            self._logged = self._with(batch)
        self.engine.not_stored(self.now)
        super().settle()

    def _with(self, batch: Batch) -> bytes:
        """Return the database as it would be with *batch*."""
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
            content = bytearray(self.store._database.serialize())
            content[_VERSIONS] = b"\1\1"  # In memory there is no log.
            copy.deserialize(content)
            copy.execute("PRAGMA foreign_keys=ON")
            apply_changes(copy, batch)
            content = bytearray(copy.serialize())
        content[_VERSIONS] = b"\2\2"
        return bytes(content)

    def _release_what_needs_no_disk(self) -> None:
        """Do what the store does at the end of a turn while it cannot be written."""
        if self.journal.failed and self.journal.open.answers and not self.journal.open.holds_answers:
            self.engine.stored(self.now)

    def killed(self, *, away: float = 0.0, logged: bool = False) -> StoredBroker:
        """Return another broker on the same database, *away* seconds later; what was not written never was.

        *logged*: unless the log held it.
        """
        self.store.close()
        if logged and self._logged is not None:
            (self.directory / "broker.db").write_bytes(self._logged)
        self._after = StoredBroker(self.directory, now=self.now + away, **self.limits)
        return self._after

    def open_service(self, name: str = "backend") -> WireClient:
        """Return a client of that service that has not sent its CONNECT."""
        return self.open(shared_service(name))

    def close(self) -> None:
        """Close the database, whichever broker has it now."""
        if self._after is None:
            self.store.close()
        else:
            self._after.close()
