"""What may reach a terminal: the words of brokers and services, and none of their control sequences.

A broker under test may be hostile, and a report somebody else's: an escape sequence in a reason string would set the
tester's clipboard or draw another verdict over the true one.

Rules
-----
1. Text that others have chosen is made `printable` where it comes in, so that it stays within its line.
2. Whatever is shown goes through `WordsOnly`: nobody has to know whose words they are.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from provisioning.program.printable import printable


class WordsOnly(Console):
    """A console whose colours and cursor are its own: control characters in what it shows are escaped."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the parts of *renderable*."""
        for part in super().render(renderable, options):
            if part.control or part.text.isprintable():
                yield part
            else:
                yield Segment(printable(part.text, also="\n"), part.style)
