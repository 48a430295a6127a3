"""Statements on the busiest paths: compiled once, then handed to the driver as they are.

Theory
------
SQLAlchemy also compiles a statement once, but builds an execution context and a result for each use: 15
microseconds, where SQLite needs 2 for the statement itself. An enrolment has sixteen. So here the compiler provides
the text, and the types the conversion of values, and each use is only the driver's own call::

    Prepared(select(…)) ─ first use: text, binders, readers ─► driver.execute(text, values) ─► tuples

It is the same statement, text and conversion as `Connection.execute` would use, on the same connection and in the same
transaction, and its errors are SQLAlchemy's. `provisioning.store.at_once` combines the
statements of works led side by side (`provisioning.store.company`), and `provisioning.store.of_many` many look-ups of
one work on SQLite.

Rules
-----
1. Rows are plain tuples, in the order of the statement's columns.
2. The values given are exactly those that the statement needs, by the names of its parameters or columns.
3. A connection that breaks is invalidated, so that the pool replaces it.
4. Every parameter has a type: without one, the conversion is up to the driver.

Handles: select, insert, update and delete with fixed parameters. Does not handle: lists that expand (``IN``), and
defaults that are computed in Python.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, Protocol

from sqlalchemy import JSON, Delete, Dialect, Insert, Select, Update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, NoResultFound
from sqlalchemy.types import NullType

from provisioning.store import of_many
from provisioning.store.at_once import array_of, text_at_once
from provisioning.store.side_by_side import COMPANY

_Convert = Callable[[Any], Any]
Values = Mapping[str, Any]

_AT_ONCE: Final = 5000
"""Rows per statement on PostgreSQL; so many one by one would block all writers for seconds."""
_NULL: Final = math.nan
"""NULL for SQLite, which stores no NaN. For None its driver looks for an adapter, in 3,000 steps a value."""
_EXECUTOR: Final = "executor"
"""Key in a connection's ``info``: see `executor_of`."""


@dataclass(frozen=True, slots=True)
class Same:
    """A value that all rows of `Prepared.run_columns` share."""

    value: Any


