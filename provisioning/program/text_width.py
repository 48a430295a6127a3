"""How many columns of a terminal a text takes: Chinese, Japanese and Korean characters and emoji two, an accent none.

Terminals go by Unicode's tables, each by the version that it was made with, and differ where several characters are
drawn as one. Here the characters count one by one; joiners, which make one picture of several, are not printed as such
(`provisioning.program.printable`).
"""

from __future__ import annotations

from typing import Final

_WIDE: Final = frozenset("WF")
"""East Asian Width (Unicode Standard Annex 11): wide and full-width."""
_ON_THE_LAST: Final = frozenset({"Mn", "Me"})
"""Categories of what is drawn on the character before: accents, vowel signs, the choice of a picture."""


def width_of(text: str) -> int:
    """Return how many columns *text* takes, in which nothing is unprintable."""
    if text.isascii():
        return len(text)
    import unicodedata  # Late: hardly anything printed needs Unicode's tables.

    return sum(
        0 if unicodedata.category(each) in _ON_THE_LAST else 1 + (unicodedata.east_asian_width(each) in _WIDE)
        for each in text
    )


def padded(text: str, width: int) -> str:
    """Return *text* with spaces behind it, so that it takes *width* columns; unchanged if it takes as many or more."""
    return text + " " * (width - width_of(text))
