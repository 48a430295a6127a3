"""Transactions: each is a function that runs as a whole in one thread or on the event loop; one writer, many readers.

Theory
------
A transaction is a function from a connection to a result. In a thread it runs from BEGIN to COMMIT, so control passes
between thread and event loop twice per transaction and not four times per statement: measured on SQLite, an enrolment's
seven statements take a third of their time with an asynchronous driver, which has a thread for each
connection anyway (docs/decisions/0020-transactions-are-functions.md). The function is plain code, and unaware
of where it runs. Writers queue for one connection, in order of arrival, and those that wait together are committed
together; the short ones run on the event loop.

SQLite has one writer at a time; letting connections compete for it through its busy handler would cost sleeps and
fairness (`provisioning.store.sqlite_lane`). Reads have threads of their own and, in WAL mode, neither wait for the
writer nor block it. PostgreSQL's writer yields to the event loop while it waits for the server, as do short
look-ups (`provisioning.store.postgresql_lane`), and takes a lock shared by all processes; the queries also lock the
rows that they decide upon (``FOR UPDATE``, which SQLite's dialect omits), against other programs that write to the
database.

Rules
-----
1. Code that decides and records does both inside one `write`; it is durable when the call has returned.
2. A connection is set up in one place, `provisioning.store.engines`.
3. PostgreSQL: READ COMMITTED, so a decision locks first and reads what it decides on in a later statement; a row that
   a join reads along with the lock may be older than the wait for it. Locks are taken in one order: all writers'
   (`provisioning.store.postgresql_group`), tokens, approval, device, key, counters, end of the audit log; only
   approvals that wait again, as an operator leaves, come after the counters. The first keeps our transactions apart;
   of a deadlock with another program PostgreSQL undoes one. All waits are bounded:
   `provisioning.store.server_parameters`.
4. Whatever a work raises undoes it, and nobody else's: a parser's panic, too, which no lane would survive.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from provisioning.errors import Code, Refused
from provisioning.pki.panic import panics_fail
from provisioning.store import audit, engines, probing
from provisioning.store.audit import KEY_OPTION
from provisioning.store.conditions import conditioned
from provisioning.store.lanes import Apart, Lane, PooledLane, explained, is_read_only, lacks_something, lacks_the_log
from provisioning.store.lost_ends import LOST_OPTION, LostEnds
from provisioning.store.sqlite_files import SqliteFiles
from provisioning.store.sqlite_lane import SqliteLane

ResultT = TypeVar("ResultT")

log = structlog.get_logger(__name__)

_READERS: Final = 4
_LATE_SECONDS: Final = 12.0
_LEAVE_SECONDS: Final = 2.0
"""How often it is asked whether the server takes no changes, and all sessions are opened anew if so; and whether the
session is still the one that was opened."""
_STANDING: Final = "SELECT current_setting('transaction_read_only'), pg_backend_pid()"


class Database:
    """The store's connections. Open for the life of the process; `close` it at the end."""

    def __init__(self, url: str, audit_key: bytes = b"") -> None:
        """Raise `ConfigurationError` if *url* is not one of the databases that are supported, or its files do not fit.

        *audit_key* authenticates what transactions append to the audit log.
        """
        parsed = engines.checked_url(url)
        self.lost_ends: Final = LostEnds()
        options = {KEY_OPTION: audit_key, LOST_OPTION: self.lost_ends}
        self._files: SqliteFiles | None = None
        if parsed.get_backend_name() == "sqlite":
            if parsed.database:
                self._files = SqliteFiles(Path(parsed.database))
            writer = engines.sqlite(parsed, options, 1)
            self._writer: Lane = SqliteLane(writer, "store-writer", self._files)
            reader = engines.sqlite(parsed, options, _READERS)
            engines.begin_by_itself(reader)
            self._reader = PooledLane(reader, _READERS, "store-reader")
            self._looks: Lane = self._reader
        else:
            # One pool: when a connection is found broken, all that are as old are made anew.
            writer = engines.postgresql(parsed, options, 2 + _READERS)
            reader = writer.execution_options(isolation_level="REPEATABLE READ")
            self._writer, self._looks = _postgresql_lanes(writer, self.lost_ends)
            self._reader = PooledLane(reader, _READERS, "store-reader")
            engines.refuse_other_schemas(writer, lambda: self._schema)
        self.url: Final = parsed
        self._schema: str | None = None
        self._write_failed = False
        self._lacks_something = self._lacks_the_log = False
        self._takes_no_changes = False
        """Whether the server has said so when something was last to be written."""
        self._doubted_at = -math.inf
        self._surveys = asyncio.Semaphore()
        self._pages = asyncio.Semaphore()

    @property
    def shown_url(self) -> str:
        """Which database it is, for messages: without its password, which may be among the URL's parameters, too."""
        return self.url.set(query={}).render_as_string()

    def keep_to(self, schema: str) -> None:
        """Refuse, from now on, to use a database whose schema is another one: a newer version has changed it.

        On PostgreSQL, where each connection that is opened is asked; SQLite carries one service.
        """
        self._schema = schema

    def keep_files(self) -> None:
        """Commit nothing, from now on, into files that are not those that are open; say if their log was lost before.

        On SQLite; for the service, as another file is only put in its place while it runs.
        """
        if self._files is None:
            return
        if self.doubt is not None:
            log.warning("the store's last changes are gone", code="STORE_LOG_MISSING", detail=self.doubt)
        self._files.keep()

    @property
    def doubt(self) -> str | None:
        """What must be said of SQLite's files, as they were found; None: nothing. `keep_files` says it once more."""
        return None if self._files is None else self._files.doubt

    @property
    def write_failed(self) -> bool:
        """Whether the store could not be used when something was last to be written; a full disk can be read.

        Without room, a lock, or an audit log that can be written, some things can be written and others cannot: then
        only `probe` says that it is over. Nor could anything be written now if SQLite's files are gone, which can be
        read on.
        """
        if self._files is not None and self._files.lost() is not None:
            return True
        return self._write_failed or self._lacks_something or self._lacks_the_log

    @property
    def write_is_late(self) -> bool:
        """Whether a transaction takes longer than one that waits for another process may: nobody knows when it ends."""
        return self._writer.seconds_at_work() > _LATE_SECONDS

    async def write(
        self, work: Callable[[Connection], ResultT], apart: Apart | None = None, *, short: bool = False
    ) -> ResultT:
        """Run *work* in a transaction that may change the store: committed at its end, rolled back by any exception.

        A work whose *apart* returns what it decides upon may run side by side with others that share nothing of it
        (`provisioning.store.company`); it is called again if that fails. One that is *short* computes and reads a few
        rows, for less than a millisecond, and waits for nothing else (`provisioning.store.sqlite_lane`). For an
        operator's request, it runs only if the operator is still authorised (`provisioning.store.conditions`).
        """
        if self._takes_no_changes and self._may_doubt():
            await self._leave()
        try:
            result = await self._writer.run(panics_fail(conditioned(work)), apart, short=short)
        except Refused as refusal:
            self._write_failed = self._write_failed or refusal.code is Code.UNAVAILABLE
            self._takes_no_changes = self._takes_no_changes or is_read_only(refusal)
            self._note(refusal)
            raise
        self._write_failed = self._takes_no_changes = False
        return result

    async def probe(self) -> None:
        """Write something that does not stay; raise `Refused` if that cannot be done.

        What the store's user may not try tells nothing, except of the audit log, without which nothing is done: else
        its service would be unready for ever.
        """
        thorough = self._lacks_something and self.url.get_backend_name() != "sqlite"
        lacks_the_log = self._lacks_the_log

        def come_and_go(connection: Connection) -> None:  # SQLite writes no page whose content is as it was.
            connection.exec_driver_sql("INSERT INTO counters (name, value) VALUES ('probe', 0)")
            connection.exec_driver_sql("DELETE FROM counters WHERE name = 'probe'")
            if lacks_the_log:
                audit.try_to_append(connection)
            if thorough:
                try:
                    probing.try_all(connection)
                except DBAPIError as error:
                    # Told as its own: a lock that is refused at once is none for which others have waited in vain.
                    raise Refused(Code.UNAVAILABLE, "not every table can be written now") from explained(error)

        await self.write(come_and_go)
        self._lacks_something = self._lacks_the_log = False

    async def read(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """Run *work* in a transaction that only reads, from one snapshot."""
        try:
            return await self._reader.run(panics_fail(work))
        except Refused as refusal:
            self._note(refusal)
            raise

    async def survey(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """Run *work*, which reads a large part of the store, perhaps for seconds, as `read` does; one at a time.

        So several of them leave readers for whoever waits for an OCSP response, the feed or a page.
        """
        async with self._surveys:
            return await self.read(work)

    async def page(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """Run *work*, which reads a page of up to a thousand rows, as `read` does; one at a time.

        It computes for a twentieth of a second: several threads that do leave little of a processor to whoever enrols.
        """
        async with self._pages:
            return await self.read(work)

    async def look(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """Run *work*, which asks a short question or two; each is answered as of the moment at which it is asked.

        On PostgreSQL it is cheaper than `read`, whose snapshot takes two journeys to the server more.
        """
        work = panics_fail(work)
        try:
            if self._looks is not self._reader and self._may_doubt():
                # Who only reads is refused nothing, and would read a former primary for as long as it runs.
                # Both at once: a second job might come when the lane has stopped, and would connect once more.
                takes_no_changes, found = await self._looks.run(
                    lambda each: (_is_read_only(each), work(each)), short=True
                )
                if not takes_no_changes and not self._takes_no_changes:
                    return found
                await self._leave()
            return await self._looks.run(work, short=True)
        except Refused as refusal:
            self._note(refusal)
            raise

    def _note(self, refusal: Refused) -> None:
        """Remember that something is missing, until `probe` finds that it is not."""
        self._lacks_something = self._lacks_something or lacks_something(refusal)
        self._lacks_the_log = self._lacks_the_log or lacks_the_log(refusal)

    def _may_doubt(self) -> bool:
        """Return whether it is time to ask again whether this is the server that takes changes."""
        now = time.monotonic()
        if now - self._doubted_at < _LEAVE_SECONDS:
            return False
        self._doubted_at = now
        return True

    async def _leave(self) -> None:
        """Connect anew with everything: the name may lead to another server by now, or to one that takes changes.

        A server that has become read-only, as a former primary may be made, keeps its sessions, and they would refuse
        changes for ever.
        """
        self._takes_no_changes = False
        for lane in (self._writer, self._looks):
            lane.renew()
        await asyncio.to_thread(self._reader.dispose)

    async def close(self) -> None:
        """Finish what runs and close every connection: all of it, though the caller be cancelled (Ctrl-C)."""
        await asyncio.to_thread(self._close)  # One call: its thread goes on when nobody waits for it any more.

    def _close(self) -> None:
        lanes = dict.fromkeys((self._writer, self._looks, self._reader))
        for lane in lanes:
            lane.stop()
        with contextlib.nullcontext() if self._files is None else self._files.closing():
            for lane in lanes:
                lane.dispose()
            if self._files is not None:
                self._files.closed()


def _is_read_only(connection: Connection) -> bool:
    from provisioning.store.opened_sessions import check_kept  # Only PostgreSQL needs its driver.

    said, session = connection.exec_driver_sql(_STANDING).one()
    check_kept(connection, session)
    return bool(said == "on")


def _postgresql_lanes(engine: Engine, lost_ends: LostEnds) -> tuple[Lane, Lane]:
    """Return who writes and who looks things up."""
    from provisioning.store.opened_sessions import OpenedSessions  # Only PostgreSQL needs its driver and greenlets.
    from provisioning.store.postgresql_lane import PostgresqlLane, PostgresqlLooks

    sessions = OpenedSessions(lost_ends.doubt)

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> object:
        return sessions.open(*arguments, **options)

    return PostgresqlLane(engine, "store-writer"), PostgresqlLooks(engine, "store-looks")
