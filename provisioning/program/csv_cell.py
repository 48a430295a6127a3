"""How a value is written into a CSV file: as JSON writes it, and such that no spreadsheet calculates it."""

from __future__ import annotations

from typing import Final

_FORMULA_STARTS: Final = ("=", "+", "-", "@")


def csv_cell(value: object) -> object:
    """Return what stands for *value*: true and false as in JSON; a text that looks like a formula behind a quote.

    A device chooses its name. None is left to the writer, which leaves the cell empty.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
