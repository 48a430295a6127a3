"""Escapes untrusted text for display: the one place where all three programs do so.

Identifiers, topics, reason strings and names may contain escape sequences and line ends: printed raw, they could set
the reader's clipboard, or overwrite the true line with another.
"""

from __future__ import annotations

from typing import Final

LAID_OUT: Final = "\n\t"
"""What a text of our own may hold beside: its lines, and what is set in."""


def printable(text: str, also: str = "") -> str:
    r"""Return *text* with each character that is not to be seen as Python writes it (``\n``, ``\x1b``), but for *also*.

    Where there is one, a backslash of the text's own is doubled: what was escaped can be told from what was there.
    """
    if text.isprintable() or all(each.isprintable() or each in also for each in text):
        return text
    return "".join(
        each if (each.isprintable() and each != "\\") or each in also else each.encode("unicode_escape").decode()
        for each in text
    )


def is_text(given: str) -> bool:
    """Whether *given* can be written as UTF-8: half of a character cannot, as JSON and arguments may have it."""
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True
