"""What may reach a terminal: text from brokers and services, but none of their control sequences.

A broker under test may be hostile, and a report may come from others: an escape sequence in a reason string could set
the tester's clipboard or draw a false verdict over the true one.

Rules
-----
1. Text chosen by others is made `printable` where it arrives, so that it stays within its line.
2. All output goes through `WordsOnly`: no code has to know where its text comes from.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from provisioning.program.printable import printable


class WordsOnly(Console):
    """A console that only uses its own colours and cursor control: control characters in the output are escaped."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the parts of *renderable*."""
        for part in super().render(renderable, options):
            if part.control or part.text.isprintable():
                yield part
            else:
                yield Segment(printable(part.text, also="\n"), part.style)
