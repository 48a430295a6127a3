"""Untrusted TOML: parsed in a time bounded by its length, or refused.

Theory
------
The library's parser recurses once per bracket, and processes a dotted key once for each of its parts: a few
kilobytes of brackets end it with an error that is not a syntax error, sixty of a dotted key take minutes of CPU time.
So brackets and dots are counted first, by one pass over the text that recognises strings and comments.

Handles: settings, policies, scenarios. A byte order mark, which some editors write, is ignored.
Does not handle: how long the text is (`provisioning.program.given_file`), and what it should say.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

from provisioning.program.toml_strings import STRING
from provisioning.program.toml_twice import said_twice

MOST_NESTED: Final = 32
"""Maximum depth of brackets, and number of parts of one key."""
_MARK: Final = re.compile(STRING + r"|[\[\]{}.,=\n]", re.DOTALL)

_TWICE: Final = ("overwrite", "twice", "immutable")
"""The parser's messages for a duplicate key or table."""


class NotToml(ValueError):
    """The text is not TOML; the error text says why, and where."""


def toml_of(text: str) -> dict[str, Any]:
    """Parse *text*. Raises `NotToml`."""
    text = text.removeprefix("\ufeff")
    _refuse_nested(text)
    try:
        return tomllib.loads(text)
    except ValueError as error:  # The parser's own, or for a number with thousands of digits.
        said = str(error)
        twice = said_twice(text) if any(word in said for word in _TWICE) else None
        raise NotToml(twice or said) from error


def _refuse_nested(text: str) -> None:
    depth = parts = 0
    for found in _MARK.finditer(text):
        mark = found[0]
        if mark == ".":
            parts += 1
        elif mark in "[{":
            depth, parts = depth + 1, 0
        elif mark in "]}":
            depth, parts = depth - 1, 0
        elif mark in ",=\n":
            parts = 0
        if depth > MOST_NESTED or parts >= MOST_NESTED:
            line = text.count("\n", 0, found.start()) + 1
            raise NotToml(f"more than {MOST_NESTED} levels, one within the other (at line {line})")
