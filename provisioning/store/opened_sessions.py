"""Opens sessions at PostgreSQL: through a pooler, if that keeps them, and never at a former primary.

Theory
------
A pooler such as PgBouncer stands between us and the server. It refuses parameters of libpq that it does not know
(``options``), or leaves them out, so through one they are set by statements. In session mode a client then has a
session of its own, as without a pooler. In transaction and statement mode each transaction gets any session: ``LISTEN``
hears nothing, limits set by a statement are another client's, and what was checked when a session was opened (the
schema, the server) is not known of the next one. None of that causes an error, so those modes are found out and
refused.

A pooler shows itself by a process number of its own: the server's is another one. Its mode shows when two clients
alternate: a session that both get, or that changes, belongs to neither. It may be changed under a running service
(RELOAD): a session that is another one than was opened is left, and the next one is opened with the same doubt.

After a fail-over the new primary has a higher timeline. If the old one comes back as it was, some of our connections
would lead there: what was revoked meanwhile is unknown to it, and what it takes is lost later. So a server is refused
whose timeline is lower than one that this process has used. The new one may lack the last commits: who opens the first
session there is told before anything is read in it. The former one may still be there, with all that it had: whoever
compares must not ask that one, and its sessions are left.

Rules
-----
1. Without a pooler, a session costs one more round trip when it is opened.
2. A server that does not tell its timeline is not compared. Timelines of different clusters are not compared. A standby
   has none of its own: while it is one, it is another server than its primary, and a session is used once.
3. How long a session may be silent follows from the limits that it has, which the URL or an administrator may have set.
4. A store is in one schema: the first of the search path that has the record of its revision. From then on a session
   looks nowhere else: tables of the same names in another schema, which come first or are made later, would hide
   revocations. A database without a store keeps its path: that is where it is founded.
"""

from __future__ import annotations

import contextlib
import math
import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
from psycopg.pq import ExecStatus
from sqlalchemy.engine import Connection

from provisioning.store.executor import told
from provisioning.store.loop_waits import LoopConnection, Silence, Silences

_REFUSED_OPTION: Final = re.compile("unsupported (?:options )?startup parameter")
"""PgBouncer's words: it has no code of its own for it."""
_PROBE: Final = b"BEGIN; SELECT pg_backend_pid()"
_PROBES: Final = 3
_PROBE_SECONDS: Final = 10.0
_PROBE_AGAIN_SECONDS: Final = 60.0
_TIMELINE: Final = (
    "SELECT system_identifier, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) FROM pg_control_system() "
    "WHERE NOT pg_is_in_recovery()"
)
_FIRST_STATEMENT: Final = (  # Without the view pg_settings, which makes rows of all four hundred at each look.
    "SELECT extract(epoch FROM current_setting('lock_timeout')::interval)::float, "
    "extract(epoch FROM current_setting('statement_timeout')::interval)::float, "
    # PostgreSQL 17; of a database or role. Ours count in place of it: a change of the schema takes as long as it does.
    "CASE WHEN current_setting('transaction_timeout', true) <> '0' "
    "AND 'transaction_timeout' <> ALL(%s) "  # Given: the names in the options.
    "THEN set_config('transaction_timeout', '0', false) END, "
    "(SELECT set_config('search_path', quote_ident(nspname), false) FROM pg_class "
    "JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = to_regclass('alembic_version'))"
)
_LATE_SECONDS: Final = 5.0
"""After the time that the server itself gives a statement, and in which it should have ended it."""
_ARGUMENT: Final = re.compile(r"(?:\\.|[^\s\\])+", re.DOTALL)
_SETTING: Final = re.compile(r"(?:-c\s*|--)([^=]+)=(.*)", re.DOTALL)


