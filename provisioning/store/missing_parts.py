"""What a database lacks of this program's schema: removed by somebody, or never restored.

pg_restore makes the tables first, then the rows of one after the other, then keys, references and triggers. If it is
killed, or runs into an error, a store is left that can be read, and lacks revocations perhaps; but always a reference,
as those come last.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import ForeignKeyConstraint, PrimaryKeyConstraint, UniqueConstraint, inspect, text
from sqlalchemy.engine import Connection

from provisioning.store.every_table import EVERY_TABLE
from provisioning.store.tables import audit_entries

_CONSTRAINTS: Final = text("""
    SELECT conrelid::regclass::text, contype::text,
           ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY (conkey))
    FROM pg_constraint WHERE contype IN ('p', 'u', 'f') AND pg_table_is_visible(conrelid)
""")
_TRIGGERS: Final = text("SELECT tgname::text FROM pg_trigger WHERE tgrelid = CAST(:on AS regclass)")
_APPEND_ONLY: Final = "audit_entries_append_only"
_AT_WORK: Final = {
    "postgresql": text("""
        SELECT tgname::text, concat_ws(' ', tgtype, tgattr::text, tgqual, lanname, prosrc)
        FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid JOIN pg_language ON pg_language.oid = prolang
        WHERE tgrelid = CAST('audit_entries' AS regclass) AND tgenabled IN ('O', 'A')
    """),
    "sqlite": text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit_entries'"),
}
"""The triggers of the audit log that a session like ours sets off, and what they do: not those that were disabled, or
for replicas."""
_ON_SQLITE: Final = (
    "CREATE TRIGGER {} BEFORE {} ON audit_entries BEGIN SELECT RAISE(ABORT, 'audit_entries is append-only'); END"
)
_BEFORE_EACH_CHANGE: Final = 2 | 8 | 16 | 32
"""`pg_trigger.tgtype` of BEFORE UPDATE OR DELETE OR TRUNCATE, for each statement."""
_GUARDS: Final = {
    "postgresql": {
        _APPEND_ONLY: (
            f"{_BEFORE_EACH_CHANGE} plpgsql BEGIN RAISE EXCEPTION 'audit_entries is append-only' "
            "USING ERRCODE = 'check_violation'; END"
        )
    },
    "sqlite": {
        "audit_entries_no_update": _ON_SQLITE.format("audit_entries_no_update", "UPDATE"),
        "audit_entries_no_delete": _ON_SQLITE.format("audit_entries_no_delete", "DELETE"),
    },
}
"""What each of them does, as the migrations have made it: on all rows, without a condition."""
AUDIT_TRIGGER: Final = f"the trigger {_APPEND_ONLY}"
"""What `unguarded` calls it: pg_restore makes it before the references, so a store that lacks it alone is whole."""
GUARD_REMEDY: Final = (
    "fleet-provisioning audit verify says whether an entry was changed; "
    "docs/revocation-publication.md has the statements that make the triggers again"
)
_KINDS: Final = (
    (PrimaryKeyConstraint, "p", "primary key"),
    (UniqueConstraint, "u", "uniqueness"),
    (ForeignKeyConstraint, "f", "reference"),
)


def missing(connection: Connection) -> list[str]:
    """Return the tables, the columns as TABLE.COLUMN, and what `unguarded` finds, that the database has not."""
    inspector = inspect(connection)
    there = set(inspector.get_table_names())
    lost = []
    for each in EVERY_TABLE.sorted_tables:
        if each.name not in there:
            lost.append(each.name)
            continue
        columns = {column["name"] for column in inspector.get_columns(each.name)}
        lost += [f"{each.name}.{column.name}" for column in each.columns if column.name not in columns]
    return lost or unguarded(connection)


def unguarded(connection: Connection) -> list[str]:
    """Return what should guard the rows and is not there, of a database with all tables.

    On PostgreSQL; SQLite's tables have it in their definitions.
    """
    if connection.dialect.name != "postgresql":
        return []
    there = {(table, kind, frozenset(columns)) for table, kind, columns in connection.execute(_CONSTRAINTS)}
    lost = [
        f"the {what} of {table.name} ({', '.join(constraint.columns.keys())})"
        for table in EVERY_TABLE.sorted_tables
        for of_kind, kind, what in _KINDS
        for constraint in table.constraints
        if isinstance(constraint, of_kind) and (table.name, kind, frozenset(constraint.columns.keys())) not in there
    ]
    if _APPEND_ONLY not in set(connection.scalars(_TRIGGERS, {"on": audit_entries.name})):
        lost.append(AUDIT_TRIGGER)
    return sorted(lost)


def changes_that_pass(connection: Connection) -> list[str]:
    """Return which triggers of the audit log are missing, disabled or others, so that its entries could be changed."""
    kind = connection.dialect.name
    at_work = {name: " ".join(does.split()) for name, does in connection.execute(_AT_WORK[kind])}
    lost = []
    for name, does in _GUARDS[kind].items():
        if name not in at_work:
            lost.append(f"the trigger {name} is missing or disabled")
        elif at_work[name] != does:
            lost.append(f"the trigger {name} was replaced, or what it calls: it does something else")
    return lost
