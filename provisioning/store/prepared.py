"""Statements on the busiest paths: compiled once, then handed to the driver as they are.

Theory
------
SQLAlchemy compiles a statement once, too, but builds an execution context and a result around each use: 15
microseconds where SQLite needs 2 for the statement itself. An enrolment has sixteen. So here the compiler is asked for
the text, and the types for how values are written and read, and what is left for each use is the driver's own call::

    Prepared(select(…)) ─ first use: text, binders, readers ─► driver.execute(text, values) ─► tuples

It is the same statement, text and conversion as `Connection.execute` would use, on the same connection and in the same
transaction, and its errors are SQLAlchemy's.

Rules
-----
1. Rows are plain tuples, in the order of the statement's columns.
2. The values given are all that the statement needs, by the names of its parameters or columns.
3. A connection that breaks is invalidated, so that the pool makes it anew.

Handles: select, insert, update and delete with fixed parameters. Does not handle: lists that expand (``IN``), and
defaults that are computed in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Delete, Dialect, Insert, Select, Update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, NoResultFound

_Convert = Callable[[Any], Any]
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement for one kind of database."""

    text: str
    binders: Sequence[tuple[str, _Convert | None]]
    fixed: Values
    readers: Sequence[tuple[int, _Convert]]
    """For the columns whose values the driver does not return as they are to be."""
    positional: bool

    def bound(self, values: Values) -> Any:
        """Return *values* as the driver takes them."""
        if self.fixed:
            values = {**self.fixed, **values}
        if self.positional:
            return [values[name] if bind is None else bind(values[name]) for name, bind in self.binders]
        return {name: values[name] if bind is None else bind(values[name]) for name, bind in self.binders}

    def read(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Return a row of the driver's with every value as its type says."""
        if not self.readers:
            return tuple(row)
        found = list(row)
        for place, convert in self.readers:
            found[place] = convert(found[place])
        return tuple(found)


class Prepared:
    """One statement."""

    def __init__(self, statement: Select[Any] | Insert | Update | Delete) -> None:
        self._statement: Final = statement
        self._compiled: Final[dict[tuple[str, tuple[str, ...]], _Compiled]] = {}

    def run(self, connection: Connection, values: Values) -> int:
        """Execute; return how many rows were changed."""
        cursor, _ = self._execute(connection, values)
        count: int = cursor.rowcount
        return count

    def run_each(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Execute once for each of *rows*, which have the same names."""
        if not rows:
            return
        compiled = self._for(connection.dialect, rows[0])
        driver: Any = connection.connection.driver_connection
        try:
            driver.cursor().executemany(compiled.text, [compiled.bound(values) for values in rows])
        except connection.dialect.loaded_dbapi.Error as error:
            raise _told(connection, compiled.text, error) from error

    def first(self, connection: Connection, values: Values) -> tuple[Any, ...] | None:
        """Execute; return the first row, None if there is none."""
        cursor, compiled = self._execute(connection, values)
        row = cursor.fetchone()
        cursor.close()
        return None if row is None else compiled.read(row)

    def one(self, connection: Connection, values: Values) -> tuple[Any, ...]:
        """Execute; return the row that is there, raise SQLAlchemy's NoResultFound if there is none."""
        row = self.first(connection, values)
        if row is None:
            raise NoResultFound(f"no row: {self._statement}")
        return row

    def rows(self, connection: Connection, values: Values) -> list[tuple[Any, ...]]:
        """Execute; return every row."""
        cursor, compiled = self._execute(connection, values)
        return [compiled.read(row) for row in cursor.fetchall()]

    def _execute(self, connection: Connection, values: Values) -> tuple[Any, _Compiled]:
        compiled = self._for(connection.dialect, values)
        driver: Any = connection.connection.driver_connection
        try:
            return driver.execute(compiled.text, compiled.bound(values)), compiled
        except connection.dialect.loaded_dbapi.Error as error:
            raise _told(connection, compiled.text, error) from error

    def _for(self, dialect: Dialect, values: Values) -> _Compiled:
        place = dialect.name, tuple(values)
        compiled = self._compiled.get(place)
        if compiled is None:
            compiled = self._compiled[place] = _compile(self._statement, dialect, values)
        return compiled


def _compile(statement: Select[Any] | Insert | Update | Delete, dialect: Dialect, values: Values) -> _Compiled:
    if isinstance(statement, Select):
        compiled: Any = statement.compile(dialect=dialect)
        columns = statement.column_descriptions
    else:
        compiled = statement.compile(dialect=dialect, column_keys=list(values))
        columns = statement.returning_column_descriptions
    positional = bool(compiled.positional)
    names = compiled.positiontup if positional else list(compiled.binds)
    binders = []
    for name in names:
        kind = compiled.binds[name].type.dialect_impl(dialect)
        binders.append((name, kind.bind_processor(dialect)))
    fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required and name not in values}
    readers = []
    for place, column in enumerate(columns):
        convert = column["type"].dialect_impl(dialect).result_processor(dialect, None)
        if convert is not None:
            readers.append((place, convert))
    return _Compiled(str(compiled), binders, fixed, readers, positional)


def _told(connection: Connection, text: str, error: Exception) -> BaseException:
    """Return the driver's *error* as SQLAlchemy would tell it."""
    dialect = connection.dialect
    broken = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)  # type: ignore[arg-type]
    if broken:
        connection.invalidate(error)
    return DBAPIError.instance(
        text,
        None,
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=broken,
        dialect=dialect,
    )
