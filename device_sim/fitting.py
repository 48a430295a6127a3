"""Pictures for terminals of any width: figures under their names, and the widest of several pictures that fits.

Rules
-----
1. A name or figure is shown whole or not at all: half of one may be taken for another.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

_WIDE = 200
"""More columns than any picture needs."""


class Fitting:
    """The first of *pictures*, widest first, that fits the terminal; else the last."""

    def __init__(self, *pictures: RenderableType) -> None:
        self._pictures = pictures

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the picture that fits."""
        for picture in self._pictures:
            if Measurement.get(console, options.update(width=_WIDE), picture).maximum <= options.max_width:
                yield picture
                return
        yield self._pictures[-1]


def row(figures: Mapping[str, str]) -> Table:
    """Return *figures* in one row, each under its name."""
    table = Table(box=None, padding=(0, 1), pad_edge=True)
    for heading in figures:
        table.add_column(heading, justify="right", header_style="dim", no_wrap=True)
    table.add_row(*figures.values())
    return table