Columns = Mapping[str, Sequence[Any] | Same]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one execution of a statement has changed or found."""

    count: int
    rows: Sequence[tuple[Any, ...]] = ()


class Leader(Protocol):
    """Leads several works side by side on a connection."""

    def ask(self, prepared: Prepared, rows: Sequence[Values]) -> list[Answer]:
        """Return an answer for each of *rows*."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement for one kind of database."""

    text: str
    binders: Sequence[tuple[str, _Convert | None]]
    in_order: Callable[[Values], Sequence[Any]]
    """Picks the parameters from the values, in the order of the text, as the driver takes them: the fixed ones, too."""
    fixed: Values
    readers: Sequence[tuple[int, _Convert]]
    """The same for the columns whose values the driver does not return as wanted."""
    positional: bool
    at_once: str
    """The text for arrays of values; empty if there is none."""

    def bound(self, values: Values) -> Any:
        """Return *values* as the driver takes them."""
        if self.positional:
            return self.in_order(values)
        if self.fixed:
            values = {**self.fixed, **values}
        return {name: values[name] if bind is None else bind(values[name]) for name, bind in self.binders}

    def bound_at_once(self, rows: Sequence[Values]) -> Any:
        """Return the values of *rows* as arrays, None if that is impossible."""
        if self.positional:  # SQLite, with one parameter.
            return None if len(self.binders) > 1 else self.array([values[self.binders[0][0]] for values in rows], {})
        bound: dict[str, Any] = dict(self.fixed)
        for name, bind in self.binders:
            if name not in bound:
                column = [values[name] for values in rows]
                bound[name] = array_of(column if bind is None else [bind(value) for value in column])
        return bound

    def array(self, wanted: Sequence[Any], common: Values) -> tuple[Any, ...] | None:
        """Return the values of SQLite's *at_once*: those *wanted* of its first parameter, and the *common* others.

        None if that is impossible.
        """
        array = of_many.array_of(wanted)
        common = {**self.fixed, **common}
        return None if array is None else (array, *[common[name] for name, _ in self.binders[1:]])

    def read(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Return a row of the driver with every value converted to its type."""
        if not self.readers:
            return tuple(row)
        found = list(row)
        for place, convert in self.readers:
            if (value := found[place]) is not None:  # No type of ours reads NULL as anything else.
                found[place] = convert(value)
        return tuple(found)

    def read_all(self, rows: Sequence[Sequence[Any]]) -> Sequence[tuple[Any, ...]]:
        """Do the same to many rows, column by column: most columns need nothing."""
        if not self.readers or not rows:
            return [tuple(row) for row in rows]
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        for place, convert in self.readers:
            column = columns[place]
            if column.count(None) < len(column):
                columns[place] = [None if value is None else convert(value) for value in column]
        return list(zip(*columns, strict=True))


class Prepared:
    """One statement.

    For works led side by side: *at_once* says that their requests may be combined in one statement, where the column
    *told_by* distinguishes an INSERT's rows, and *sums* names the amount taken from a shared counter; *comes_last* that
    it waits until none requests anything else.
    """

    def __init__(
        self,
        statement: Select[Any] | Insert | Update | Delete,
        *,
        at_once: bool = False,
        told_by: str = "",
        sums: str = "",
        comes_last: bool = False,
    ) -> None:
        self._statement: Final = statement
        self._compiled: Final[dict[tuple[str, tuple[str, ...]], _Compiled]] = {}
        self._at_once = at_once or bool(told_by)
        self._told_by = told_by
        self._sums = sums
        self.comes_last: Final = comes_last
        self.reads: Final = isinstance(statement, Select)

    def run(self, connection: Connection, values: Values) -> int:
        """Execute; return the number of changed rows."""
        compiled = self._for(connection.dialect, values)
        if not compiled.positional and (leader := _leader(connection)) is not None:
            return leader.ask(self, [values])[0].count
        count: int = _execute(connection, compiled, values).rowcount
        return count

    def run_each(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Execute once for each of *rows*, which have the same names.

        On PostgreSQL many are executed at once if the statement allows it.
        """
        if not rows:
            return
        compiled = self._for(connection.dialect, rows[0])
        if not compiled.positional and (leader := _leader(connection)) is not None:
            leader.ask(self, rows)
            return
        if len(rows) == 1:
            _execute(connection, compiled, rows[0])
            return
        if compiled.at_once and not self.reads and not compiled.positional:
            for first in range(0, len(rows), _AT_ONCE):
                _execute_many(connection, compiled, rows[first : first + _AT_ONCE])
            return
        _execute_each(connection, compiled, [compiled.bound(values) for values in rows])

    def run_columns(self, connection: Connection, columns: Columns) -> None:
        """Execute once for each row of *columns*, which are as long as each other; at least one is no `Same`.

        It is `run_each` without a mapping for each row, which on SQLite takes as long as the statement.
        """
        compiled = self._for(connection.dialect, columns)
        size = next(len(column) for column in columns.values() if not isinstance(column, Same))
        if size <= 1 or not compiled.positional:
            every = [repeat(each.value, size) if isinstance(each, Same) else each for each in columns.values()]
            self.run_each(connection, [dict(zip(columns, row, strict=True)) for row in zip(*every, strict=True)])
            return
        fixed = compiled.fixed
        bound = [
            _bound(columns[name] if name in columns else Same(fixed[name]), bind) for name, bind in compiled.binders
        ]
        _execute_each(connection, compiled, zip(*bound, strict=False))

    def first(self, connection: Connection, values: Values) -> tuple[Any, ...] | None:
        """Execute; return the first row, None if there is none."""
        compiled = self._for(connection.dialect, values)
        if not compiled.positional and (leader := _leader(connection)) is not None:
            told = leader.ask(self, [values])[0].rows
            return told[0] if told else None
        rows = _execute(connection, compiled, values).fetchall()  # All of them, or the statement stays open.
        return compiled.read(rows[0]) if rows else None

    def one(self, connection: Connection, values: Values) -> tuple[Any, ...]:
        """Execute; return the row, raise SQLAlchemy's NoResultFound if there is none."""
        row = self.first(connection, values)
        if row is None:
            raise NoResultFound(f"no row: {self._statement}")
        return row

    def rows(self, connection: Connection, values: Values) -> Sequence[tuple[Any, ...]]:
        """Execute; return every row."""
        compiled = self._for(connection.dialect, values)
        if not compiled.positional and (leader := _leader(connection)) is not None:
            return leader.ask(self, [values])[0].rows
        return compiled.read_all(_execute(connection, compiled, values).fetchall())

    def answers(self, connection: Connection, rows: Sequence[Values]) -> list[Answer]:
        """Execute for each of *rows*, which have the same names, with as few statements as possible."""
        compiled = self._for(connection.dialect, rows[0])
        if self.reads:
            return self._read(connection, compiled, rows)
        if self._sums:
            return self._taken(connection, compiled, rows)
        cursor = None if len(rows) == 1 else _execute_many(connection, compiled, rows)
        if cursor is None:
            return [_answer(_execute(connection, compiled, values), compiled) for values in rows]
        found = cursor.fetchall()
        if not self._told_by:
            changed = Counter(row[-1] for row in found)
            return [Answer(changed[place]) for place in range(1, len(rows) + 1)]
        told = {row[-1]: Answer(1, (compiled.read(row[:-1]),)) for row in found}
        return [told.pop(values[self._told_by], Answer(0)) for values in rows]  # Of equal rows, the first was inserted.

    def placed(
        self, connection: Connection, wanted: Sequence[Any], common: Values | None = None
    ) -> Sequence[tuple[Any, ...]]:
        """Return what is found for each of *wanted*, the different values of the first parameter, in no order.

        Rows end with the place of the value that they answer, from 1. *common* has the other parameters' values. It is
        `answers` without a mapping for each value, and without an answer for each.
        """
        if not wanted:
            return ()
        common = common or {}
        rows = [{"wanted": wanted[0], **common}]
        compiled = self._for(connection.dialect, rows[0])
        bound = compiled.array(wanted, common) if compiled.positional and compiled.at_once and len(wanted) > 1 else None
        if bound is not None:
            return compiled.read_all(_execute_at_once(connection, compiled, bound).fetchall())
        rows += [{"wanted": each, **common} for each in wanted[1:]]
        answers = enumerate(self.answers(connection, rows), 1)
        return [(*row, place) for place, answer in answers for row in answer.rows]

    def _read(self, connection: Connection, compiled: _Compiled, rows: Sequence[Values]) -> list[Answer]:
        asked = {tuple(values.values()): values for values in rows}  # Equal values, equal answers.
        many = None if len(asked) == 1 else _execute_many(connection, compiled, list(asked.values()))
        if many is None:
            found = {place: _answer(_execute(connection, compiled, each), compiled) for place, each in asked.items()}
            return [found[tuple(values.values())] for values in rows]
        of_place: dict[int, list[tuple[Any, ...]]] = {}
        for row in many.fetchall():
            of_place.setdefault(row[-1], []).append(compiled.read(row[:-1]))
        found = {}
        for place, each in enumerate(asked, 1):
            read = of_place.get(place, [])
            found[each] = Answer(len(read), read)
        return [found[tuple(values.values())] for values in rows]

    def _taken(self, connection: Connection, compiled: _Compiled, rows: Sequence[Values]) -> list[Answer]:
        """Take the total from each counter, and divide it in the order of *rows*."""
        name = self._sums
        left: dict[tuple[Any, ...], int] = {}
        for values in rows:
            which = _but(values, name)
            left[which] = left.get(which, 0) + values[name]
        ends: dict[tuple[Any, ...], int] = {}
        answers = []
        for values in rows:
            which = _but(values, name)
            if which not in ends:
                cursor = _execute(connection, compiled, {**values, name: left[which]})
                ends[which] = cursor.fetchone()[0] - left[which]
            ends[which] += values[name]
            answers.append(Answer(1, ((ends[which],),)))
        return answers

    def _for(self, dialect: Dialect, values: Values) -> _Compiled:
        place = dialect.name, tuple(values)
        compiled = self._compiled.get(place)
        if compiled is None:
            compiled = _compile(self._statement, dialect, values, at_once=self._at_once, told_by=self._told_by)
            self._compiled[place] = compiled
        return compiled


def _leader(connection: Connection) -> Leader | None:
    """Return who leads the works on *connection*, if anybody does; not on SQLite."""
    leader: Leader | None = connection.info.get(COMPANY)
    return leader


def _but(values: Values, name: str) -> tuple[Any, ...]:
    return tuple(value for each, value in values.items() if each != name)


def _answer(cursor: Any, compiled: _Compiled) -> Answer:
    rows = [compiled.read(row) for row in cursor.fetchall()] if cursor.description else []
    return Answer(cursor.rowcount, rows)


def _execute(connection: Connection, compiled: _Compiled, values: Values) -> Any:
    """Return a cursor with the result, which must be read before anything else is executed."""
    executor = vars(connection).get(_EXECUTOR) or _noted_executor(connection)  # `executor_of`, without its call.
    bound = compiled.in_order(values) if compiled.positional else compiled.bound(values)
    try:
        return executor.execute(compiled.text, bound)
    except connection.dialect.loaded_dbapi.Error as error:
        raise told(connection, compiled.text, error) from error


def executor_of(connection: Connection) -> Any:
    """Return what executes statements: the driver's connection; on SQLite one reused cursor of it.

    Making a cursor costs half a look-up.
    """
    return vars(connection).get(_EXECUTOR) or _noted_executor(connection)


def _noted_executor(connection: Connection) -> Any:
    notes = connection.info  # Cleared when the connection breaks.
    found = notes.get(_EXECUTOR)
    if found is None:
        driver: Any = connection.connection.driver_connection
        found = notes[_EXECUTOR] = driver.cursor() if connection.dialect.name == "sqlite" else driver
    return found


def keep_executor(connection: Connection) -> None:
    """Remember it with *connection* itself, whose ``info`` costs as much as a look-up, until `leave_executor`."""
    vars(connection)[_EXECUTOR] = executor_of(connection)


def leave_executor(connection: Connection) -> None:
    """Forget it, before *connection* is returned to its pool or when it breaks: others use it then."""
    vars(connection).pop(_EXECUTOR, None)


def _execute_each(connection: Connection, compiled: _Compiled, bound: Iterable[Any]) -> None:
    """Execute once for each of *bound*, the values as the driver takes them."""
    driver: Any = connection.connection.driver_connection
    try:
        driver.cursor().executemany(compiled.text, bound)
    except connection.dialect.loaded_dbapi.Error as error:
        raise told(connection, compiled.text, error) from error


def _execute_many(connection: Connection, compiled: _Compiled, rows: Sequence[Values]) -> Any:
    """Return a cursor as `_execute` does, None if there is no statement for many rows, or for these values."""
    bound = compiled.bound_at_once(rows) if compiled.at_once else None
    return None if bound is None else _execute_at_once(connection, compiled, bound)


def _execute_at_once(connection: Connection, compiled: _Compiled, bound: Any) -> Any:
    try:
        return executor_of(connection).execute(compiled.at_once, bound)
    except connection.dialect.loaded_dbapi.Error as error:
        raise told(connection, compiled.at_once, error) from error


def _compile(
    statement: Select[Any] | Insert | Update | Delete, dialect: Dialect, values: Values, *, at_once: bool, told_by: str
) -> _Compiled:
    if isinstance(statement, Select):
        compiled: Any = statement.compile(dialect=dialect)
        columns = statement.column_descriptions
    else:
        compiled = statement.compile(dialect=dialect, column_keys=list(values))
        columns = statement.returning_column_descriptions
    positional = bool(compiled.positional)
    names = compiled.positiontup if positional else list(compiled.binds)
    binders = [(name, _binder(compiled, name, dialect)) for name in names]
    fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required and name not in values}
    if not at_once:
        together = ""
    elif dialect.name == "postgresql":
        asked = [name for name in names if name not in fixed]
        types = {name: _without_length(compiled.binds[name].type.compile(dialect)) for name in asked}
        together = text_at_once(statement, str(compiled), types, told_by)
    else:
        together = _text_of_many(statement, str(compiled), binders)
    return _Compiled(
        text=str(compiled),
        binders=binders,
        in_order=_picker(binders, fixed),
        fixed=fixed,
        readers=list(_readers(columns, dialect)),
        positional=positional,
        at_once=together,
    )


