"""What else may be wrong with a PostgreSQL server or database, and is told by nothing that fails: rights, order, locks.

Theory
------
An index of text is ordered by the database's collation, which is the operating system's. Another system, or an upgrade
of it, may order otherwise: look-ups then miss rows that are there, and what is unique is there twice. That happens as
well if a standby on another system takes over, or a server's files are moved. Serial numbers are not in question, no
system orders digits and small letters otherwise; names are, by their hyphens and full stops. PostgreSQL notes with
which version the database was made, since 15; in C there is none, and no question.

Whoever may use most tables may lack a right to one, say the audit log, and nothing is issued. Numbers of rows come from
sequences, and those have rights of their own: whoever may change a table may not be allowed to draw its next number,
nor to move the numbers up, which is needed only after a move (`provisioning.store.row_numbers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.store.every_table import EVERY_TABLE

_KNOWN_SINCE: Final = (15,)
_COLLATION: Final = text(
    "SELECT datcollversion, pg_database_collation_actual_version(oid) FROM pg_database "
    "WHERE datname = current_database() AND datcollversion <> pg_database_collation_actual_version(oid)"
)
_NUMBERED: Final = [each.name for each in EVERY_TABLE.sorted_tables if each.autoincrement_column is not None]
_NOT_OURS: Final = text(
    "SELECT CAST(numbers AS text), is_drawn FROM (SELECT numbers, "
    "has_sequence_privilege(numbers, 'USAGE, UPDATE') AND has_sequence_privilege(numbers, 'USAGE, SELECT') "
    "AS is_drawn, has_sequence_privilege(numbers, 'UPDATE') AS is_moved "
    "FROM (SELECT CAST(pg_get_serial_sequence(name, 'id') AS regclass) AS numbers "
    "FROM unnest(CAST(:names AS text[])) AS name) AS numbered) AS rights "
    "WHERE NOT (is_moved AND is_drawn) ORDER BY is_drawn, 1"
)
_NEEDED: Final = [
    (each.name, right)
    for each in EVERY_TABLE.sorted_tables
    for right in (("SELECT", "UPDATE") if each.name == "audit_head" else ("SELECT", "INSERT"))
]
_CLOSED: Final = text(
    "SELECT CAST(found AS text), needed FROM (SELECT to_regclass(name) AS found, needed "
    "FROM unnest(CAST(:names AS text[]), CAST(:rights AS text[])) AS each(name, needed)) AS tables "
    "WHERE found IS NOT NULL AND NOT has_table_privilege(found, needed) ORDER BY needed, 1"
)
"""What nothing is recorded without. Of the other rights some are never needed."""
_LOCKED: Final = text(
    "SELECT CAST(relation AS regclass), pid FROM pg_locks WHERE locktype = 'relation' AND granted "
    "AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid() "
    "AND relation IN (SELECT oid FROM pg_class WHERE relname = ANY(:names)) ORDER BY pid, 1"
)
_PROGRAM: Final = text("SELECT application_name FROM pg_stat_activity WHERE pid = :process")
"""Modes of LOCK TABLE, VACUUM FULL, REINDEX, CREATE INDEX and others, in which nobody else changes the table."""
_SHOWN: Final = 4
COLLATION_REMEDY: Final = (
    "stop the service, REINDEX DATABASE and then ALTER DATABASE … REFRESH COLLATION VERSION; until then, revoke by "
    "serial number (docs/postgresql.md)"
)


def other_collation(connection: Connection) -> str | None:
    """Return what is to be said of the order of text if it is by another version than the indexes; None: nothing."""
    if connection.dialect.name != "postgresql" or (connection.dialect.server_version_info or ()) < _KNOWN_SINCE:
        return None
    row = connection.execute(_COLLATION).one_or_none()
    if row is None:
        return None
    made, now = row
    return (
        f"the database's indexes of text were made with version {made} of the system's collation, and it has {now} "
        "now: a name that is there may not be found, or be given twice"
    )


def locker(connection: Connection, seconds: float) -> tuple[str, str] | None:
    """Return which program has kept others from changing a table for *seconds*, and what to do; None: none, or SQLite.

    It does not wait for the table.
    """
    if connection.dialect.name != "postgresql":
        return None
    names = {"names": [each.name for each in EVERY_TABLE.sorted_tables]}
    if not (before := set(connection.execute(_LOCKED, names).all())):
        return None
    connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})  # Since when, it does not tell all.
    kept = [each for each in connection.execute(_LOCKED, names).all() if each in before]
    if not kept:
        return None
    table, process = kept[0]
    program = connection.execute(_PROGRAM, {"process": process}).scalar() or "no application_name"
    what = f"process {process} ({program}) has locked the table {table} for more than {seconds:g} seconds"
    shown = f"pid {process} in pg_stat_activity shows its query, SELECT pg_terminate_backend({process}) ends it"
    return f"{what}: whoever needs it is refused after ten", f"let it end; {shown}"


def missing_rights(connection: Connection) -> tuple[str, bool] | None:
    """Return what is to be said of tables and sequences that the database's user may not use, and whether it works so.

    None: nothing, or SQLite.
    """
    if connection.dialect.name != "postgresql":
        return None
    names, rights = zip(*_NEEDED, strict=True)
    shut = connection.execute(_CLOSED, {"names": list(names), "rights": list(rights)}).all()
    if shut:
        lacking = _some([f"{right} on {name}" for name, right in shut])
        return f"the database's user may not read or record what the service needs: no {lacking}", False
    found = connection.execute(_NOT_OURS, {"names": _NUMBERED}).all()
    if not found:
        return None
    closed = [name for name, is_drawn in found if not is_drawn]
    if closed:
        return f"the database's user may not number rows: permission denied for sequence {_some(closed)}", False
    lacking = _some([name for name, _ in found])
    return (
        "the database's user may not move the numbers of rows up, as is needed after a logical replication, or a copy "
        f"of the rows alone: no UPDATE on sequence {lacking}"
    ), True


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
