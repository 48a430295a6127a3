"""Standard error of a command that goes on when nobody can read it: a closed terminal, a reader that left, a full disk.

What is said there accompanies work that may take a day. A terminal that is closed ends a run by SIGHUP, and it still
drains and reports; with the next picture for that terminal it would end without a report.

Rules
-----
1. What cannot be said is not said, and changes neither the work nor the exit code. Where there is room again, what
   follows is said.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress


class Unread(io.TextIOWrapper):
    """A stream of text to the file of *plain* that takes everything."""

    def __init__(self, plain: io.TextIOWrapper) -> None:
        super().__init__(plain.buffer, plain.encoding, plain.errors, line_buffering=True)
        self._plain = plain
        """Nobody else may hold it any more, and it would close the file."""

    def write(self, text: str, /) -> int:
        """Write *text*, if that is possible."""
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits, if that is possible."""
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        """Leave the file open: it is the process's."""


def let_standard_error_be_unread() -> None:
    """Have standard error be `Unread` from now on."""
    plain = sys.stderr
    if isinstance(plain, io.TextIOWrapper):  # Not in a process that was started without it.
        sys.stderr = Unread(plain)
