"""Whether PostgreSQL can write what it may: every table locked as writers do, and a file made to grow.

Some tables can be written while others cannot: each grows by itself, and has locks of its own. What this user may not
try tells nothing.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

_GROW: Final = "TABLE fleet_probe AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)"
# Each table grows by itself, and those that are written seldom have room in their files for long. What is not logged
# takes no room from the write-ahead log: where that is full, the server stops.
_BESIDE_THE_TABLES: Final = (
    "SELECT set_config('temp_tablespaces', coalesce((SELECT quote_ident(spcname) FROM pg_tablespace "
    "WHERE spcname = current_setting('default_tablespace')), ''), true)"  # One that is no more is ignored for tables.
)
_ROOM: Final = (
    (_BESIDE_THE_TABLES, f"CREATE TEMPORARY {_GROW}", "DROP TABLE pg_temp.fleet_probe"),  # Everybody may, by default.
    (f"CREATE UNLOGGED {_GROW}", "DROP TABLE fleet_probe"),
)
"""What PostgreSQL can do where files can grow, in either of two ways."""
_FORBIDDEN: Final = frozenset({"42501", "3F000"})
"""PostgreSQL's errors for a missing privilege, and for no schema to create something in."""


def try_all(connection: Connection) -> None:
    """Lock every table, and make a file grow; raise `DBAPIError` where that fails though it is allowed."""
    from provisioning.store.every_table import EVERY_TABLE  # Seldom needed, and never on SQLite.

    for name in EVERY_TABLE.tables:  # Each by itself: it may be that only some may be changed by this user.
        _try(connection, f"LOCK TABLE {name} IN ROW EXCLUSIVE MODE NOWAIT")
    any(_try(connection, *statements) for statements in _ROOM)


def _try(connection: Connection, *statements: str) -> bool:
    """Execute *statements*; return whether this user may."""
    allowed = True
    connection.exec_driver_sql("SAVEPOINT probe")
    try:
        for statement in statements:
            connection.exec_driver_sql(statement)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in _FORBIDDEN:
            raise
        connection.exec_driver_sql("ROLLBACK TO probe")
        allowed = False
    connection.exec_driver_sql("RELEASE probe")
    return allowed
