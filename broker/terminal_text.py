"""What clients have chosen, as a person may read it: identifiers and topics may hold escape sequences and line ends."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return *text* fit for a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
