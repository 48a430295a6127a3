"""One PostgreSQL transaction that many works share, from BEGIN to COMMIT; in a thread or on the event loop.

Theory
------
A round trip to the server costs more than most statements, so what can be sent together is. A savepoint
is released when the next one is made, or by the commit; and there is one at the beginning::

    BEGIN; lock; SAVEPOINT ─ work ─ RELEASE; SAVEPOINT ─ work ✗ ROLLBACK TO ─ works side by side ─ NOTIFY; COMMIT

Rules
-----
1. The lock of all writers, of every process, is taken first (docs/decisions/0067-one-writer-with-group-commit.md): a
   group locks the rows of many callers, and two concurrent groups could deadlock.
2. Works that have nothing in common run side by side (`provisioning.store.company`); if that fails, each is to be done
   by itself. How long they wait for locks of other programs, each is told (`provisioning.store.patience`); the commit,
   with which all would fail, waits as long as the server lets it.
3. A work that continues after one of its statements failed has failed: the server executes nothing more for it.
4. It is committed when the server has said so. The COMMIT of a failed transaction is answered with ROLLBACK, not with
   an error. A commit that no standby has confirmed because somebody cancelled the wait is answered with COMMIT and a
   warning: it may be lost, so nobody is told that it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from psycopg import Cursor
from psycopg.errors import Diagnostic, LockNotAvailable
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from provisioning.directory.audit_chain import AuditHead
from provisioning.store import announcements, audit
from provisioning.store.company import BrokenUp, Company
from provisioning.store.executor import told
from provisioning.store.lanes import Outcome, explained
from provisioning.store.loop_waits import LoopConnection
from provisioning.store.side_by_side import COMPANY, GoneAlone
from provisioning.store.stalled import end_stalled

log = structlog.get_logger(__name__)

_Work = Callable[[Connection], Any]

_WRITERS: Final = 0x666C656574  # "fleet"; any number that is otherwise unused.
_BEGIN: Final = f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_try_advisory_xact_lock({_WRITERS}); SAVEPOINT work"
# Before the savepoint: rolling back to a savepoint releases the locks taken after it.
_WAIT: Final = f"RELEASE work; SELECT pg_advisory_xact_lock({_WRITERS}); SAVEPOINT work"
_NEXT: Final = "RELEASE work; SAVEPOINT work"
# Before the savepoint, again: rolling back to it would undo the setting.
_BRIEF: Final = "RELEASE work; SET LOCAL lock_timeout = {milliseconds}; SAVEPOINT work"
_AS_EVER: Final = "SET LOCAL lock_timeout TO DEFAULT"
_PATIENT: Final = f"RELEASE work; {_AS_EVER}; SAVEPOINT work"
_BACK: Final = "ROLLBACK TO work"
_COMMIT: Final = "COMMIT"
_WARNING: Final = "01000"


class WaitedInVain(Exception):
    """A lock of another program was not released in time for works that ran side by side; all of them are undone."""


class _StatementFailed(Exception):
    """A statement of the work has failed, and the work continued regardless."""


def driver_of(connection: Connection) -> LoopConnection:
    """Return the driver's connection."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, LoopConnection):
        raise TypeError(f"not a connection of this store's: {driver!r}")
    return driver


