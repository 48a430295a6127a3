"""Finds the duplicate key or table in a TOML text: the parser only reports a column, or the end of the document.

Theory
------
One pass over the text, which recognises strings, comments and brackets, splits it into statements; a header, or a key
below it, that occurred before is the duplicate.

Handles: the same key in the same table, the same table again, a key and a table of one name. Does not handle: a
dotted key that goes through another key's value; the parser's own message stays for that.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Final

from provisioning.program.toml_strings import STRING

_MARK: Final = re.compile(STRING + r"|[\[\]{}=\n]", re.DOTALL)
_FIRST: Final = re.compile(r"\S")
_PART: Final = re.compile(r'"([^"\n]*)"|\'([^\'\n]*)\'|([A-Za-z0-9_-]+)')

_MOST_PARTS: Final = 64
"""Of a statement. One with more is none: it is behind what the parser has stopped at."""

Path = tuple[str, ...]
Place = tuple[object, ...]
"""A path whose arrays of tables are numbered: the same key in two of their elements has two places."""


def said_twice(text: str) -> str | None:
    """Return the duplicate key or table in *text*, both lines and the remedy; None if none is found."""
    table: Path = ()
    elements: dict[Path, int] = {}
    keys: dict[Place, int] = {}
    tables: dict[Place, int] = {}
    for line, statement in _statements(text):
        many = statement.startswith("[[")
        head = statement.startswith("[")
        said = _path(statement.strip("[]") if head else statement)
        if len(said) > _MOST_PARTS:
            return None
        path = said if head else (*table, *said)
        place = _place(path, elements)
        shown = ".".join(path)
        if head:
            table = path
        if many:  # Another element, with its own keys.
            elements[path] = elements.get(path, 0) + 1
            tables.pop(place, None)
        if (head and place in keys) or (not head and place in tables):
            first = keys.get(place) or tables[place]
            return f"{shown} is there as a key and as a table, at lines {first} and {line}: leave one of them"
        seen = tables if head else keys
        if place in seen:
            if head:
                return f"[{shown}] is there twice, at lines {seen[place]} and {line}: put what is below both below one"
            return f"{shown} is there twice, at lines {seen[place]} and {line}: leave one of them"
        if not many:
            seen[place] = line
    return None


def _place(path: Path, elements: Mapping[Path, int]) -> Place:
    above = (path[:length] for length in range(1, len(path)))
    return (*((each[-1], elements.get(each, 0)) for each in above), *path[-1:])


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each statement's line number, and its text: a key without its value, a header in full."""
    depth, start, line, value_at = 0, 0, 1, -1
    begun, first = 1, _first(text, 0)
    for found in _MARK.finditer(text + "\n"):
        mark = found[0]
        is_header = value_at < 0 and (first >= found.start() or text[first] == "[")
        if mark == "=" and depth == 0 and value_at < 0:
            value_at = found.start()
        elif mark in "[{" and not is_header:
            depth += 1
        elif mark in "]}" and not is_header:
            depth = max(0, depth - 1)
        if (mark == "\n" or mark.startswith("#")) and depth == 0:
            statement = text[start : found.start() if value_at < 0 else value_at].strip()
            if statement:
                yield begun, statement
            start, value_at = found.end(), -1
            if first < start:
                first = _first(text, start)
        line += mark.count("\n")
        if first >= found.end():
            begun = line


def _first(text: str, start: int) -> int:
    """Return the place of the first character from *start* on that is no space; beyond the text: there is none."""
    found = _FIRST.search(text, start)
    return len(text) + 1 if found is None else found.start()


def _path(dotted: str) -> Path:
    parts = (found for found in _PART.finditer(dotted) if any(found.groups("")))
    return tuple(next(part for part in found.groups("") if part) for found in itertools.islice(parts, _MOST_PARTS + 1))
