"""A statement as one driver takes it: SQLAlchemy's text, and how values are converted on the way there and back.

Rules
-----
1. Every parameter has a type: without one, the conversion is up to the driver.
2. NULL is read as None, whatever the type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Delete, Dialect, Insert, Select, Update
from sqlalchemy.types import NullType

from provisioning.store import postgresql_many, sqlite_many

Convert = Callable[[Any], Any]
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A statement for one kind of database."""

    text: str
    binders: Sequence[tuple[str, Convert | None]]
    in_order: Callable[[Values], Sequence[Any]]
    """Picks the parameters from the values, in the order of the text, as the driver takes them: the fixed ones, too."""
    fixed: Values
    readers: Sequence[tuple[int, Convert]]
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
                bound[name] = postgresql_many.array_of(column if bind is None else [bind(value) for value in column])
        return bound

    def array(self, wanted: Sequence[Any], common: Values) -> tuple[Any, ...] | None:
        """Return the values of SQLite's *at_once*: those *wanted* of its first parameter, and the *common* others.

        None if that is impossible.
        """
        array = sqlite_many.array_of(wanted)
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


def compile_for(
    statement: Select[Any] | Insert | Update | Delete, dialect: Dialect, values: Values, *, at_once: bool, told_by: str
) -> Compiled:
    """Return *statement* for the database of *dialect* and *values* of these names; the rest as for `Prepared`.

    Raises TypeError if a parameter has no type.
    """
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
        together = postgresql_many.text_for_many(statement, str(compiled), types, told_by)
    else:
        together = _sqlite_text_for_many(statement, str(compiled), binders)
    return Compiled(
        text=str(compiled),
        binders=binders,
        in_order=_picker(binders, fixed),
        fixed=fixed,
        readers=list(_readers(columns, dialect)),
        positional=positional,
        at_once=together,
    )


def _binder(compiled: Any, name: str, dialect: Dialect) -> Convert | None:
    """Return how a parameter's value is converted for the driver, None if it is not."""
    typed = compiled.binds[name].type
    if isinstance(typed, NullType):  # Left of a comparison, SQLAlchemy infers no type from the right.
        raise TypeError(f"parameter {name!r} has no type and would go to the driver as it is: {compiled.statement}")
    convert: Convert | None = typed.dialect_impl(dialect).bind_processor(dialect)
    return convert


def _readers(columns: Iterable[Any], dialect: Dialect) -> Iterator[tuple[int, Convert]]:
    """Yield the places of the *columns* whose values are converted when they are read, and how."""
    for place, column in enumerate(columns):
        kind = column["type"]
        convert = kind.dialect_impl(dialect).result_processor(dialect, None)
        if convert is not None:
            yield place, _json_reader(convert) if isinstance(kind, JSON) else convert


def _sqlite_text_for_many(statement: object, text: str, binders: Sequence[tuple[str, Convert | None]]) -> str:
    """Return SQLite's text for an array of values; empty if there is none: it takes what needs no conversion."""
    is_look_up = isinstance(statement, Select) and not any(bind for _, bind in binders)
    return sqlite_many.text_for_many(text) if is_look_up else ""


def _json_reader(convert: Convert) -> Convert:
    """Return *convert* with a shortcut for the empty list, the most frequent value."""
    return lambda text: [] if text == "[]" else convert(text)


def _picker(binders: Sequence[tuple[str, Convert | None]], fixed: Values) -> Callable[[Values], Sequence[Any]]:
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
