"""Finds the duplicate key or table in a TOML text: the parser only reports a column, or the end of the document.

Theory
------
One pass over the text, which recognises strings, comments and brackets, splits it into statements; a header, or a key
below it, that occurred before is the duplicate.

Handles: the same key in the same table, the same table again, a key and a table of one name. Does not handle: a
dotted key that goes through another key's value; the parser's own message stays for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_MARK: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|\'\'\'.*?\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}=\n]', re.DOTALL
)
_PART: Final = re.compile(r'"([^"\n]*)"|\'([^\'\n]*)\'|([A-Za-z0-9_-]+)')

Path = tuple[str, ...]


def said_twice(text: str) -> str | None:
    """Return the duplicate key or table in *text*, both lines and the remedy; None if none is found."""
    table: Path = ()
    keys: dict[Path, int] = {}
    tables: dict[Path, int] = {}
    for line, statement in _statements(text):
        many = statement.startswith("[[")
        head = statement.startswith("[")
        path = _path(statement.strip("[]")) if head else (*table, *_path(statement))
        shown = ".".join(path)
        if head:
            table = path
        if many:  # Another element, with its own keys.
            keys = {each: at for each, at in keys.items() if each[: len(path)] != path or each == path}
            tables = {each: at for each, at in tables.items() if each[: len(path)] != path}
        if (head and path in keys) or (not head and path in tables):
            first = keys.get(path) or tables[path]
            return f"{shown} is there as a key and as a table, at lines {first} and {line}: leave one of them"
        seen = tables if head else keys
        if path in seen:
            if head:
                return f"[{shown}] is there twice, at lines {seen[path]} and {line}: put what is below both below one"
            return f"{shown} is there twice, at lines {seen[path]} and {line}: leave one of them"
        if not many:
            seen[path] = line
    return None


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each statement's line number, and its text: a key without its value, a header in full."""
    depth, start, line, value_at = 0, 0, 1, -1
    begun = 1
    for found in _MARK.finditer(text + "\n"):
        mark = found[0]
        is_header = text[start : found.start()].lstrip()[:1] in {"", "["} and value_at < 0
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
        line += mark.count("\n")
        if not text[start : found.end()].strip():
            begun = line


def _path(dotted: str) -> Path:
    return tuple(
        next(part for part in found.groups("") if part) for found in _PART.finditer(dotted) if any(found.groups(""))
    )
