"""Rows for every table of a store, whatever its schema: made from what the database says of its own tables.

    rows = RowsOfAnySchema(der)
    rows.add(connection)      # in each table two rows: with all columns, and without those that may be NULL
    rows.every(connection)    # all rows that there are, by table

Two rows of a table differ in every column that a constraint could compare, and each refers to its counterparts.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Column, MetaData, Table, inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.types import JSON, Boolean, DateTime, Integer, LargeBinary, String

_THEN: Final = datetime(2026, 1, 1, tzinfo=UTC)
_WORDS: Final = {"kind": "revoked", "line": "default", "reason": "keyCompromise", "role": "device", "state": "active"}
"""Columns with words of which a migration may look for one."""
_NOT_OURS: Final = "alembic_version"

Row = Mapping[str, Any]


class RowsOfAnySchema:
    """Adds rows to a store, and reads all that it has."""

    def __init__(self, der: bytes) -> None:
        """*der* is a certificate, for columns that have one."""
        self._der = der
        self._number = 1000

    def add(self, connection: Connection) -> None:
        """Add two rows to each table."""
        known = MetaData()
        known.reflect(connection)
        for complete in (True, False):
            self._number += 1
            for table in known.sorted_tables:
                if table.name != _NOT_OURS:
                    connection.execute(table.insert().values(self._row(table, complete=complete)))

    def every(self, connection: Connection) -> dict[str, list[Row]]:
        """Return the rows of each table, as the driver has them."""
        names = set(inspect(connection).get_table_names()) - {_NOT_OURS}
        return {
            name: [dict(row) for row in connection.execute(text(f"SELECT * FROM {name}")).mappings()] for name in names
        }

    def _row(self, table: Table, *, complete: bool) -> dict[str, Any]:
        # What a constraint compares with another column is then there with it, or missing with it.
        return {column.name: self._value(table, column) for column in table.columns if complete or not column.nullable}

    def _value(self, table: Table, column: Column[Any]) -> Any:
        for key in column.foreign_keys:
            return self._value(key.column.table, key.column)
        word = f"{table.name[:8]}-{column.name[:8]}-{self._number}"
        match column.type:
            case JSON():
                return []
            case Boolean():
                return True
            case DateTime():
                return _THEN + timedelta(days=self._number)
            case Integer():
                return self._number
            case LargeBinary():
                return self._der if column.name == "der" else word.encode().ljust(32)[:32]
            case String():
                return _WORDS.get(column.name, word[: column.type.length])
        raise AssertionError(f"{table.name}.{column.name}: no value is known for {column.type!r}")


def lost(before: Mapping[str, list[Row]], after: Mapping[str, list[Row]]) -> list[tuple[str, Row]]:
    """Return the rows that were there *before*, and have none with the same values *after*; columns may have come."""
    missing = []
    for table, rows in before.items():
        if not rows:
            continue
        columns = list(rows[0])
        kept = {tuple(repr(row.get(column)) for column in columns) for row in after.get(table, ())}
        missing += [(table, row) for row in rows if tuple(map(repr, row.values())) not in kept]
    return missing
