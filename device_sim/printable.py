"""Words that somebody else has chosen, as a person may read them."""

from __future__ import annotations


def printable(text: str, also: str = "") -> str:
    """Return *text* with a question mark for each character that is not to be seen, but for those of *also*."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() or character in also else "?" for character in text)
