"""The schema on disk: brought up to date by the migrations that are shipped beside this file.

Rules
-----
1. The tables are made and changed by migrations only, from the first one on.
2. A database that is newer than the program is refused: an old program must not guess.
3. Of several processes that start at once on one database, one migrates it and the others wait.
4. It is migrated while no process of an older version uses it (`provisioning.store.revision`), which would not notice.
   One that is just stopping is waited for.
5. Whether there is anything to migrate is determined without Alembic, which is imported only if needed: that takes a
   tenth of a start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import column, func, inspect, select, table, text
from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError
from provisioning.program.starting import importing
from provisioning.store import audit, audit_findings, devices, missing_parts, row_numbers
from provisioning.store.database import Database
from provisioning.store.revision import CURRENT, Session, sessions_of_others
from provisioning.store.tables import audit_entries, audit_head, counters

if TYPE_CHECKING:
    from alembic.config import Config

_REVISION: Final = table("alembic_version", column("version_num"))  # One row: the revision that Alembic has recorded.
_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_LOCK: Final = 0x666C6565  # An advisory lock's number on PostgreSQL: any that is otherwise unused.
_WITHOUT_LIMITS: Final = text(
    "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN "
    "('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')"  # The last since 17.
)
_PATIENCE_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.2
_SHOWN: Final = 4


class OthersThere(ConfigurationError):
    """Another version of the service has the store open."""

    def __init__(self, found: str | None, others: Sequence[Session]) -> None:
        """*found* is the database's schema, older than this program's."""
        shown = ", ".join(f"{each.pid} from {each.address}" for each in others[:_SHOWN])
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        super().__init__(
            f"the database has schema {found}, older than this version's {CURRENT}, and another version of the service "
            f"uses it (PostgreSQL's sessions {shown}{more}): stop every process of that version, copy the store "
            "(docs/backup.md) and start this one again; a session whose machine is gone ends by pg_terminate_backend"
        )


def _configuration() -> Config:
    with importing():
        from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


async def upgrade(database: Database) -> bool:
    """Bring the schema up to date, of a store whose authority is being founded; return whether anything was changed.

    Raises `ConfigurationError` if the database was made by a newer program.
    """
    return await database.write(_upgrade_and_begin)


async def upgrade_founded(database: Database, owner: str) -> bool:
    """Do the same for the store of a founded authority: from then on it records *owner*, the service itself.

    Raises `ConfigurationError`, and creates nothing, if there is no such store: with an empty one in its place the
    service would have forgotten its revocations. Changes nothing either while another version uses it, or if its audit
    log was written with another key.
    """
    check_there(database)

    def upgrade_known(connection: Connection) -> bool:
        if state(connection) is SchemaState.NONE:
            raise _not_founded(database)
        _lock(connection)
        had_log = audit.is_there(connection)
        changed = _upgrade(connection)
        _check_restored(connection, database)
        row_numbers.move_up(connection)
        if not had_log:
            audit.begin(connection)
        if devices.find(connection, owner) is None:
            raise _not_founded(database)
        audit_findings.check_key(connection)
        return changed

    given_up_at = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return await database.write(upgrade_known)
        except OthersThere:
            if time.monotonic() >= given_up_at:
                raise
        await asyncio.sleep(_LOOK_SECONDS)


def _check_restored(connection: Connection, database: Database) -> None:
    """Raise `ConfigurationError` if the database was not restored to the end: revocations may be missing, too."""
    if lost := missing_parts.unguarded(connection):
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        raise ConfigurationError(
            f"database_url: {database.shown_url} lacks {'; '.join(lost[:_SHOWN])}{more}: it was not restored to the "
            "end, and may lack revocations. Restore the copy again, into an empty database, by pg_restore "
            "--single-transaction (docs/backup.md). If somebody has removed them since, a later copy lacks them, too: "
            "add them again; pg_dump --schema-only of a new store has the statements"
        )


def check_there(database: Database) -> None:
    """Raise `ConfigurationError` if the database is a file that does not exist, which opening it would create."""
    if database.url.get_backend_name() == "sqlite" and not Path(database.url.database or "").exists():
        raise _not_founded(database)


def check_current(connection: Connection, database: Database) -> None:
    """Raise `ConfigurationError` unless the schema is this program's: for commands that read, and must not change it.

    An upgrade can only be undone with an earlier copy, and an older service may be running: a command that lists
    something must not decide on either.
    """
    found = state(connection)
    if found is SchemaState.NONE:
        raise _not_founded(database)
    if found is SchemaState.OLDER:
        raise ConfigurationError(
            f"the database has schema {_revision(connection)}, older than this version's {CURRENT}: stop the service, "
            "copy the store (docs/backup.md) and start this version of the service, which brings it up to date"
        )
    if found is SchemaState.NEWER:
        raise _too_new(connection)


def check_has_audit_log(connection: Connection, database: Database) -> None:
    """Raise `ConfigurationError` unless the schema has an audit log: any that has one, 0004 and later, is accepted."""
    if state(connection) is SchemaState.NONE:
        raise _not_founded(database)
    if not inspect(connection).has_table(audit_entries.name):
        raise ConfigurationError(
            f"the database has schema {_revision(connection)}, from before there was an audit log: copy the store "
            "(docs/backup.md); the log begins when this version of the service starts"
        )


def takes_changes(connection: Connection) -> bool:
    """Whether anything can be written: not on a PostgreSQL standby, nor if its settings forbid it."""
    return connection.dialect.name != "postgresql" or connection.scalar(text("SHOW transaction_read_only")) == "off"


def may_be_forgotten(connection: Connection) -> bool:
    """Whether commits may be lost if the machine fails: a setting of PostgreSQL that no session can change."""
    return connection.dialect.name == "postgresql" and connection.scalar(text("SHOW fsync")) == "off"


def former_rows(connection: Connection) -> int:
    """Return how many former versions PostgreSQL keeps of the rows that almost every change updates; 0 on SQLite.

    It normally removes them at once. It cannot while a transaction that may still read them is open, anywhere in the
    database; then each change reads all of them.
    """
    if connection.dialect.name != "postgresql":
        return 0
    kept = text(
        "SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables WHERE relid = ANY (CAST(:of AS regclass[]))"
    )
    return int(connection.execute(kept, {"of": [counters.name, audit_head.name]}).scalar_one())


def waiting_for_standby(connection: Connection, seconds: float) -> int:
    """Return how many of our commits have waited for a synchronous standby for so many *seconds*; 0 on SQLite.

    Whoever changes something waits behind them, without a limit of ours; and a session that was left in such a wait
    keeps what it has locked, though its process has ended.
    """
    if connection.dialect.name != "postgresql":
        return 0
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep' "
        "AND clock_timestamp() - query_start >= make_interval(secs => :seconds)"
    )
    return int(connection.execute(waiting, {"seconds": seconds}).scalar_one())


def _not_founded(database: Database) -> ConfigurationError:
    file = Path(database.url.database or "")
    if database.url.get_backend_name() == "sqlite" and not file.exists():  # As if no database was configured.
        return ConfigurationError(
            f"the fleet's store {file} is not there: if it is on PostgreSQL, give its database_url in "
            "provisioning.toml or as FLEET_PROVISIONING_DATABASE_URL; if not, restore the file from the backup: with "
            "an empty one nobody would be revoked"
        )
    return ConfigurationError(
        f"database_url: {database.shown_url} holds no records of this authority: restore it from the "
        "backup, or name the right one; with an empty one nobody would be revoked"
    )


def _too_new(connection: Connection) -> ConfigurationError:
    return ConfigurationError(
        f"the database has schema {_revision(connection)}, which this version does not know: install the newer version "
        "again, or, to go back, restore the copy of before the upgrade (docs/backup.md)"
    )


def _upgrade_and_begin(connection: Connection) -> bool:
    _lock(connection)
    changed = _upgrade(connection)
    audit.begin(connection)
    return changed


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))


class SchemaState(StrEnum):
    """How a database's schema compares with this program's."""

    NONE = "none"
    """The database is empty."""
    CURRENT = "current"
    OLDER = "older"
    """The next start makes it current."""
    NEWER = "newer"


def state(connection: Connection) -> SchemaState:
    """Compare the schema with this program's, and change nothing."""
    current = _revision(connection)
    if current == CURRENT:
        return SchemaState.CURRENT
    if current is None:
        return SchemaState.NONE
    with importing():
        from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(_configuration())
    known: set[Any] = {revision.revision for revision in script.walk_revisions()}
    return SchemaState.OLDER if current in known else SchemaState.NEWER


def _upgrade(connection: Connection) -> bool:
    found = state(connection)
    if found is SchemaState.CURRENT:
        return False
    if found is SchemaState.NEWER:
        raise _too_new(connection)
    if found is SchemaState.OLDER and (others := sessions_of_others(connection)):
        raise OthersThere(_revision(connection), others)
    with importing():
        from alembic import command

    if connection.dialect.name == "postgresql":
        connection.execute(_WITHOUT_LIMITS)  # A request's limit is too short for a large table.
        driver: Any = connection.connection.driver_connection
        driver.patient = True  # And so is a server's silence.
    config = _configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return True


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_REVISION.name):
        return None
    revisions = connection.scalars(select(_REVISION.c.version_num).limit(_SHOWN)).all()
    if len(revisions) > 1:  # Our migrations, each after another, never leave more than one.
        raise ConfigurationError(
            f"the database's alembic_version has several rows ({', '.join(revisions)}): somebody has changed it by "
            "hand; restore the store from the backup"
        )
    return revisions[0] if revisions else None


def tables(connection: Connection) -> int:
    """Return how many tables there are, whosesoever, except that of the revision."""
    return len(set(inspect(connection).get_table_names()) - {_REVISION.name})
