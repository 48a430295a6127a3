"""Turns a statement for one row of values into one for many rows; PostgreSQL's dialect.

Theory
------
The values are sent as one array per parameter, and the statement is applied to each position of them::

    SELECT … WHERE digest = %(wanted)s FOR UPDATE
    SELECT found.*, place FROM unnest(%(wanted)s) WITH ORDINALITY AS asked CROSS JOIN LATERAL (
        SELECT … WHERE digest = asked.wanted FOR UPDATE OFFSET 0) AS found

    UPDATE tokens SET used_at = %(used_at)s WHERE id = %(wanted)s
    UPDATE tokens SET used_at = asked.used_at FROM unnest(…) AS asked WHERE id = asked.wanted RETURNING place

So the text is the same however many there are, and the server plans it once. The inner statement is the one that
SQLAlchemy has compiled, with its parameters' names exchanged for columns.

Rules
-----
1. No two rows of values may concern the same row of a table, unless they only read: a change would be made
   once, an insertion would fail.
2. An INSERT returns the column `told_by`, whose value tells which of the rows was inserted: PostgreSQL guarantees no
   order.

Does not handle: UPDATE and DELETE with RETURNING, or with a subquery before their WHERE; an INSERT of anything but
parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Delete, Insert, Select, Update

_PARAMETER: Final = re.compile(r"%\((\w+)\)s")
_PLACE: Final = "asked.asked_place"

_ELEMENTS: Final[Mapping[type, Callable[[Any], str]]] = {
    int: str,
    bool: lambda value: "t" if value else "f",
    bytes: lambda value: f'"\\\\x{value.hex()}"',
    datetime: lambda value: f'"{value}"',
    str: lambda value: '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"',
    type(None): lambda _none: "NULL",
}


def array_of(values: Sequence[Any]) -> str | list[Any]:
    """Return the array of *values* as PostgreSQL reads it, or a list for the driver if a value is of another type.

    The driver's own way with a list takes a regular expression for each element: a fifth of what the store's thread
    does for enrolments that go together.
    """
    try:
        return "{" + ",".join([_ELEMENTS[type(value)](value) for value in values]) + "}"
    except KeyError:
        return list(values)


def text_for_many(
    statement: Select[tuple[object, ...]] | Insert | Update | Delete, text: str, types: Mapping[str, str], told_by: str
) -> str:
    """Return *text*, which is *statement* compiled, for arrays of parameters; *types* are the parameters' in SQL.

    Rows end with the place of the values that they answer, from 1; those of an INSERT with the value of *told_by*.
    """
    inner = _PARAMETER.sub(lambda found: f'asked."{found[1]}"' if found[1] in types else found[0], text)
    arrays = ", ".join(f"%({name})s::{kind}[]" for name, kind in types.items())
    columns = ", ".join(f'"{name}"' for name in types)
    asked = f"unnest({arrays}) WITH ORDINALITY AS asked ({columns}, asked_place)"
    if isinstance(statement, Select):
        # OFFSET 0: or the server makes of so many look-ups one join that reads whole tables.
        return f"SELECT found.*, {_PLACE} FROM {asked} CROSS JOIN LATERAL ({inner} OFFSET 0) AS found"  # noqa: S608 - of names only
    if isinstance(statement, Insert):
        head, _, rest = inner.partition(" VALUES (")
        values, _, tail = rest.partition(")")
        told = f", {told_by}" if " RETURNING " in tail else f" RETURNING {told_by}"
        return f"{head} SELECT {values} FROM {asked} ORDER BY {_PLACE}{tail}{told}"  # noqa: S608 - of names only
    joined = "FROM" if isinstance(statement, Update) else "USING"
    change, _, condition = inner.partition(" WHERE ")
    return f"{change} {joined} {asked} WHERE {condition} RETURNING {_PLACE}"
