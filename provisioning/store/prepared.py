"""Statements on the busiest paths: compiled once, then handed to the driver as they are.

Theory
------
SQLAlchemy also compiles a statement once, but builds an execution context and a result for each use: 15
microseconds, where SQLite needs 2 for the statement itself. An enrolment has sixteen. So here the compiler provides
the text, and the types the conversion of values, and each use is only the driver's own call::

    Prepared(select(…)) ─ first use: text, binders, readers ─► driver.execute(text, values) ─► tuples

It is the same statement, text and conversion as `Connection.execute` would use, on the same connection and in the same
transaction, and its errors are SQLAlchemy's (`provisioning.store.compiled`, `provisioning.store.executor`).
`provisioning.store.postgresql_many` combines the statements of works led side by side (`provisioning.store.company`),
and `provisioning.store.sqlite_many` many look-ups of one work on SQLite.

Rules
-----
1. Rows are plain tuples, in the order of the statement's columns.
2. The values given are exactly those that the statement needs, by the names of its parameters or columns.

Handles: select, insert, update and delete with fixed parameters. Does not handle: lists that expand (``IN``), and
defaults that are computed in Python.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, Protocol

from sqlalchemy import Delete, Dialect, Insert, Select, Update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import NoResultFound

from provisioning.store.compiled import Compiled, Convert, Values, compile_for
from provisioning.store.executor import execute, execute_at_once, execute_each, execute_many
from provisioning.store.side_by_side import COMPANY

_AT_ONCE: Final = 5000
"""Rows per statement on PostgreSQL; so many one by one would block all writers for seconds."""
_NULL: Final = math.nan
"""NULL for SQLite, which stores no NaN. For None its driver looks for an adapter, in 3,000 steps a value."""


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
        self._compiled: Final[dict[tuple[str, tuple[str, ...]], Compiled]] = {}
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
        count: int = execute(connection, compiled, values).rowcount
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
            execute(connection, compiled, rows[0])
            return
        if compiled.at_once and not self.reads and not compiled.positional:
            for first in range(0, len(rows), _AT_ONCE):
                execute_many(connection, compiled, rows[first : first + _AT_ONCE])
            return
        execute_each(connection, compiled, [compiled.bound(values) for values in rows])

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
        execute_each(connection, compiled, zip(*bound, strict=False))

    def first(self, connection: Connection, values: Values) -> tuple[Any, ...] | None:
        """Execute; return the first row, None if there is none."""
        compiled = self._for(connection.dialect, values)
        if not compiled.positional and (leader := _leader(connection)) is not None:
            told = leader.ask(self, [values])[0].rows
            return told[0] if told else None
        rows = execute(connection, compiled, values).fetchall()  # All of them, or the statement stays open.
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
        return compiled.read_all(execute(connection, compiled, values).fetchall())

    def answers(self, connection: Connection, rows: Sequence[Values]) -> list[Answer]:
        """Execute for each of *rows*, which have the same names, with as few statements as possible."""
        compiled = self._for(connection.dialect, rows[0])
        if self.reads:
            return self._read(connection, compiled, rows)
        if self._sums:
            return self._taken(connection, compiled, rows)
        cursor = None if len(rows) == 1 else execute_many(connection, compiled, rows)
        if cursor is None:
            return [_answer(execute(connection, compiled, values), compiled) for values in rows]
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
            return compiled.read_all(execute_at_once(connection, compiled, bound).fetchall())
        rows += [{"wanted": each, **common} for each in wanted[1:]]
        answers = enumerate(self.answers(connection, rows), 1)
        return [(*row, place) for place, answer in answers for row in answer.rows]

    def _read(self, connection: Connection, compiled: Compiled, rows: Sequence[Values]) -> list[Answer]:
        asked = {tuple(values.values()): values for values in rows}  # Equal values, equal answers.
        many = None if len(asked) == 1 else execute_many(connection, compiled, list(asked.values()))
        if many is None:
            found = {place: _answer(execute(connection, compiled, each), compiled) for place, each in asked.items()}
            return [found[tuple(values.values())] for values in rows]
        of_place: dict[int, list[tuple[Any, ...]]] = {}
        for row in many.fetchall():
            of_place.setdefault(row[-1], []).append(compiled.read(row[:-1]))
        found = {}
        for place, each in enumerate(asked, 1):
            read = of_place.get(place, [])
            found[each] = Answer(len(read), read)
        return [found[tuple(values.values())] for values in rows]

    def _taken(self, connection: Connection, compiled: Compiled, rows: Sequence[Values]) -> list[Answer]:
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
                cursor = execute(connection, compiled, {**values, name: left[which]})
                ends[which] = cursor.fetchone()[0] - left[which]
            ends[which] += values[name]
            answers.append(Answer(1, ((ends[which],),)))
        return answers

    def _for(self, dialect: Dialect, values: Values) -> Compiled:
        place = dialect.name, tuple(values)
        compiled = self._compiled.get(place)
        if compiled is None:
            compiled = compile_for(self._statement, dialect, values, at_once=self._at_once, told_by=self._told_by)
            self._compiled[place] = compiled
        return compiled


def _leader(connection: Connection) -> Leader | None:
    """Return who leads the works on *connection*, if anybody does; not on SQLite."""
    leader: Leader | None = connection.info.get(COMPANY)
    return leader


def _but(values: Values, name: str) -> tuple[Any, ...]:
    return tuple(value for each, value in values.items() if each != name)


def _answer(cursor: Any, compiled: Compiled) -> Answer:
    rows = [compiled.read(row) for row in cursor.fetchall()] if cursor.description else []
    return Answer(cursor.rowcount, rows)


def _bound(column: Sequence[Any] | Same, bind: Convert | None) -> Iterable[Any]:
    """Return the values of *column* as SQLite's driver takes them, those of `Same` for ever."""
    if isinstance(column, Same):
        value = column.value if bind is None else bind(column.value)
        return repeat(_NULL if value is None else value)
    return column if bind is None else map(bind, column)
