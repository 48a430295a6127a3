"""Turns a SELECT for one value into one for many values; SQLite's dialect.

Theory
------
On SQLite a statement is a call and not a round trip, yet a thousand of them cost a third of what they read. The
values are passed as one JSON array, whose elements are looked up one by one by the index that the single statement
uses::

    SELECT … FROM devices WHERE name = ?
    SELECT …, asked.key + 1 FROM json_each(?) AS asked CROSS JOIN devices WHERE name = asked.value

SQLite keeps to the order of a CROSS JOIN, so it iterates over the array, whatever its statistics on the table.

The first rows of each value are chosen by a subquery of one table, which is all that is read of the others::

    SELECT t.id FROM t WHERE t.a = ? ORDER BY t.id LIMIT ? OFFSET ?
    SELECT t.id, asked.key + 1 FROM json_each(?) AS asked CROSS JOIN t
        WHERE t.id IN (SELECT t.id FROM t WHERE t.a = asked.value ORDER BY t.id LIMIT ? OFFSET ?)

Rules
-----
1. Rows end with the position of the value that they answer, from 1; their order is undefined.
2. Values that JSON might not preserve exactly are not looked up like this: `array_of` tells.

Handles: a statement with one parameter, text or a number, and neither subquery, order nor limit; and the first ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

_FLAT: Final = re.compile(r"SELECT ([^?]+?) \nFROM ([^?]+?) ?\nWHERE ([^?]*)\?([^?]*)", re.ASCII)
_FIRST_IDS: Final = re.compile(
    r"SELECT (?P<first>(?P<table>\w+)\.id \nFROM (?P=table) \nWHERE (?P=table)\.\w+ = )\?"
    r"(?P<rest> ORDER BY (?P=table)\.id\n LIMIT \? OFFSET \?)",
    re.ASCII,
)
_MORE: Final = re.compile(r"\b(SELECT|LIMIT|ORDER BY|GROUP BY)\b", re.ASCII)


def text_for_many(text: str) -> str:
    """Return the statement *text* for an array of values; empty if it is not one that is handled."""
    if (found := _FIRST_IDS.fullmatch(text)) is not None:
        first, table, rest = found["first"], found["table"], found["rest"]
        each = f"SELECT {first}asked.value{rest}"
        return f"SELECT {table}.id, asked.key + 1 FROM json_each(?) AS asked CROSS JOIN {table} WHERE {table}.id IN ({each})"  # noqa: S608, E501 - of a statement only
    found = _FLAT.fullmatch(text)
    if found is None or len(_MORE.findall(text)) > 1:
        return ""
    columns, tables, before, after = found.groups()
    condition = f"{before}asked.value{after}"
    return f"SELECT {columns}, asked.key + 1 FROM json_each(?) AS asked CROSS JOIN {tables} WHERE {condition}"  # noqa: S608 - of a statement only


def array_of(values: Sequence[Any]) -> str | None:
    """Return *values* as JSON, None if one is neither a number nor plain text."""
    if not set(map(type, values)) <= {str, int}:
        return None
    text = "".join([value for value in values if type(value) is str])
    return json.dumps(values) if text.isascii() and text.isprintable() else None
