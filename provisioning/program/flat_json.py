"""JSON of an object of strings, whole numbers, moments and lists of them, as the standard library's encoder writes it.

A moment is text, as everywhere for programs (`provisioning.program.moments`), and a duration is what a command takes:
whoever undoes a change writes what was before it.

That encoder is set up again for each object, which costs three times what a log line is worth.
All other types are left to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

from provisioning.program.durations import shown
from provisioning.program.moments import rfc3339_exactly


class FlatJson:
    """Writes objects; values that JSON does not support are written as their text."""

    def __init__(self, *, ascii_only: bool, sort_keys: bool) -> None:
        self._library = json.JSONEncoder(default=_as_text, ensure_ascii=ascii_only, sort_keys=sort_keys)
        text = encode_basestring_ascii if ascii_only else encode_basestring
        self._text = text
        self._sort = sort_keys
        self._writers: Mapping[type, Callable[[Any], str]] = {
            str: text,
            datetime: lambda moment: text(rfc3339_exactly(moment)),
            int: int.__repr__,
            list: self._list,
            type(None): lambda _none: "null",
        }

    def _list(self, values: list[Any]) -> str:
        return "[" + ", ".join([self._writers[type(value)](value) for value in values]) + "]"

    def encode(self, fields: Mapping[str, object]) -> str:
        """Return *fields* as a JSON object."""
        text, writers = self._text, self._writers
        items = sorted(fields.items()) if self._sort else fields.items()
        try:
            return "{" + ", ".join([f"{text(name)}: {writers[type(value)](value)}" for name, value in items]) + "}"
        except KeyError:
            return self._library.encode(fields)


def _as_text(value: object) -> str:
    if isinstance(value, timedelta) and not value.microseconds:
        return shown(int(value.total_seconds()))
    return rfc3339_exactly(value) if isinstance(value, datetime) else str(value)