def _binder(compiled: Any, name: str, dialect: Dialect) -> _Convert | None:
    """Return how a parameter's value is converted for the driver, None if it is not."""
    typed = compiled.binds[name].type
    if isinstance(typed, NullType):  # Left of a comparison, SQLAlchemy infers no type from the right.
        raise TypeError(f"parameter {name!r} has no type and would go to the driver as it is: {compiled.statement}")
    convert: _Convert | None = typed.dialect_impl(dialect).bind_processor(dialect)
    return convert


def _readers(columns: Iterable[Any], dialect: Dialect) -> Iterator[tuple[int, _Convert]]:
    """Yield the places of the *columns* whose values are converted when they are read, and how."""
    for place, column in enumerate(columns):
        kind = column["type"]
        convert = kind.dialect_impl(dialect).result_processor(dialect, None)
        if convert is not None:
            yield place, _json_reader(convert) if isinstance(kind, JSON) else convert


def _text_of_many(statement: object, text: str, binders: Sequence[tuple[str, _Convert | None]]) -> str:
    """Return SQLite's text for an array of values; empty if there is none: it takes what needs no conversion."""
    is_look_up = isinstance(statement, Select) and not any(bind for _, bind in binders)
    return of_many.text_of_many(text) if is_look_up else ""


def _bound(column: Sequence[Any] | Same, bind: _Convert | None) -> Iterable[Any]:
    """Return the values of *column* as SQLite's driver takes them, those of `Same` for ever."""
    if isinstance(column, Same):
        value = column.value if bind is None else bind(column.value)
        return repeat(_NULL if value is None else value)
    return column if bind is None else map(bind, column)


