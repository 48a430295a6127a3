"""The schema on disk: brought up to date by the migrations that are shipped beside this file.

Rules
-----
1. The tables are made and changed by migrations only, from the first one on.
2. A database that is newer than the program is refused: an old program must not guess.
3. Of several processes that start at once on one database, one migrates it and the others wait.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, select
from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError
from provisioning.store import audit
from provisioning.store.database import Database

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_LOCK: Final = 0x666C6565  # An advisory lock's number on PostgreSQL: any that nobody else uses.


def _configuration() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


async def upgrade(database: Database) -> bool:
    """Bring the schema up to date; return whether anything was changed.

    Raises `ConfigurationError` if the database was made by a newer program.
    """
    return await database.write(_upgrade_and_begin)


def _upgrade_and_begin(connection: Connection) -> bool:
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    changed = _upgrade(connection)
    audit.begin(connection)
    return changed


def _upgrade(connection: Connection) -> bool:
    config = _configuration()
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    newest = script.get_current_head()
    if current == newest:
        return False
    known: set[Any] = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise ConfigurationError(
            f"the database has schema {current}, which this version does not know: install the newer version again"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return True
