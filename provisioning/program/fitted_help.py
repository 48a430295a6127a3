"""Commands in a help text, broken where they are wider than the terminal: as a shell takes them, to be copied.

A line that the terminal breaks is cut in the middle of a word, and what is copied of a pager or a narrow window may
have a line's end there.
"""

from __future__ import annotations

from typing import Final

_INDENT: Final = "  "
_END: Final = " \\"
_BEGINS: Final = ("-", "|", ">", "&&")
"""What a line best begins with: an option stays with its value."""


def fitted(text: str, width: int) -> str:
    """Return *text* with each indented line, which is a command, broken if it is longer than *width*."""
    return "\n".join(
        part for line in text.split("\n") for part in (_broken(line, width) if line.startswith(_INDENT) else (line,))
    )


def _broken(line: str, width: int) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())] + _INDENT
    parts: list[str] = []
    while len(line) > width and (at := _place(line, width - len(_END), len(indent))):
        parts.append(line[:at] + _END)
        line = indent + line[at:].lstrip()
    return [*parts, line]


def _place(line: str, most: int, least: int) -> int:
    """Return where the last space is that a line may end at, at *most*; 0 if there is none."""
    any_space = best = 0
    quote = ""
    for at, character in enumerate(line[: most + 1]):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == " " and at > least and line[at - 1] != " ":
            any_space = at
            if line[at:].lstrip().startswith(_BEGINS):
                best = at
    return best or any_space
