"""Escapes untrusted text for display: the one place where all three programs do so.

Identifiers, topics, reason strings and names may contain escape sequences and line ends: printed raw, they could set
the reader's clipboard, or overwrite the true line with another.
"""

from __future__ import annotations

from typing import Final

LAID_OUT: Final = "\n\t"
"""Characters that texts of our own may also contain: for lines and indentation."""


def printable(text: str, also: str = "") -> str:
    r"""Return *text* with each unprintable character escaped as in Python (``\n``, ``\x1b``), except those in *also*.

    If there is one, backslashes in the text are doubled: escapes can be distinguished from the original text.
    """
    if text.isprintable() or all(each.isprintable() or each in also for each in text):
        return text
    return "".join(
        each if (each.isprintable() and each != "\\") or each in also else each.encode("unicode_escape").decode()
        for each in text
    )


def is_text(given: str) -> bool:
    """Whether *given* can be encoded as UTF-8: lone surrogates cannot, which JSON and arguments may contain."""
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True
