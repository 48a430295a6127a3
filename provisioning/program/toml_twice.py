"""What a TOML text says twice: the parser's word for it is a column, or the end of the document.

Theory
------
Statements are told apart by one pass over the text that knows strings, comments and brackets; a header, or a key below
it, that was there before is what is said twice.

Handles: the same key in the same table, the same table again, a key and a table of one name. Does not handle: a key
with dots that goes through another key's value; the parser's own word stays for that.
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
    """Return the key or the table that *text* says twice, both lines and the remedy; None if nothing is found."""
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
        if many:  # Another element: whatever was said of the one before is none of its own.
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
    """Yield each statement's line, and of a key what is before its value, of a header all of it."""
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
