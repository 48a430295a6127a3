"""What may reach a terminal: text from brokers and services, but none of their control sequences.

A broker under test may be hostile, and a report may come from others: an escape sequence in a reason string could set
the tester's clipboard or draw a false verdict over the true one.

Rules
-----
1. Text chosen by others is made `printable` where it arrives, so that it stays within its line.
2. All output goes through `WordsOnly`: no code has to know where its text comes from.
3. To a file or a pipe no line ends in blanks, with which a table fills its last column.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from provisioning.program.given_up_output import give_up_output
from provisioning.program.printable import printable


class ReaderLeft(SystemExit):
    """Nobody reads the output any more: the command ends, and says nothing of it."""


class WordsOnly(Console):
    """A console that only uses its own colours and cursor control: control characters in the output are escaped."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the parts of *renderable*."""
        parts = self._words(super().render(renderable, options))
        return parts if self.is_terminal else _without_blanks_at_ends(parts)

    def on_broken_pipe(self) -> None:
        """Let what is left for the output go nowhere; raise `ReaderLeft`."""
        self.quiet = True
        give_up_output()
        raise ReaderLeft(1)

    def _words(self, parts: Iterable[Segment]) -> Iterable[Segment]:
        for part in parts:
            if part.control or part.text.isprintable():
                yield part
            else:
                yield Segment(printable(part.text, also="\n"), part.style)


def _without_blanks_at_ends(parts: Iterable[Segment]) -> Iterable[Segment]:
    """Yield *parts* without the blanks before an end of line."""
    blanks = ""  # Until something else follows on their line.
    for part in parts:
        *ended, begun = (blanks + part.text).split("\n")
        kept = begun.rstrip(" ")
        blanks = begun[len(kept) :]
        yield Segment("".join([*(f"{line.rstrip(' ')}\n" for line in ended), kept]), part.style, part.control)
    if blanks:
        yield Segment(blanks)