class UnfitServer(psycopg.OperationalError):
    """The URL leads somewhere where the service must not work; *remedy* is what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}. {remedy[0].upper()}{remedy[1:]}")
        self.what = what
        self.remedy = remedy


class OpenedSessions:
    """Opens the sessions of one store."""

    def __init__(self, moved: Callable[[], object] = lambda: None) -> None:
        """Call *moved* when a session is the first at another server than before."""
        self._moved = moved
        self._timelines: Final[dict[int, int]] = {}
        """The highest timeline seen of each cluster."""
        self._server: tuple[int, int] | None = None
        """Where the last session is: cluster and timeline; None: at a standby."""
        self._comparing: Final = threading.Lock()
        self._silences: Final = Silences()
        self._probed_at = -_PROBE_AGAIN_SECONDS

    def open(self, *arguments: Any, **parameters: Any) -> LoopConnection:
        """Return a session with libpq's *parameters*; raise psycopg's errors, `UnfitServer` among them."""
        try:
            driver: LoopConnection = LoopConnection.connect(*arguments, **parameters)
        except psycopg.OperationalError as error:
            if _REFUSED_OPTION.search(str(error)) is None:
                raise
            driver = LoopConnection.connect(*arguments, **_without_options(parameters))
        try:
            driver.autocommit = True
            driver.silences = self._silences
            self._prepare(driver, arguments, parameters)
            driver.silence = _silence(driver, parameters.get("options", ""))
            driver.autocommit = False
        except BaseException:
            driver.close()
            raise
        return driver

    def _prepare(self, driver: LoopConnection, arguments: tuple[Any, ...], parameters: dict[str, Any]) -> None:
        try:
            session = _session(driver)
        except psycopg.OperationalError as error:
            if driver.closed and "statement pooling" in str(error):
                raise _shared_sessions() from error
            raise
        driver.session = session
        if session != driver.info.backend_pid:
            known = time.monotonic() - self._probed_at < _PROBE_AGAIN_SECONDS
            if not known or self._silences.strange > self._probed_at:
                with LoopConnection.connect(*arguments, **_without_options(parameters)) as other:
                    _check_kept(driver, other)
                self._probed_at = time.monotonic()
            for name, value in settings_of(parameters.get("options", "")):
                driver.execute("SELECT set_config(%s, %s, false)", (name, value))
        self._check_timeline(driver)

    def _check_timeline(self, driver: LoopConnection) -> None:
        """Refuse a former primary; say, before anything is read in it, that the session is the first at its server."""
        try:
            found = driver.execute(_TIMELINE, prepare=False).fetchone()
        except psycopg.Error:
            if driver.closed:
                raise
            driver.moves = self._silences.moves
            return
        server = None if found is None else (int(found[0]), int(found[1], 16))
        with self._comparing:
            moved = bool(self._timelines) and server != self._server
            if server is not None:
                self._check_is_newest(driver, *server)
            self._server = server
            self._silences.moves += moved
            driver.moves, driver.at_standby = self._silences.moves, server is None
            if moved:
                self._moved()  # Before another thread reads there.

    def _check_is_newest(self, driver: LoopConnection, cluster: int, timeline: int) -> None:
        known = self._timelines.get(cluster, 0)
        if timeline < known:
            raise UnfitServer(
                f"the server at {driver.info.host}:{driver.info.port} is a former primary that has come back (timeline "
                f"{timeline}, this service has used {known})",
                "stop it, or make it a standby of the present one (pg_rewind, pg_basebackup)",
            )
        self._timelines[cluster] = timeline


def _silence(driver: LoopConnection, options: str) -> Silence:
    """Return how long the session may be silent: a little longer than its limits, and if it has none, for ever.

    The same statement keeps the session to the store's schema.
    The time of a transaction is only limited if *options* do. The server knows who set it only without a pooler.
    """
    ours = [name.lower() for name, _ in settings_of(options)]
    found = driver.execute(_FIRST_STATEMENT, [ours], prepare=False).fetchone()
    if found is None:
        raise AssertionError("a query without FROM has a row")
    lock, statement = (each + _LATE_SECONDS if each else math.inf for each in found[:2])
    return Silence(min(lock, statement), statement)


def check_kept(connection: Connection, session: int) -> None:
    """Leave *connection*, which has that *session* now, and raise SQLAlchemy's error if it was opened with another."""
    driver: Any = connection.connection.driver_connection
    if session != driver.session:
        driver.leave()
        raise told(connection, "which session is it", _shared_sessions())


def settings_of(options: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the settings in libpq's *options*."""
    words = iter(_ARGUMENT.findall(options))
    for word in words:
        text = f"{word}{next(words, '')}" if word == "-c" else word
        if (found := _SETTING.fullmatch(re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL))) is not None:
            yield found[1].strip().replace("-", "_"), found[2]


def _without_options(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "options"}


def _check_kept(driver: LoopConnection, other: LoopConnection) -> None:
    """Raise `UnfitServer` unless *driver* keeps its session while *other* has a transaction."""
    other.autocommit = True
    for _ in range(_PROBES):
        ours = _session(driver)
        theirs = _probe(other)
        if theirs == ours or _session(driver) != ours:
            raise _shared_sessions()
        other.execute("ROLLBACK")


def _probe(other: LoopConnection) -> int:
    """Begin a transaction on *other*, and return its session; not for ever, if the pool has no other one."""
    connection = other.pgconn
    connection.send_query(_PROBE)
    found: int | None = None
    deadline = time.monotonic() + _PROBE_SECONDS
    while True:
        while connection.is_busy():
            if not select.select([connection.socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise UnfitServer(
                    "the connection pool has no second session for this service: each process of it has up to seven",
                    "raise pool_size in pgbouncer.ini",
                )
            connection.consume_input()
        result = connection.get_result()
        if result is None:
            break
        if result.status == ExecStatus.TUPLES_OK:
            found = int(result.get_value(0, 0) or 0)
        elif result.status == ExecStatus.FATAL_ERROR:
            with contextlib.suppress(psycopg.Error):
                other.close()
            raise _shared_sessions()  # In statement mode there are no transactions.
    if found is None:
        raise UnfitServer(
            "the connection pool does not say which session it gives", "name the server itself in database_url"
        )
    return found


def _shared_sessions() -> UnfitServer:
    return UnfitServer(
        "it is reached through a connection pool that gives its sessions to all clients in turn (PgBouncer's pool_mode "
        "transaction or statement): notifications and time limits would not work, without an error",
        "name the server itself, or let the pool keep sessions for this database: pool_mode=session behind it in "
        "pgbouncer.ini",
    )


def _session(driver: LoopConnection) -> int:
    """Return which session of the server *driver* has."""
    row = driver.execute(b"SELECT pg_backend_pid()", prepare=False).fetchone()
    return 0 if row is None else int(row[0])