class SharedTransaction:
    """The works of one transaction, on a connection in the driver's autocommit mode: BEGIN and COMMIT are sent here."""

    def __init__(self, connection: Connection, pause: Callable[[], None]) -> None:
        """*pause* is called wherever other code may run."""
        self._connection = connection
        self._driver: Final = driver_of(connection)
        self._pause = pause
        self._used = False
        self._wait_seconds: float | None = None
        self.alone = True
        """Whether it did not have to wait for another process when it began."""

    def begin(self) -> None:
        """Wait until no other process writes, and let none begin until the transaction ends."""
        announcements.take(self._connection)  # Left from one that was not committed.
        self._driver.patient = False  # The same.
        with self._driver.prompt():  # It waits for nobody.
            cursor = self._execute(_BEGIN)
        cursor.nextset()
        self.alone = cursor.fetchone() == (True,)
        if not self.alone:
            self._wait()

    def commit(self) -> None:
        """Commit, and send the announcements; raise SQLAlchemy's error if it is not committed."""
        tells = announcements.take(self._connection)
        warnings: list[str] = []

        def heed(notice: Diagnostic) -> None:
            if notice.sqlstate == _WARNING:
                warnings.append(str(notice.message_primary))

        self._driver.add_notice_handler(heed)
        try:
            # NOTIFY waits for the commits of others that announce something, in all databases of the server.
            patient = [] if self._wait_seconds is None else [_AS_EVER]
            with self._driver.as_on_loop():  # A standby that does not confirm would be waited for twice as long.
                said = self._say("; ".join((*patient, *([announcements.TELL] if tells else []), _COMMIT)))
        finally:
            self._driver.remove_notice_handler(heed)
        if said != _COMMIT or warnings:
            raise OperationalError(
                _COMMIT, None, _StatementFailed(f"the server said {', '.join((str(said), *warnings))}")
            )

    def attempt(self, work: _Work, wait: float | None = None) -> Outcome:
        """Run one work in a savepoint; raise what SQLAlchemy raises if the whole transaction is lost.

        It may *wait* so many seconds for a lock, or as long as the server lets it.
        """
        self._mark(wait)
        end = audit.end_of(self._connection)
        try:
            result = work(self._connection)
            self._check()
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
            self._back(error, end)
            return Outcome(failure=explained(error))
        return Outcome(result)

    def attempt_together(self, works: Sequence[_Work], wait: float | None) -> list[Outcome | None]:
        """Run *works*, which have nothing in common, side by side; None for each that is to be done by itself.

        They *wait* for locks as in `attempt`.
        Raises `WaitedInVain`, or what SQLAlchemy raises if the whole transaction is lost.
        """
        self._mark(wait)
        end = audit.end_of(self._connection)
        try:
            members = Company(self._connection, works, self._pause).run()
            self._check()
        except (BrokenUp, DBAPIError, _StatementFailed, self._connection.dialect.loaded_dbapi.Error) as error:
            reason = error.__cause__ or error
            log.info("a batch of changes failed and is done one by one", works=len(works), detail=repr(reason))
            self._back(error, end)
            cause = error.__cause__ if isinstance(error, BrokenUp) else error
            # The driver's own error, where one statement was made for several of them.
            if isinstance(getattr(cause, "orig", cause), LockNotAvailable):
                raise WaitedInVain from error
            return [None] * len(works)
        return [
            None
            if isinstance(member.failure, GoneAlone)
            else Outcome(member.result, None if member.failure is None else explained(member.failure))
            for member in members
        ]

    def _wait(self) -> None:
        try:
            self._say(_WAIT)
        except DBAPIError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            self._say("ROLLBACK")
            if not self._end_stalled():
                raise
            self._say(_BEGIN)
            self._say(_WAIT)

    def _end_stalled(self) -> bool:
        try:
            return end_stalled(self._driver, _WRITERS)
        except self._connection.dialect.loaded_dbapi.Error as error:
            raise told(self._connection, "the end of a process that has stopped", error) from error

    def _mark(self, wait: float | None) -> None:
        if wait != self._wait_seconds:
            self._say(_PATIENT if wait is None else _BRIEF.format(milliseconds=round(1000 * wait)))
            self._wait_seconds = wait
        elif self._used:
            self._say(_NEXT)
        self._used = True

    def _back(self, error: Exception, end: AuditHead | None) -> None:
        try:
            self._say(_BACK)
        except DBAPIError as lost:  # The server is gone: all get the error that noticed it first.
            noticed = isinstance(error, DBAPIError) and error.connection_invalidated
            raise error if noticed else lost from None
        self._used = False
        audit.take_back(self._connection, end)

    def _check(self) -> None:
        if self._driver.pgconn.transaction_status == TransactionStatus.INERROR:
            raise _StatementFailed

    def _say(self, text: str) -> str | None:
        """Execute *text* on the server; return the command status of its last statement."""
        cursor = self._execute(text)
        while cursor.nextset():
            pass
        return cursor.statusmessage

    def _execute(self, text: str) -> Cursor[TupleRow]:
        try:
            # Never prepared: after a ROLLBACK that could be, the driver discards all its prepared statements.
            return self._driver.execute(text.encode(), prepare=False)
        except self._connection.dialect.loaded_dbapi.Error as error:
            if self._connection.invalidated:  # A work has reported it already.
                raise OperationalError(text, None, error, connection_invalidated=True) from error
            raise told(self._connection, text, error) from error


def note_statement(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
    """Tell the leader of several works on *connection* that the running one executes *statement* by itself."""
    leader = connection.info.get(COMPANY)
    if leader is not None:
        leader.about_to_execute(statement)
