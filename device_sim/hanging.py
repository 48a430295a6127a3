"""A line with a heading: on a narrow terminal its text goes on below in a column of its own, broken between words."""

from __future__ import annotations

import shutil
import sys
import textwrap


def hanging(head: str, text: str) -> str:
    """Return both as one line; on a terminal fitted to its width, with the text in a column of its own."""
    if not sys.stdout.isatty():
        return head + text
    width = max(shutil.get_terminal_size().columns, 2 * len(head))
    return textwrap.fill(text, width, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
