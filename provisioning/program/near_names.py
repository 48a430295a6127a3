"""Which of many names somebody may have meant by one that is not known: "did you mean meter-17?".

Theory
------
The distance of two names is the least sum of edits that turn one into the other: two neighbours exchanged, a character
left out, added or replaced. Upper and lower case and leading zeros are no difference. A digit in place of another
counts more than the other edits: in a fleet of numbered devices that is usually another device, not a slip.

Where nothing is so near, the names are meant that have the given one as a part: people remember a number.

Only the nearest names are kept, `MOST` of them, so that any number may be looked through.

Rules
-----
1. At most two edits; of a name of three characters or less, one.
2. Names of more than `LONGEST` characters are not compared: the cost grows with the length.
"""

from __future__ import annotations

import re
from bisect import insort
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

MOST: Final = 3
LONGEST: Final = 128
_EDIT: Final = 2
_OTHER_DIGIT: Final = 3
_SHORT: Final = 3
_PART: Final = 3
"""Characters that a part has at least: fewer are in every name."""
_ZEROS: Final = re.compile(r"(?<![0-9])0+(?=[0-9])")


class NearNames:
    """The names nearest to *wanted*, of those seen so far; *wanted* itself is none of them."""

    __slots__ = ("_best", "_characters", "_found", "_parts", "_plain", "_wanted")

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        self._plain = _plain(wanted)
        self._characters = frozenset(self._plain)
        self._best = 0 if len(wanted) > LONGEST else _EDIT if len(wanted) <= _SHORT else 2 * _EDIT
        self._found: list[str] = []
        self._parts: list[str] = []
        """Names of which it is a part."""

    def see(self, name: str) -> None:
        """Consider *name*; one that was seen before changes nothing."""
        if not name or len(name) > LONGEST or name == self._wanted:
            return
        plain = _plain(name)
        if _PART <= len(self._plain) <= LONGEST and self._plain in plain and name not in self._parts:
            insort(self._parts, name)
            del self._parts[MOST:]
        if len(self._characters.symmetric_difference(plain)) > self._best:  # One edit changes two at most, and costs 2.
            return
        distance = _distance(self._plain, plain, self._best)
        if distance > self._best or (distance == self._best and name in self._found):
            return
        if distance < self._best:
            self._best, self._found = distance, []
        insort(self._found, name)
        del self._found[MOST:]

    @property
    def found(self) -> list[str]:
        """The nearest names, in order; all are equally near."""
        return list(self._found or self._parts)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return which of the *known* words of a program's own, settings for example, *word* resembles most, if any.

    Unlike a device's name, such a word may also be a part of the one that is meant, or have another ending.
    """
    near = get_close_matches(word, list(known), 1)
    return near[0] if near else None


def did_you_mean(names: list[str]) -> str:
    """Return the question whether one of *names* is meant; they must not be empty."""
    *others, last = names
    first = f"{', '.join(others)} or " if others else ""
    return f"did you mean {first}{last}?"


def _plain(name: str) -> str:
    return _ZEROS.sub("", name.casefold())


def _distance(one: str, other: str, most: int) -> int:
    """Return the distance of two names, or more than *most* if it is more."""
    if one == other:
        return 0
    if most < _EDIT or abs(len(one) - len(other)) * _EDIT > most:
        return most + 1
    start, shorter = 0, min(len(one), len(other))
    while start < shorter and one[start] == other[start]:
        start += 1
    if start == shorter:
        return (len(one) + len(other) - 2 * shorter) * _EDIT
    one, other = one[start:], other[start:]
    replaced = _OTHER_DIGIT if one[0].isdecimal() and other[0].isdecimal() else _EDIT
    best = replaced + _distance(one[1:], other[1:], most - replaced)
    best = min(best, _EDIT + _distance(one[1:], other, most - _EDIT))
    best = min(best, _EDIT + _distance(one, other[1:], most - _EDIT))
    if one[1:2] == other[0] and other[1:2] == one[0]:
        best = min(best, _EDIT + _distance(one[2:], other[2:], most - _EDIT))
    return best
