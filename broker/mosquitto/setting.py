"""Settings as lines of TOML, each with the line of mosquitto.conf that it comes from."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from provisioning.program.printable import printable

_WIDTH: Final = 100


@dataclass(frozen=True, slots=True)
class Setting:
    """A key and its value."""

    key: str
    value: str | int | list[str]
    where: str = ""
    """What to say beside it: where it comes from."""
    why: str = ""
    """What to say above it."""

    def lines(self) -> list[str]:
        """Return it as lines of TOML."""
        beside = f"  # {printable(self.where)}" if self.where else ""
        return [*comment(self.why), f"{self.key} = {_value(self.value)}{beside}"]


def table(header: str, settings: Iterable[Setting]) -> list[str]:
    """Return a table of *settings* as lines of TOML, under *header*."""
    return ["", header, *(line for each in settings for line in each.lines())]


def comment(text: str, indent: str = "") -> list[str]:
    """Return *text*, which may quote any file, as lines of comment; those after the first begin with *indent*.

    Lines below its first are commands, which are not wrapped.
    """
    words, *commands = text.split("\n")
    wrapped = textwrap.wrap(
        printable(words),
        _WIDTH,
        initial_indent="# ",
        subsequent_indent=f"# {indent}",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [*wrapped, *(f"#   {printable(each)}" for each in commands)]


def _value(value: str | int | list[str]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")
