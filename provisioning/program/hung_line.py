"""Wraps a line that is longer than the terminal is wide: at spaces only, with the continuation indented.

A terminal breaks at its edge, in the middle of a word or a serial number, and continues at the left as if that were
another line. To a file or a pipe a line is written unchanged: programs read lines.
"""

from __future__ import annotations

import shutil
import sys
import textwrap


def print_hung(line: str, indent: int) -> None:
    """Print *line*, which has no line ends; at a terminal the rest of a long one is indented by *indent* columns."""
    if sys.stdout.isatty() and len(line) > (room := shutil.get_terminal_size().columns) >= 2 * indent:
        line = textwrap.fill(line, room, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)
    sys.stdout.write(f"{line}\n")
