"""Prints tables, and names with their values, for people: what all commands of the programs print that is not JSON.

No content can control the terminal (`provisioning.program.printable`), and none is cut to the terminal's width, since
serial numbers are there to be copied: where a table does not fit, each row is a block of lines. To a file or a pipe a
table goes, however wide.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence

from provisioning.program.hung_line import print_hung
from provisioning.program.printable import printable
from provisioning.program.text_width import padded, width_of


class Table:
    """A table whose rows come in portions."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Print nothing yet; *columns* are the header."""
        self._columns = columns
        self._widths = [0] * len(columns)
        self._is_begun = False

    def print(self, rows: Iterable[Sequence[str]]) -> None:
        """Print *rows*, the header before the first; columns never become narrower."""
        found = [[printable(cell) for cell in row] for row in rows]
        lines = [self._columns, *found]
        self._widths = [
            max(width, *(width_of(line[place]) for line in lines)) for place, width in enumerate(self._widths)
        ]
        is_first, self._is_begun = not self._is_begun, True
        whole = sum(self._widths) + 2 * (len(self._widths) - 1)
        if sys.stdout.isatty() and found and whole > shutil.get_terminal_size().columns:
            for number, row in enumerate(found):
                sys.stdout.write("" if is_first and not number else "\n")
                print_pairs(list(zip(self._columns, row, strict=True)))
            return
        for line in lines if is_first else found:
            cells = (padded(cell, width) for cell, width in zip(line, self._widths, strict=True))
            sys.stdout.write("  ".join(cells).rstrip() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a whole table."""
    Table(columns).print(rows)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print a line for each of *pairs*, a name and a value."""
    width = max(width_of(name) for name, _ in pairs)
    for name, shown in pairs:
        print_hung(f"{padded(name, width)}  {printable(shown)}".rstrip(), width + 2)
