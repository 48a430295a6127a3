"""SQLAlchemy's engines for the databases that are supported: what their URL may say, and how a connection is set up.

Rules
-----
1. A URL that would be read otherwise than it was meant is refused, in words that repeat no password.
2. SQLite: WAL, synchronous FULL (a commit is on disk before the answer is sent), foreign keys on.
3. PostgreSQL: a connection that has rested is asked whether it still is one, so that a restart of the server costs no
   request.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from provisioning.errors import ConfigurationError
from provisioning.store.executor import told
from provisioning.store.server_parameters import all_parameters, server_parameters
from provisioning.store.sqlite_writer import PATIENCE_MILLISECONDS

_RESTED_SECONDS: Final = 1.0
_RESTED_SINCE: Final = "rested_since"
_LEFT: Final = "left"
"""Of a place in the pool: the session that was there when it was last asked for is left, for another one."""
_IN_TURN: Final = (
    "sessions lead to different servers in turn, a primary and a standby perhaps. Let database_url lead to the primary "
    "alone: name the servers themselves, with target_session_attrs=read-write (docs/postgresql.md)"
)
_SEVERAL: Final = "several servers are ?host=A:PORT&host=B:PORT behind the database"
_KEPT_LOG_BYTES: Final = 16 * 1024 * 1024
"""Of SQLite's write-ahead log: while somebody reads for long, a backup say, it grows, and would never shrink again."""


def checked_url(url: str) -> URL:
    """Return *url* in its parts; raise `ConfigurationError` if it is none of a database that is supported."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError("database_url is not a URL: use sqlite:///FILE or postgresql+psycopg://…") from error
    except ValueError:  # Whose text is what stands there: a password, where @HOST was forgotten behind it.
        raise ConfigurationError(
            "database_url: what stands in it as the port, behind the last colon, is no number: "
            f"use postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE; {_SEVERAL}"
        ) from None
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigurationError(
            f"database_url begins with {parsed.drivername!r}: use sqlite:///FILE or postgresql+psycopg://HOST/DATABASE"
        )
    return parsed


def postgresql(url: URL, options: dict[str, Any], size: int) -> Engine:
    """Return an engine of *size* connections with the execution *options*; raise `ConfigurationError`."""
    try:
        engine = create_engine(
            url,
            execution_options=options,
            connect_args=server_parameters(url),
            poolclass=QueuePool,
            pool_size=size,
            max_overflow=0,
            use_native_hstore=False,  # Else the server is asked for that type, of which there is none.
        )
    except ArgumentError as error:
        raise ConfigurationError(f"database_url: {error}: {_SEVERAL}") from error
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "database_url names PostgreSQL, whose driver is not installed: in the clone, "
            ".venv/bin/pip install -e '.[postgres]'"
        ) from error
    _check_parameters(url)
    _renew_broken(engine)
    return engine


def _check_parameters(url: URL) -> None:
    """Raise `ConfigurationError` where libpq would not understand the URL, or the URL is not read as it was meant."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import make_conninfo

    if "@" in (url.host or "")[1:]:  # One at the beginning is a socket in Linux's abstract namespace.
        raise ConfigurationError(
            "database_url has an @ in its host: in a user's name or a password write @ as %40, / as %2F, : as %3A, "
            "% as %25"
        )
    try:
        make_conninfo(**all_parameters(url))
    except ProgrammingError as error:
        raise ConfigurationError(f"database_url: {error}: behind its ? stand libpq's parameters, as sslmode") from error


def refuse_other_schemas(engine: Engine, expected: Callable[[], str | None]) -> None:
    """Open no connection to a database whose schema is not that *expected*, unless that is None, or that is filled."""
    from provisioning.store import subscribed  # Only PostgreSQL needs its driver.
    from provisioning.store.opened_sessions import UnfitServer

    @event.listens_for(engine, "connect")
    def check(connection: Any, _record: object) -> None:
        wanted = expected()
        if wanted is None:
            return
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        connection.rollback()
        if found != (wanted,):
            (there,) = found or ("of no version",)
            what = "another version has changed it; stop this process, and start the newer version"
            if there < wanted:
                what = (
                    "it is a copy from before it was changed; restart this process, which changes it again, and repeat "
                    "what is lost (docs/backup.md); or it was downgraded on purpose: then stop this process"
                )
            raise engine.dialect.loaded_dbapi.OperationalError(
                f"the database has schema {there}, this process is for {wanted}: {what}"
            )
        if (filled := subscribed.found_by(connection)) is not None:  # Who only reads would miss revocations.
            raise UnfitServer(*filled)
        connection.rollback()


def _renew_broken(engine: Engine) -> None:
    """Ask a connection that has rested whether it still is one, so that a restart of the server costs no request."""

    @event.listens_for(engine, "checkin")
    def rest(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_RESTED_SINCE] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def wake(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
        driver: Any = connection
        since = record.info.get(_RESTED_SINCE, math.inf)
        kept: Any = record.record_info  # None only of what has left its pool.
        is_second = kept.pop(_LEFT, None) is not None and since == math.inf
        if is_second and driver.is_former:  # SQLAlchemy tries no more, and has an error of its own that names no cause.
            raise engine.dialect.loaded_dbapi.OperationalError(_IN_TURN)
        kept[_LEFT] = True
        if driver.is_former or (driver.at_standby and since < math.inf):
            raise DisconnectionError(
                "it leads to another server than others, or to a standby, perhaps one that takes over"
            )
        if since < driver.silences.last:  # As a rule all hang, and each would be waited for.
            raise DisconnectionError("the server was silent on another connection")
        if time.monotonic() - since >= _RESTED_SECONDS:
            try:
                with driver.prompt():
                    engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise DisconnectionError(str(error)) from error  # The pool makes another.
        del kept[_LEFT]


def sqlite(url: URL, options: dict[str, Any], size: int) -> Engine:
    """Return an engine of *size* connections with the execution *options*; its transactions begin by BEGIN alone."""
    engine = create_engine(url, execution_options=options, poolclass=QueuePool, pool_size=size, max_overflow=0)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # The driver's own transaction control starts them too late (at the first change); ours is explicit.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {PATIENCE_MILLISECONDS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"journal_size_limit = {_KEPT_LOG_BYTES}",
            "temp_store = MEMORY",  # Where savepoints remember pages: a file each would be half of all writing.
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    return engine


def begin_by_itself(engine: Engine) -> None:
    """Have SQLite begin a transaction where SQLAlchemy does."""

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection  # As SQLAlchemy would do it, with less ado.
        try:
            driver.execute("BEGIN")
        except engine.dialect.loaded_dbapi.Error as error:
            raise told(connection, "BEGIN", error) from error