def _json_reader(convert: _Convert) -> _Convert:
    """Return *convert* with a shortcut for the empty list, the most frequent value."""
    return lambda text: [] if text == "[]" else convert(text)


def _picker(binders: Sequence[tuple[str, _Convert | None]], fixed: Values) -> Callable[[Values], Sequence[Any]]:
    """Return a function that does all of it in one step: put together from its parts, it takes three times as long."""
    scope: dict[str, Any] = {}
    parts = []
    for place, (name, bind) in enumerate(binders):
        scope[f"_convert_{place}"] = bind
        value = f"values[{name!r}]"
        if name in fixed:
            scope[f"_fixed_{place}"] = fixed[name]
            value = f"_fixed_{place}"
        parts.append(value if bind is None else f"_convert_{place}({value})")
    exec(f"def picked(values):\n    return [{', '.join(parts)}]", scope)  # noqa: S102 - Names are quoted; values stay out.
    picked: Callable[[Values], Sequence[Any]] = scope["picked"]
    return picked


def _without_length(kind: str) -> str:
    """Return an SQL type for a cast: with a length, it would truncate long values instead of refusing them."""
    return kind.partition("(")[0]


def told(connection: Connection, text: str, error: Exception) -> BaseException:
    """Return the driver's *error* as SQLAlchemy would raise it."""
    dialect = connection.dialect
    broken = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)  # type: ignore[arg-type]
    if broken:
        leave_executor(connection)
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
