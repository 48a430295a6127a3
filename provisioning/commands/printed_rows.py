"""Prints answers of many rows as they arrive: long ones are not held in memory, and a premature end loses no row.

For people it is a table, for programs a JSON array, which is well-formed even if not all of its members arrived. No
content of a table can control the terminal (`provisioning.program.printable`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Final, Self, TypeVar

from provisioning.program.hung_line import print_hung
from provisioning.program.printable import printable

if TYPE_CHECKING:
    from pydantic import BaseModel

AnswerT = TypeVar("AnswerT", bound="BaseModel")

_INDENT: Final = 2
_PORTION: Final = 1000
"""Rows that share the widths of a table's columns."""


class Table:
    """A table for people; on a terminal that is too narrow for it, each row is a block of lines."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Print nothing yet; *columns* are the header."""
        self._columns = columns
        self._widths = [0] * len(columns)
        self._is_begun = False

    def print(self, rows: Iterable[Sequence[str]]) -> None:
        """Print *rows*, the header before the first; columns never become narrower."""
        # Never truncated to the terminal's width: serial numbers are copied from it.
        found = [[printable(cell) for cell in row] for row in rows]
        lines = [self._columns, *found]
        self._widths = [max(width, *(len(line[place]) for line in lines)) for place, width in enumerate(self._widths)]
        is_first, self._is_begun = not self._is_begun, True
        whole = sum(self._widths) + 2 * (len(self._widths) - 1)
        if sys.stdout.isatty() and found and whole > shutil.get_terminal_size().columns:
            for number, row in enumerate(found):
                sys.stdout.write("" if is_first and not number else "\n")
                print_pairs(list(zip(self._columns, row, strict=True)))
            return
        for line in lines if is_first else found:
            cells = (f"{cell:<{width}}" for cell, width in zip(line, self._widths, strict=True))
            sys.stdout.write("  ".join(cells).rstrip() + "\n")


class JsonArray:
    """An array for programs, formatted like `json.dumps`; for a ``with`` block.

    If an exception ends the block, the array is closed after the members so far; without any, nothing is printed.
    """

    def __init__(self) -> None:
        """Print nothing yet."""
        self._is_begun = False

    def __enter__(self) -> Self:
        """Begin without members."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the array."""
        if self._is_begun:
            sys.stdout.write("\n]\n")
        elif kind is None:
            sys.stdout.write("[]\n")

    def print(self, members: Iterable[BaseModel]) -> None:
        """Print *members*."""
        for each in members:
            document = json.dumps(each.model_dump(mode="json"), indent=_INDENT)
            sys.stdout.write((",\n" if self._is_begun else "[\n") + indent(document, " " * _INDENT))
            self._is_begun = True


@contextlib.contextmanager
def printed(
    columns: Sequence[str], row: Callable[[AnswerT], Sequence[str]], *, as_json: bool
) -> Iterator[Callable[[Sequence[AnswerT]], None]]:
    """Yield a function that prints answers: a table with the *row* of each, or a JSON array, closed after the block."""
    if as_json:
        with JsonArray() as array:
            yield array.print
    else:
        table = Table(columns)
        yield lambda found: table.print(map(row, found))


async def print_each(
    answers: AsyncIterator[AnswerT], columns: Sequence[str], row: Callable[[AnswerT], Sequence[str]], *, as_json: bool
) -> None:
    """Print *answers* as they come, as `printed` does: a fleet's list is not held in memory."""
    portion: list[AnswerT] = []
    with printed(columns, row, as_json=as_json) as show:
        async for each in answers:
            portion.append(each)
            if len(portion) == _PORTION:
                show(portion)
                portion = []
        show(portion)  # Also without any: a table has its header.


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print a line for each of *pairs*, a name and a value."""
    width = max(len(name) for name, _ in pairs)
    for name, shown in pairs:
        print_hung(f"{name:<{width}}  {printable(shown)}".rstrip(), width + 2)
