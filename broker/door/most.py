"""Who has most of something that is counted one by one.

Theory
------
Somebody with very many addresses decides how many there are to choose from, so they are not looked through: beside its
count, each is filed under it. A count changes by one, so that the highest moves by one at most, and is always known.

Rules
-----
1. Every call takes the same time, however many there are.
2. Of those who have the same, the one who has had it longest is named.
3. No I/O, no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Most(Generic[Key]):
    """Counts, and whose is the highest."""

    __slots__ = ("_counts", "_levels")

    def __init__(self, counts: Mapping[Key, int] | None = None) -> None:
        """Begin with *counts*, of those who have one at least; of the same, the first of them has had it longest."""
        self._counts: dict[Key, int] = {} if counts is None else dict(counts)
        self._levels: list[OrderedDict[Key, None]] = [OrderedDict()]
        """Who has so many, by how many; the last is of the highest count. (A dict's first is behind all it had.)"""
        for key, count in self._counts.items():
            while count >= len(self._levels):
                self._levels.append(OrderedDict())
            self._levels[count][key] = None

    def of(self, key: Key) -> int:
        """Return how many *key* has."""
        return self._counts.get(key, 0)

    def add(self, key: Key) -> None:
        """Give *key* one more."""
        count = self._counts.get(key, 0)
        self._counts[key] = count + 1
        if count:
            del self._levels[count][key]
        if count + 1 == len(self._levels):
            self._levels.append(OrderedDict())
        self._levels[count + 1][key] = None

    def take(self, key: Key) -> None:
        """Take one from *key*, who has one."""
        count = self._counts[key] - 1
        del self._levels[count + 1][key]
        if count:
            self._counts[key] = count
            self._levels[count][key] = None
        else:
            del self._counts[key]
        if not self._levels[-1] and len(self._levels) > 1:
            self._levels.pop()  # One at most: *key* has just come to the next one.

    def first(self) -> Key | None:
        """Return who has most; None: nobody has any."""
        return next(iter(self._levels[-1]), None)
