"""Prints answers of many rows as they arrive: long ones are not held in memory, and a premature end loses no row.

For people it is a table (`provisioning.program.printed_table`), for programs a JSON array, which is well-formed even if
not all of its members arrived.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Final, Self, TypeVar

from provisioning.program.printed_table import Table

if TYPE_CHECKING:
    from pydantic import BaseModel

AnswerT = TypeVar("AnswerT", bound="BaseModel")

_INDENT: Final = 2
_PORTION: Final = 1000
"""Rows that share the widths of a table's columns."""


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
    """Print *answers* as they come: a fleet's list is not held in memory."""
    portion: list[AnswerT] = []
    with printed(columns, row, as_json=as_json) as show:
        async for each in answers:
            portion.append(each)
            if len(portion) == _PORTION:
                show(portion)
                portion = []
        show(portion)  # Also without any: a table has its header.


def print_list(
    answers: Sequence[AnswerT], columns: Sequence[str], row: Callable[[AnswerT], Sequence[str]], *, as_json: bool
) -> None:
    """Print *answers*, of which there are few."""
    with printed(columns, row, as_json=as_json) as show:
        show(answers)
