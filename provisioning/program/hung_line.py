"""Wraps a line that is longer than the terminal is wide: at spaces only, with the continuation indented.

A terminal breaks at its edge, in the middle of a word or a serial number, and continues at the left as if that were
another line. To a file or a pipe a line is written unchanged: programs read lines.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Final, TextIO

from provisioning.program.text_width import width_of

_CONTINUED: Final = 2
_PIECES: Final = re.compile(r" +|[^ ]+")
_UNTOLD: Final = 80
"""Columns of a terminal that does not say how many it has."""


def hung(text: str, stream: TextIO, indent: int = _CONTINUED) -> str:
    """Return *text* for *stream*: at a terminal the rest of each long line is indented by *indent* columns."""
    if not stream.isatty():
        return text
    room = _columns(stream)
    return "\n".join(_hung(line, room, indent) for line in text.split("\n"))


def print_hung(line: str, indent: int) -> None:
    """Print *line*, which has no line ends, to standard output as `hung`."""
    sys.stdout.write(f"{hung(line, sys.stdout, indent)}\n")


def _hung(line: str, room: int, indent: int) -> str:
    if width_of(line) <= room or room < 2 * indent:
        return line
    lines, gap = [""], ""
    for piece in _PIECES.findall(line.expandtabs()):
        if piece.startswith(" "):
            gap = piece
        elif lines[-1] and width_of(lines[-1] + gap + piece) > room:
            lines.append(" " * indent + piece)
        else:
            lines[-1] += gap + piece
    return "\n".join(lines)


def _columns(stream: TextIO) -> int:
    """Return how wide the terminal of *stream* is: standard output may be another one, or none."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _UNTOLD
    except (OSError, ValueError):
        return _UNTOLD
